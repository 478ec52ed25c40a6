"""The run directory while it is trained in: its lock, log, rows, checkpoint, and the adapter at the end."""

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paretune.backbones.backbone import Backbone
from paretune.evaluation.points import point
from paretune.evaluation.scores import Scores
from paretune.interchange.files import read_adapter, save_adapter
from paretune.interchange.placing import restore_stored, stored_tensors_full_names
from paretune.runs.disk import write_json
from paretune.runs.examples import Examples, Pictures
from paretune.runs.lines import append_lines
from paretune.runs.lock import alone
from paretune.runs.objects import check_local
from paretune.runs.progress import peak_memory_bytes
from paretune.runs.rows import BEST, CHECKPOINT, OTHERWISE, TASKS, differences, read_json
from paretune.runs.sinks.base import Openable, backfill, forwarding
from paretune.runs.store import Run, RunWriter, load_runs
from paretune.strategies.mechanics.adapting import require_adaptation, restore, trainable_parameters
from paretune.training.checkpoints import (
    Kept,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from paretune.training.chosen import chosen_steps, drop_weights, forget_later, keep_weights
from paretune.training.ema import Average
from paretune.training.freezing import NoFreezing
from paretune.training.guards import beginning
from paretune.training.plan import Plan
from paretune.training.processes import Processes
from paretune.training.sharding import whole_state
from paretune.training.tasks import view

log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """A task at an evaluation point."""

    report: Scores
    select: Scores
    elsewhere: Mapping[str, Scores]
    pictures: Pictures | None  # of the report split, if they are shown


class Record:
    """What is kept of a run. The main process writes, all processes know how far it is.

    Each of several tasks has a run directory of its own in that of the run, which has the checkpoint, the log, and an
    adapter with the whole head.

    Args:
        path: the run directory, which the main process holds alone.
        plan: of the run.
        processes: that train.
        resume: go on with the run that is there.
        sinks: who else receives the rows.

    Raises:
        ValueError: there is a run with another plan, or a damaged one; every process raises it.
    """

    def __init__(
        self, path: Path, plan: Plan, processes: Processes, *, resume: bool, sinks: Sequence[Openable]
    ) -> None:
        self.path, self.plan, self.processes, self.sinks = path, plan, processes, sinks
        self.paths = places(path, plan.names)
        self.writers = processes.on_main(lambda: self._open(resume)) or []  # none but in the main process
        self.done = all((run_path / "DONE").exists() for run_path in self.paths)
        self.kept: Mapping[str, Kept] = {}
        self.so_far: dict[str, Any] = {
            "step": 0,
            "train_seconds": 0.0,
            "cpu_seconds": 0.0,
            "attack_seconds": 0.0,
            "findings": [],
            "clean_select": [],
            "stop": None,
            "best": None,
            "attack_precision": plan.options.precision,
        }

    def _open(self, resume: bool) -> list[RunWriter]:
        configs = self.plan.identity()
        if self.plan.together:
            self._claim({config["task"]: config for config in configs}, resume)
        elif (self.path / TASKS).exists():
            raise ValueError(
                f"{self.path} holds a run of several tasks; choose another directory, or remove this one"
            )
        writers = [
            RunWriter(path, config, resume=resume) for path, config in zip(self.paths, configs, strict=True)
        ]
        if all(writer.done for writer in writers):
            for path in dict.fromkeys((self.path, *self.paths)):
                try:
                    read_adapter(path / "adapter")
                except (OSError, ValueError) as error:
                    raise ValueError(
                        f"{path} is complete, but its adapter is not: {error}; {OTHERWISE}"
                    ) from None
        return writers

    def _claim(self, config: dict[str, Any], resume: bool) -> None:
        """Say what run of several tasks this is, and forget how far it is unless to ``resume``.

        Raises:
            ValueError: the directory holds another run.
        """
        file = self.path / TASKS
        if (self.path / "config.json").exists():
            raise ValueError(
                f"{self.path} holds a run of one task; choose another directory, or remove this one"
            )
        if not file.exists():
            write_json(file, config)
        elif (stored := read_json(file)) != json.loads(json.dumps(config)):
            raise ValueError(
                f"{self.path} holds a run with another configuration: {differences(stored, config)}. Choose another "
                "directory, or remove this one"
            )
        if not resume:
            for name in (CHECKPOINT, BEST, "log.jsonl"):
                (self.path / name).unlink(missing_ok=True)

    @property
    def checkpoint(self) -> Path:
        """The file that a stopped run goes on from."""
        return self.path / CHECKPOINT

    @property
    def step(self) -> int:
        """Optimizer steps up to the last evaluation point."""
        return int(self.so_far["step"])

    @property
    def clean(self) -> list[float]:
        """Clean accuracy on the select split after each epoch, as long as the schedule of epsilon asks for it."""
        accuracies: list[float] = self.so_far["clean_select"]
        return accuracies

    @property
    def findings(self) -> list[str]:
        """What has been noticed."""
        return [noted["finding"] for noted in self.so_far["findings"]]

    @property
    def stop(self) -> str | None:
        """Why there is no further step, if so."""
        why: str | None = self.so_far["stop"]
        return why

    def note(self, finding: str | None, step: int, *, failure: bool = False) -> None:
        """Log a finding, if there is a new one, and keep it; a ``failure`` ends the run if its plan says so."""
        noted = {"step": step, "finding": finding}
        if finding is None or noted in self.so_far["findings"]:
            return
        log.warning("%s, step %d: %s", self.path.name, step, finding)
        self.so_far["findings"].append(noted)
        if failure and self.plan.stop_on_failure and step < self.plan.total:
            self.end(finding, step)

    def end(self, why: str, step: int) -> None:
        """Let ``step`` be the last one; the loop measures it, and the run is finished as it is then."""
        if self.stop is None:
            self.so_far["stop"] = why
            self.note(f"stopped after {step} of {self.plan.total} steps: {why.partition(':')[0]}", step)

    def restore(self, model: Backbone) -> Run:
        """Give ``model`` the adapter of a run that is done."""
        log.info("%s is complete; its adapter is loaded", self.path)
        run = load_runs(self.paths[0])[0]
        restore_stored(model.module, require_adaptation(model), read_adapter(self.path / "adapter")[1])
        if self.writers:
            for file in (self.checkpoint, self.path / BEST):
                file.unlink(missing_ok=True)
            for path in self.paths:
                backfill(path, self.sinks)
        return run

    def go_on(self, model: Backbone, optimizer: torch.optim.Optimizer, kept: Mapping[str, Kept]) -> None:
        """Put the last checkpoint, if there is one, into what is given, and forget what came after it.

        Args:
            model: as it was before the run began.
            optimizer: of it.
            kept: what else checkpoints hold, by name.
        """
        self.kept = kept
        if self.checkpoint.exists():
            self.so_far = load_checkpoint(self.checkpoint, model.module, optimizer, kept)
            log.info("%s goes on from step %d of %d", self.path, self.step, self.plan.total)
            world = self.processes.world
            if (before := self.so_far.get("processes", world)) != world:
                self.note(
                    f"goes on with {world} processes, after {before}: the same batches, but dropout draws otherwise, "
                    "and batch norms that adapt see other shares",
                    self.step,
                )
        else:
            self.so_far["begun"] = beginning(model)
        self.processes.on_main(self._forget_later)

    def _forget_later(self) -> None:
        forget_later(self.path, self.paths, self.step)
        for writer in self.writers:
            writer.truncate_after(self.step)
            if writer.points < (expected := self.so_far.get("points", 0)):
                raise ValueError(
                    f"{writer.path / 'points.jsonl'} has {writer.points} rows up to step {self.step}, but {self.checkpoint} "
                    f"says that there are {expected}: rows were lost. The file must be whole: {OTHERWISE}"
                )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around the steps: the log and the sinks are open, and time counts."""
        with contextlib.ExitStack() as opened:
            file = self.path / "log.jsonl" if self.writers else None
            self._write = opened.enter_context(append_lines(file, self.step))
            self._forward = [
                opened.enter_context(forwarding(writer.path, self.sinks)) for writer in self.writers
            ]
            self.start_clock()
            yield

    def start_clock(self) -> None:
        """From here on time counts as training, up to :meth:`stop_clock`."""
        self._started = time.perf_counter(), time.process_time()

    def stop_clock(self) -> None:
        """What follows is no training."""
        self.so_far["train_seconds"] += time.perf_counter() - self._started[0]
        self.so_far["cpu_seconds"] += time.process_time() - self._started[1]

    def log(self, rows: Sequence[Mapping[str, Any]], *, sync: bool) -> None:
        """Append lines to the log; ``sync`` makes all of it durable, before a checkpoint that counts on it."""
        for row in rows:
            self._write(row, sync=sync and row is rows[-1])

    def is_best(self, step: int, selects: Sequence[Scores]) -> bool:
        """Whether the run would end with this point, by the rule of the plan; decides when to wait for no better one.

        A point is as good as the mean over the tasks.
        """
        keep, best = self.plan.keep, self.so_far["best"]
        scores = [
            keep.score(select.clean_accuracy, min(map(select.robust_accuracy, select.robust)))
            for select in selects
        ]
        score = sum(scores) / len(scores)
        if best is None or keep.rule == "last" or score > best["score"]:
            self.so_far["best"] = {"step": step, "score": score, "since": 0}
            return True
        best["since"] += 1
        if best["since"] == keep.patience and step < self.plan.total:
            self.end(f"no point after step {best['step']} was better by keep={keep.rule!r}", step)
        return False

    def point(
        self,
        step: int,
        measured: Sequence[Measured],
        model: Backbone,
        optimizer: torch.optim.Optimizer,
        average: Average,
        *,
        best: bool,
    ) -> None:
        """Keep what the examples are, append the rows of an evaluation point and replace the checkpoint."""
        self.so_far["step"], self.so_far["processes"] = step, self.processes.world
        state = whole_state(optimizer)  # of all processes
        if not self.writers:
            return
        spent = {
            key: self.so_far[key]
            for key in ("train_seconds", "cpu_seconds", "attack_seconds", "attack_precision")
        }
        mixed = self.plan.mixed_precision
        common = spent | {
            "step": step,
            "processes": self.processes.world,
            "gradient_evaluations": self.plan.gradient_evaluations(step, self.clean),
            "trainable_parameters": sum(p.numel() for p in trainable_parameters(model).values()),
            "peak_memory_bytes": peak_memory_bytes(),
            "precision": "fp32" if mixed == "no" else mixed,
            "versions": {name: version(name) for name in ("paretune", "torch", "timm", "accelerate")},
        }
        if self.stop is not None:
            common["stopped"] = self.stop
        kept = {name: t.detach() for name, t in _stored(model).items()} | average.tensors()
        if best:
            for writer, (report, _, _, pictures) in zip(self.writers, measured, strict=True):
                assert report.labels is not None  # evaluate gives them
                writer.keep(Examples(report.split, report.class_names, report.labels, pictures))
            if self.plan.keep.rule != "last":
                # The points up to the next checkpoint are the same again if this one is never written.
                save_tensors(self.path / BEST, kept)
        for writer, task, scores in zip(self.writers, self.plan.tasks, measured, strict=True):
            epoch = {"epoch": step / task.per_epoch}
            writer.append(*point(scores.report, scores.select, scores.elsewhere, common | epoch))
            self.so_far["points"] = writer.points  # the same for all tasks
        if (confirm := self.plan.confirm) is not None:
            keep_weights(self.path, step, kept)
        save_checkpoint(self.checkpoint, model.module, state, self.so_far, self.kept)
        if confirm is not None:
            drop_weights(self.path, set.union(*chosen_steps(self.paths, confirm)))
        for forward in self._forward:
            forward()

    def finish(self, model: Backbone) -> Run:
        """Give ``model`` the weights of the point that the run ends with, save the adapter, declare the run done."""
        plan, step = self.plan, self.so_far["best"]["step"]
        wait = self.processes.accelerator.wait_for_everyone
        if plan.keep.rule != "last":
            wait()  # for the main process, which may be writing it
            restore(model.module, load_tensors(self.path / BEST, _stored(model)))
            wait()  # for all who read it, before it goes
        if self.writers:
            columns = ["attack", "threat", "epsilon", "clean", "robust", "examples"]
            notes = {
                "objective": repr(plan.objective),
                "epsilon_schedule": repr(plan.epsilon) if plan.objective.attack else None,
                "freezing": repr(plan.freezing) if plan.freezing != NoFreezing() else None,
                "steps": step,
                "seed": plan.seed,
                "findings": self.so_far["findings"],
            }
            summary = {key: self.so_far[key] for key in ("train_seconds", "findings")}
            if self.stop is not None:
                notes["stopped"] = self.stop
                summary["stopped"] = {"step": self.step, "why": self.stop}
            if plan.together:  # with the whole head
                save_adapter(model, self.path / "adapter", notes=notes)
            for writer, task in zip(self.writers, plan.tasks, strict=True):
                stored = load_runs(writer.path)[0].points
                task_notes = {
                    "augmentation": repr(task.train.augmentation),
                    "results": stored[stored["step"] == step][columns].to_dict("records"),
                }
                alone = view(model, task.name) if plan.together else model
                save_adapter(alone, writer.path / "adapter", notes=notes | task_notes)
                if plan.confirm is not None:
                    (chosen,) = chosen_steps([writer.path], plan.confirm)
                    summary["confirmed"] = sorted(chosen)
                writer.finish(summary | {"kept_step": step})
            for file in (self.checkpoint, self.path / BEST):
                file.unlink(missing_ok=True)
        wait()
        return load_runs(self.paths[0])[0]


def places(path: Path, names: Iterable[str]) -> list[Path]:
    """The run directories in ``path`` of the tasks with these ``names``; without names ``path`` itself, of one task."""
    return [path / name for name in names] or [path]


def _stored(model: Backbone) -> dict[str, Tensor]:
    return stored_tensors_full_names(model.module, require_adaptation(model))


@contextlib.contextmanager
def recording(
    path: Path, plan: Plan, processes: Processes, *, resume: bool, sinks: Sequence[Openable]
) -> Iterator[Record]:
    """The run directory, which is this run's alone until training ends in whatever way.

    Raises:
        BlockingIOError: another process is at work there.
        ValueError: ``path`` is a URL; and see :class:`Record`.
    """
    check_local("out", path)
    with contextlib.ExitStack() as held:
        for place in dict.fromkeys((path, *places(path, plan.names))):
            processes.on_main(lambda place=place: held.enter_context(alone(place)))  # type: ignore[misc]
        record = Record(path, plan, processes, resume=resume, sinks=sinks)
        processes.announce(path)
        yield record

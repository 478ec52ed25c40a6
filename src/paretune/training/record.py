"""The run directory while it is trained in: its lock, log, rows, checkpoint, and the adapter at the end."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretune.backbones.backbone import Backbone
from paretune.evaluation.correctness import Scores
from paretune.evaluation.points import point
from paretune.frontiers.classes import name_of
from paretune.interchange.files import read_adapter, save_adapter
from paretune.interchange.placing import restore_stored, stored_tensors_full_names
from paretune.runs.examples import Examples, Pictures
from paretune.runs.lines import append_lines
from paretune.runs.lock import alone
from paretune.runs.progress import peak_memory_bytes
from paretune.runs.rows import BEST, CHECKPOINT, OTHERWISE
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
from paretune.training.ema import Average
from paretune.training.freezing import NoFreezing
from paretune.training.guards import beginning
from paretune.training.plan import Plan
from paretune.training.processes import Processes

log = logging.getLogger(__name__)


class Record:
    """What is kept of a run. The main process writes, all processes know how far it is.

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
        self.writer = processes.on_main(lambda: self._open(resume))  # None but in the main process
        self.done = (path / "DONE").exists()
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

    def _open(self, resume: bool) -> RunWriter:
        writer = RunWriter(self.path, self.plan.identity(), resume=resume)
        if writer.done:
            try:
                read_adapter(self.path / "adapter")
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{self.path} is complete, but its adapter is not: {error}; {OTHERWISE}"
                ) from None
        return writer

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
        found: list[float] = self.so_far["clean_select"]
        return found

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
        run = load_runs(self.path)[0]
        restore_stored(model.module, require_adaptation(model), read_adapter(self.path / "adapter")[1])
        if self.writer is not None:
            for file in (self.checkpoint, self.path / BEST):
                file.unlink(missing_ok=True)
            backfill(self.path, self.sinks)
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
        else:
            self.so_far["begun"] = beginning(model)
        self.processes.on_main(self._forget_later)

    def _forget_later(self) -> None:
        if self.writer is not None:
            self.writer.truncate_after(self.step)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around the steps: the log and the sinks are open, and time counts."""
        main = self.writer is not None
        with (
            append_lines(self.path / "log.jsonl" if main else None, self.step) as self._write,
            forwarding(self.path, self.sinks if main else ()) as self._forward,
        ):
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

    def is_best(self, step: int, select: Scores) -> bool:
        """Whether the run would end with this point, by the rule of the plan; decides when to wait for no better one."""
        keep, best = self.plan.keep, self.so_far["best"]
        score = keep.score(select.clean_accuracy, min(map(select.robust_accuracy, select.robust)))
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
        report: Scores,
        select: Scores,
        elsewhere: Mapping[str, Scores],
        model: Backbone,
        optimizer: torch.optim.Optimizer,
        average: Average,
        pictures: Pictures | None,
        *,
        best: bool,
    ) -> None:
        """Keep what the examples are, append the rows of an evaluation point and replace the checkpoint."""
        self.so_far["step"] = step
        if self.writer is not None:
            spent = {
                key: self.so_far[key]
                for key in ("train_seconds", "cpu_seconds", "attack_seconds", "attack_precision")
            }
            mixed = self.plan.mixed_precision
            common = spent | {
                "step": step,
                "epoch": step / self.plan.per_epoch,
                "gradient_evaluations": self.plan.gradient_evaluations(step, self.clean),
                "trainable_parameters": sum(p.numel() for p in trainable_parameters(model).values()),
                "peak_memory_bytes": peak_memory_bytes(),
                "precision": "fp32" if mixed == "no" else mixed,
                "versions": {name: version(name) for name in ("paretune", "torch", "timm", "accelerate")},
            }
            if self.stop is not None:
                common["stopped"] = self.stop
            rows, bits = point(report, select, elsewhere, common)
            assert report.labels is not None  # evaluate gives them
            names = tuple(name_of(label, report.names) for label in range(report.classes))
            if best:
                self.writer.keep(Examples(report.split, names, report.labels, pictures))
                if self.plan.keep.rule != "last":
                    # The points up to the next checkpoint are the same again if this one is never written.
                    kept = {name: t.detach() for name, t in _stored(model).items()} | average.tensors()
                    save_tensors(self.path / BEST, kept)
            self.writer.append(rows, bits)
            self.so_far["points"] = self.writer.points
            save_checkpoint(self.checkpoint, model.module, optimizer, self.so_far, self.kept)
            self._forward()

    def finish(self, model: Backbone) -> Run:
        """Give ``model`` the weights of the point that the run ends with, save the adapter, declare the run done."""
        plan, step = self.plan, self.so_far["best"]["step"]
        if plan.keep.rule != "last":
            restore(model.module, load_tensors(self.path / BEST, _stored(model)))
        if self.writer is not None:
            columns = ["attack", "threat", "epsilon", "clean", "robust", "examples"]
            stored = load_runs(self.path)[0].points
            notes = {
                "objective": repr(plan.objective),
                "epsilon_schedule": repr(plan.epsilon) if plan.objective.attack else None,
                "freezing": repr(plan.freezing) if plan.freezing != NoFreezing() else None,
                "augmentation": repr(plan.train.augmentation),
                "steps": step,
                "seed": plan.seed,
                "results": stored[stored["step"] == step][columns].to_dict("records"),
                "findings": self.so_far["findings"],
            }
            summary = {key: self.so_far[key] for key in ("train_seconds", "findings")}
            if self.stop is not None:
                notes["stopped"] = self.stop
                summary["stopped"] = {"step": self.step, "why": self.stop}
            save_adapter(model, self.path / "adapter", notes=notes)
            self.writer.finish(summary | {"kept_step": step})
            for file in (self.checkpoint, self.path / BEST):
                file.unlink(missing_ok=True)
        self.processes.accelerator.wait_for_everyone()
        return load_runs(self.path)[0]


def _stored(model: Backbone) -> dict[str, Tensor]:
    return stored_tensors_full_names(model.module, require_adaptation(model))


@contextlib.contextmanager
def recording(
    path: Path, plan: Plan, processes: Processes, *, resume: bool, sinks: Sequence[Openable]
) -> Iterator[Record]:
    """The run directory, which is this run's alone until training ends in whatever way.

    Raises:
        BlockingIOError: another process is at work there.
        ValueError: see :class:`Record`.
    """
    with contextlib.ExitStack() as held:
        processes.on_main(lambda: held.enter_context(alone(path)))
        record = Record(path, plan, processes, resume=resume, sinks=sinks)
        processes.announce(path)
        yield record

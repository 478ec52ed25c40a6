"""The one training loop: every strategy, objective and schedule is an argument to it."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from paretune._values import check_whole
from paretune.attacks import PGD, Attack, AttackCopy, attack_copy
from paretune.attacks.copy.options import CopyOptions, Engine
from paretune.attacks.copy.precision import Precision
from paretune.attacks.inputs import predicted
from paretune.backbones.backbone import Backbone, Task, fingerprint, note_task, tensor_digests
from paretune.data.images import ImageData, ImageSplit, check_same_classes
from paretune.evaluation.correctness import Bits, Scores, evaluate
from paretune.interchange.files import read_adapter, restore_stored, save_adapter
from paretune.runs.lines import append_lines
from paretune.runs.lock import alone
from paretune.runs.progress import Status, peak_memory_bytes, progress_bar
from paretune.runs.rows import CHECKPOINT, OTHERWISE
from paretune.runs.sinks.base import Openable, backfill, forwarding
from paretune.runs.store import Run, RunWriter, load_runs
from paretune.strategies.mechanics.adapting import require_adaptation, trainable_parameters
from paretune.training.checkpoints import load_checkpoint, save_checkpoint
from paretune.training.guards import (
    catastrophic_overfitting,
    check_finite,
    check_gradients,
    far_statistics,
    transfer_failure,
)
from paretune.training.objectives import Batch, Objective
from paretune.training.optimizers import AdamW
from paretune.training.schedules import EpsilonSchedule

log = logging.getLogger(__name__)
processes_log = log.getChild("processes")  # which the command line shows under a launcher

T = TypeVar("T")


def train(
    model: Backbone,
    data: ImageData,
    objective: Objective,
    *,
    out: str | Path,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    optimizer: AdamW | None = None,
    epsilon: EpsilonSchedule | None = None,
    attacks: Sequence[Attack] | None = None,
    eval_every: int | None = None,
    points: int | None = None,
    seed: int = 0,
    workers: int = 0,
    precision: Literal["auto"] | Precision = "fp32",
    engine: Engine = "auto",
    resume: bool = True,
    progress: bool | Callable[[Status], None] = True,
    sinks: Sequence[Openable] = (),
) -> Run:
    """Train the adapted ``model`` in place and write a run directory.

    At each evaluation point the model is measured on the select and the report split, one row per attack is appended, and a
    checkpoint replaces the last one. Killed at any moment and called again with the same arguments, the run goes on from
    there and ends with the same adapter and the same rows (on one kind of machine with the same number of threads
    and processes).

    Under ``torchrun --nproc-per-node N`` or ``accelerate launch --multi_gpu`` each process takes its share of every batch
    and of every evaluation (``accelerate launch --cpu`` alone starts one process, whatever ``--num_processes`` says; the
    log tells how many there are). Where batch norms adapt, each normalises its own share, and what they have seen
    becomes their mean before each evaluation: the running means are those of whole batches then, the running
    variances lack the spread between the shares.

    Args:
        model: from :func:`~paretune.adapt`.
        data: its train split is learnt; select and report are measured.
        objective: ``Natural()`` or ``AdversarialTraining(PGD(Linf(4/255), steps=7))``.
        out: the run directory.
        epochs: passes over the train split; give this or ``steps``.
        steps: optimiser steps.
        batch_size: images a step, over all processes; at most those of the train split. A last batch that is not full is
            left out.
        optimizer: defaults to ``AdamW()`` with the strategy's own learning rate.
        epsilon: strength of the training attack over time; defaults to the two-hinge schedule (0.25, 0.75).
        attacks: what to evaluate with; defaults to the objective's threat and PGD with 20 steps.
        eval_every: steps between evaluation points; an epoch when None. The last step is always one.
        points: how many evaluation points instead, spread evenly over the steps; at most one a step.
        seed: seeds batches and attacks. Seed the backbone's head and the strategy when making them.
        workers: processes that load images; 0 loads them here.
        precision: of the gradients of attacks, see :func:`~paretune.attacks.attack_copy`. What ``"auto"`` decides, which
            takes a measurement of time, is kept in the checkpoint, so that a resumed run goes on with it.
        engine: what takes the steps of attacks, see :func:`~paretune.attacks.attack_copy`. All but ``"compiled"`` give the
            same numbers, so only that belongs to the arguments of a run.
        resume: go on with the run in ``out``; False starts it over, also one with damaged files.
        progress: show a bar on the terminal, or call this with a :class:`~paretune.runs.progress.Status` after each step.
        sinks: who else receives the rows of the run, ``TensorBoard()`` say, see :mod:`paretune.runs.sinks`. One that fails
            is named in the log and changes nothing else.

    Returns:
        The run, as :func:`~paretune.runs.store.load_runs` reads it.

    Raises:
        ValueError: an argument is out of range, the model was trained for other classes than those of ``data``, ``out``
            holds a run with other arguments, or files of it were damaged.
            Or a trainable parameter got no gradient, see :func:`~paretune.training.guards.check_gradients`.
        BlockingIOError: another process is at work in ``out``.
        OSError: a file cannot be written; with space on the disk again, the same call goes on.
        TrainingDiverged: the loss became NaN; the last checkpoint is kept.
    """
    adaptation = require_adaptation(model)
    optimizer = optimizer or AdamW()
    epsilon = epsilon or EpsilonSchedule()
    attacks = _evaluation_attacks(objective) if attacks is None else tuple(attacks)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if batch_size > len(data.train):
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(data.train)} images of the train split; give at most that many"
        )
    per_epoch = len(data.train) // batch_size
    total = _total_steps(epochs, steps, per_epoch)
    measured_at, measured = _measured_at(total, per_epoch, eval_every, points)
    if not attacks:
        raise ValueError("attacks is empty; name at least one, e.g. attacks=[PGD(Linf(4/255), steps=20)]")
    if model.num_classes != len(data.classes):
        raise ValueError(
            f"the model has {model.num_classes} classes, data {data.name!r} has {len(data.classes)}"
        )
    check_same_classes(model.num_classes, model.classes, data.train.classes)
    options = CopyOptions(precision=precision, engine=engine)
    lr = optimizer.lr or adaptation.strategy.learning_rate
    attack = objective.attack

    # Without cpu=True, accelerate leaves the processes of torchrun each alone where there is no accelerator.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    rank, world = accelerator.process_index, accelerator.num_processes
    if batch_size % world:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {world} processes")
    path = Path(out)
    checkpoint = path / CHECKPOINT
    with contextlib.ExitStack() as held:  # the lock of the run, until training ends in whatever way

        def open_run() -> RunWriter:
            held.enter_context(alone(path))
            config = {
                "task": data.name,
                "strategy": repr(adaptation.strategy).removesuffix("()"),
                "strategy_config": repr(adaptation.strategy),
                "strategy_fields": adaptation.strategy.to_dict(),
                "seed": seed,
                "backbone": model.architecture,
                "image_size": model.image_size,
                "weights": fingerprint(model.architecture, tensor_digests(model.module.state_dict())),
                "data": data.fingerprint,
                "objective": objective.to_dict(),
                "epsilon_schedule": epsilon.to_dict(),
                "optimizer": optimizer.to_dict() | {"lr": lr},
                "steps": total,
                "batch_size": batch_size,
                **measured,
                "attacks": [each.to_dict() for each in attacks],
                "attack_precision": precision,
            }
            if engine == "compiled":  # which rounds otherwise; the others give the same bits
                config["attack_engine"] = engine
            opened = RunWriter(path, config, resume=resume)
            if opened.done:
                try:
                    read_adapter(path / "adapter")
                except (OSError, ValueError) as error:
                    raise ValueError(
                        f"{path} is complete, but its adapter is not: {error}; {OTHERWISE}"
                    ) from None
            return opened

        writer = _on_main(accelerator, open_run)
        processes_log.info("%s: process %d of %d", path, rank + 1, world)
        if world == 1 and "MASTER_ADDR" in os.environ:
            processes_log.warning(
                "%s: one process alone, although a launcher is about; to train on a CPU with N processes, use "
                "torchrun --nproc-per-node N",
                path,
            )
        described = {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "report": len(data.report),
            "loaded_with": data.loaded_with,
        }
        note_task(model, Task(data.train.classes, described))
        if (path / "DONE").exists():
            log.info("%s is complete; its adapter is loaded", path)
            run = load_runs(path)[0]
            restore_stored(model.module, adaptation, read_adapter(path / "adapter")[1])
            if writer is not None:
                checkpoint.unlink(missing_ok=True)
                backfill(path, sinks)
            return run

        # Convolutions train faster in this layout on a CPU; the values are the same.
        model.to(memory_format=torch.channels_last)
        parameters = list(trainable_parameters(model).values())
        wrapped, optimiser = accelerator.prepare(model, optimizer.build(parameters, lr))
        if (
            world > 1
        ):  # what each process sees counts, see _equalise_buffers; it is not to be overwritten at each step
            wrapped.broadcast_buffers = False
        so_far: dict[str, Any] = {
            "step": 0,
            "train_seconds": 0.0,
            "cpu_seconds": 0.0,
            "findings": [],
            "attack_precision": precision,
        }
        if checkpoint.exists():
            so_far = load_checkpoint(checkpoint, model.module, optimiser)
            log.info("%s goes on from step %d of %d", path, so_far["step"], total)

        def forget_later() -> None:
            if writer is not None:
                writer.truncate_after(so_far["step"])

        _on_main(accelerator, forget_later)
        chance = float(torch.bincount(data.select.labels).max()) / len(data.select)
        batches = _Batches(len(data.train), batch_size, so_far["step"], total, seed, rank, world)
        loader = DataLoader(data.train, sampler=batches, batch_size=None, num_workers=workers)
        copy = _FreshCopy(model, replace(options, precision=so_far["attack_precision"]))
        rows: list[dict[str, Any]] = []  # of the log, since the last evaluation point
        with (
            torch.random.fork_rng(),
            progress_bar(progress if rank == 0 else False, path.name, total) as show,
            append_lines(path / "log.jsonl" if writer is not None else None, so_far["step"]) as write_log,
            forwarding(path, sinks if writer is not None else ()) as forward,
        ):
            model.train()
            clock, cpu_clock = time.perf_counter(), time.process_time()
            first = so_far["step"] + 1
            for step, (images, labels) in enumerate(loader, start=first):
                at = (step - 0.5) / total
                strength = attack.threat.epsilon * epsilon.factor(at) if attack else 0.0
                for group in optimiser.param_groups:
                    group["lr"] = lr * optimizer.factor(at)
                images, labels = images.to(accelerator.device), labels.to(accelerator.device)
                if step == 1:
                    _note(path.name, so_far, far_statistics(model, images), step)
                step_seed = _mix(seed, step, rank)
                torch.manual_seed(step_seed)  # dropout and stochastic depth
                batch = Batch(images, labels, strength, step_seed)
                try:
                    loss, logits = objective.loss(wrapped, copy, batch)
                except ValueError as error:  # an attack refuses a model that answers NaN
                    check_finite(parameters, step, lr, error, _noted(so_far))
                    raise
                accelerator.backward(loss)
                if step == first:
                    unused = check_gradients(model, images)
                    _note(path.name, so_far, unused if step == 1 else None, step)
                norm = torch.nn.utils.clip_grad_norm_(parameters, optimizer.clip or float("inf"))
                check_finite([loss.detach(), norm], step, lr, findings=_noted(so_far))
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                copy.outdated = True
                accuracy = float((predicted(logits) == labels).float().mean())
                rows.append(
                    {"step": step, "epsilon": strength, "loss": float(loss.detach()), "accuracy": accuracy}
                )
                measuring = step in measured_at
                write_log(rows[-1], sync=measuring)  # before the checkpoint that counts on it
                status = Status(step, total, strength, float(loss.detach()), accuracy)

                if measuring:
                    so_far["step"] = step
                    so_far["train_seconds"] += time.perf_counter() - clock  # evaluation is not training
                    so_far["cpu_seconds"] += time.process_time() - cpu_clock
                    _equalise_buffers(accelerator, model)
                    try:
                        report = _evaluate(accelerator, model, data.report, attacks, seed, copy())
                        select = _evaluate(accelerator, model, data.select, attacks, seed, copy())
                    except ValueError as error:  # and so does a measurement
                        check_finite(parameters, step, lr, error, _noted(so_far))
                        raise
                    so_far["attack_precision"] = copy().precision
                    robust = max(select.robust_accuracy(each) for each in attacks)
                    # Only at full strength do the training and the evaluation attack compare.
                    attacked = [
                        row["accuracy"] for row in rows if attack and row["epsilon"] == attack.threat.epsilon
                    ]
                    findings = [transfer_failure(select.clean_accuracy, chance, len(data.select), strength)]
                    if attacked:
                        findings.append(catastrophic_overfitting(float(np.mean(attacked)), robust, chance))
                    for finding in findings:
                        _note(path.name, so_far, finding, step)
                    if writer is not None:
                        kept = ("train_seconds", "cpu_seconds", "attack_precision")
                        cost = {key: so_far[key] for key in kept} | _cost(model, accelerator)
                        _append(writer, report, select, {"step": step, "epoch": step / per_epoch} | cost)
                        so_far["points"] = writer.points
                        save_checkpoint(checkpoint, model.module, optimiser, so_far)
                        forward()
                    status = Status(
                        step, total, strength, status.loss, accuracy, select.clean_accuracy, robust
                    )
                    rows = []
                    clock, cpu_clock = time.perf_counter(), time.process_time()
                show(status)
        model.eval().to(memory_format=torch.contiguous_format)
        if writer is not None:
            columns = ["attack", "threat", "epsilon", "clean", "robust", "examples"]
            stored = load_runs(path)[0].points
            notes = {
                "objective": repr(objective),
                "epsilon_schedule": repr(epsilon) if attack else None,
                "steps": total,
                "seed": seed,
                "results": stored[stored["step"] == total][columns].to_dict("records"),
                "findings": so_far["findings"],
            }
            save_adapter(model, path / "adapter", notes=notes)
            writer.finish({"train_seconds": so_far["train_seconds"], "findings": so_far["findings"]})
            checkpoint.unlink(missing_ok=True)
        accelerator.wait_for_everyone()
        return load_runs(path)[0]


def _note(run: str, so_far: dict[str, Any], finding: str | None, step: int) -> None:
    """Log a finding, if there is one, and keep it."""
    if finding is not None:
        log.warning("%s, step %d: %s", run, step, finding)
        so_far["findings"].append({"step": step, "finding": finding})


def _noted(so_far: dict[str, Any]) -> list[str]:
    return [each["finding"] for each in so_far["findings"]]


class _FreshCopy:
    """The attack copy of ``model``, made at its first use and brought up to date when it is asked for."""

    def __init__(self, model: Backbone, options: CopyOptions) -> None:
        self.model, self.options = model, options
        self.copy: AttackCopy | None = None
        self.outdated = False

    def __call__(self) -> AttackCopy:
        if self.copy is None:
            self.copy = attack_copy(self.model, **vars(self.options))
        elif self.outdated:
            self.copy.refresh()
        self.outdated = False
        return self.copy


class _Batches:
    """Index lists of the batches after step ``start``; each epoch's order follows from (seed, epoch) alone."""

    def __init__(
        self, examples: int, batch_size: int, start: int, total: int, seed: int, rank: int, world: int
    ) -> None:
        self.examples, self.batch_size, self.start, self.total = (
            examples,
            batch_size,
            start,
            total,
        )
        self.seed, self.rank, self.world = seed, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.examples // self.batch_size
        order, current = np.arange(0), -1
        for step in range(self.start, self.total):
            epoch, number = divmod(step, per_epoch)
            if epoch != current:
                order, current = np.random.default_rng([self.seed, epoch]).permutation(self.examples), epoch
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.rank :: self.world].tolist()


def _evaluation_attacks(objective: Objective) -> tuple[Attack, ...]:
    if objective.attack is None:
        raise ValueError(
            f"{objective!r} names no threat; say what to evaluate with: attacks=[PGD(Linf(4/255), steps=20)]"
        )
    return (PGD(objective.attack.threat, steps=20),)


def _total_steps(epochs: float | None, steps: int | None, per_epoch: int) -> int:
    if (epochs is None) == (steps is None):
        raise ValueError(f"give either epochs or steps; got epochs={epochs}, steps={steps}")
    total = steps if steps is not None else round((epochs or 0) * per_epoch)
    if total < 1:
        raise ValueError(
            f"training needs at least one step; got epochs={epochs}, steps={steps}, {per_epoch} steps an epoch"
        )
    return total


def _measured_at(
    total: int, per_epoch: int, eval_every: int | None, points: int | None
) -> tuple[set[int], dict[str, int]]:
    """The steps after which the model is measured, and what the configuration of the run says of them."""
    if points is not None:
        if eval_every is not None:
            raise ValueError(
                f"give either eval_every or points; got eval_every={eval_every}, points={points}"
            )
        check_whole("points", points, 1, total, hint=": at most one a step of training")
        eval_every = -(-total // points)
        if -(-total // eval_every) < points:  # of 5 steps, 2 for 4 points make 3
            return {(2 * i * total + points) // (2 * points) for i in range(1, points + 1)}, {
                "points": points
            }
    eval_every = min(per_epoch if eval_every is None else eval_every, total)
    if eval_every < 1:
        raise ValueError(f"eval_every must be at least 1 step, got {eval_every}")
    return {*range(eval_every, total, eval_every), total}, {"eval_every": eval_every}


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _on_main(accelerator: Accelerator, do: Callable[[], T]) -> T | None:
    """Let the main process ``do``, the others wait; what it raises, all raise."""
    made, error = None, None
    if accelerator.is_main_process:
        try:
            made = do()
        except Exception as raised:
            error = raised
    (error,) = broadcast_object_list([error])
    if error is not None:
        raise error
    return made


def _equalise_buffers(accelerator: Accelerator, model: Backbone) -> None:
    """Where the buffers of the processes differ, take their mean, of whole numbers the main process's."""
    if accelerator.num_processes == 1:
        return
    for buffer in model.module.buffers():
        each = accelerator.gather(buffer.detach().contiguous().view(1, -1))  # (processes, numbers)
        differ = (each != each[0]).any(0)  # the others keep exactly what they are
        if differ.any():
            mean = each.double().mean(0).to(buffer.dtype) if buffer.is_floating_point() else each[0]
            with torch.no_grad():
                buffer.copy_(torch.where(differ, mean, each[0]).view_as(buffer))


def _evaluate(
    accelerator: Accelerator,
    model: Backbone,
    split: ImageSplit,
    attacks: Sequence[Attack],
    seed: int,
    victim: AttackCopy,
) -> Scores:
    world = accelerator.num_processes
    shard = (accelerator.process_index, world)
    scores = evaluate(model, split, attacks, seed=seed, shard=shard, victim=victim)
    if world == 1:
        return scores

    def add_up(bits: Bits) -> Bits:
        here = torch.from_numpy(bits.astype(np.int32)).to(accelerator.device)
        total: torch.Tensor = accelerator.reduce(here, "sum")
        return total.cpu().numpy().astype(bool)

    robust = {attack: add_up(bits) for attack, bits in scores.robust.items()}
    return Scores(add_up(scores.clean), robust, scores.split, scores.classes)


def _append(writer: RunWriter, report: Scores, select: Scores, common: dict[str, Any]) -> None:
    bits = {"report/clean": report.clean, "select/clean": select.clean}
    rows = []
    for number, attack in enumerate(report.robust):
        key = f"robust-{number}"
        bits |= {f"report/{key}": report.robust[attack], f"select/{key}": select.robust[attack]}
        rows.append(
            common
            | {
                "attack": report.ran(attack),
                "threat": type(attack.threat).__name__,
                "epsilon": attack.threat.epsilon,
                "clean": report.clean_accuracy,
                "robust": report.robust_accuracy(attack),
                "clean_select": select.clean_accuracy,
                "robust_select": select.robust_accuracy(attack),
                "examples": len(report.clean),
                "examples_select": len(select.clean),
                "report_id": report.split,
                "select_id": select.split,
                "bits_key": key,
            }
        )
    writer.append(rows, bits)


def _cost(model: Backbone, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "trainable_parameters": sum(p.numel() for p in trainable_parameters(model).values()),
        "peak_memory_bytes": peak_memory_bytes(),
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "versions": {name: version(name) for name in ("paretune", "torch", "timm", "accelerate")},
    }

"""The one training loop: every strategy, objective and schedule is an argument to it."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from paretune._lines import append_lines
from paretune.attacks import PGD, Attack, AttackCopy, attack_copy
from paretune.attacks.precision import Precision
from paretune.backbones import Backbone, fingerprint, tensor_digests
from paretune.checkpoints import load_checkpoint, save_checkpoint
from paretune.data import ImageData, ImageSplit
from paretune.evaluation import Bits, Scores, evaluate
from paretune.guards import catastrophic_overfitting, check_finite, transfer_failure
from paretune.interchange.files import read_adapter, restore_stored, save_adapter
from paretune.objectives import Batch, Objective
from paretune.optimizers import AdamW
from paretune.progress import Status, peak_memory_bytes, progress_bar
from paretune.results import Run, RunWriter, load_runs
from paretune.schedules import EpsilonSchedule
from paretune.sinks.base import Openable, backfill, forwarding
from paretune.strategies.adapting import require_adaptation, trainable_parameters

log = logging.getLogger(__name__)


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
    seed: int = 0,
    workers: int = 0,
    precision: Literal["auto"] | Precision = "fp32",
    resume: bool = True,
    progress: bool | Callable[[Status], None] = True,
    sinks: Sequence[Openable] = (),
) -> Run:
    """Train the adapted ``model`` in place and write a run directory.

    At each evaluation point the model is measured on the select and the report split, one row per attack is appended, and a
    checkpoint replaces the last one. Killed at any moment and called again with the same arguments, the run goes on from
    there and ends with the same adapter and the same rows (on one kind of machine with the same number of threads).
    Under ``accelerate launch`` each process takes its share of every batch.

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
        seed: seeds batches and attacks. Seed the backbone's head and the strategy when making them.
        workers: processes that load images; 0 loads them here.
        precision: of the gradients of attacks, see :func:`~paretune.attack_copy`. What ``"auto"`` decides, which takes a
            measurement of time, is kept in the checkpoint, so that a resumed run goes on with it.
        resume: go on with the run in ``out``; False starts it over.
        progress: show a bar on the terminal, or call this with a :class:`~paretune.progress.Status` after each step.
        sinks: who else receives the rows of the run, ``TensorBoard()`` say, see :mod:`paretune.sinks`. One that fails is
            named in the log and changes nothing else.

    Returns:
        The run, as :func:`~paretune.results.load_runs` reads it.

    Raises:
        ValueError: an argument is out of range, or ``out`` holds a run with other arguments.
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
    eval_every = min(per_epoch if eval_every is None else eval_every, total)
    if eval_every < 1:
        raise ValueError(f"eval_every must be at least 1 step, got {eval_every}")
    if not attacks:
        raise ValueError("attacks is empty; name at least one, e.g. attacks=[PGD(Linf(4/255), steps=20)]")
    if model.num_classes != len(data.classes):
        raise ValueError(
            f"the model has {model.num_classes} classes, data {data.name!r} has {len(data.classes)}"
        )
    lr = optimizer.lr or adaptation.strategy.learning_rate
    attack = objective.attack

    accelerator = Accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    if batch_size % world:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {world} processes")
    path = Path(out)
    checkpoint = path / "checkpoint.safetensors"
    writer = None
    if accelerator.is_main_process:
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
            "eval_every": eval_every,
            "attacks": [each.to_dict() for each in attacks],
            "attack_precision": precision,
        }
        writer = RunWriter(path, config)
        if not resume:
            writer.truncate_after(-1)
            checkpoint.unlink(missing_ok=True)
            (path / "sinks.json").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    if (path / "DONE").exists():
        log.info("%s is complete; its adapter is loaded", path)
        if writer is not None:
            backfill(path, sinks)
        restore_stored(model.module, adaptation, read_adapter(path / "adapter")[1])
        return load_runs(path)[0]

    # Convolutions train faster in this layout on a CPU; the values are the same.
    model.to(memory_format=torch.channels_last)
    parameters = list(trainable_parameters(model).values())
    wrapped, optimiser = accelerator.prepare(model, optimizer.build(parameters, lr))
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
    if writer is not None:
        writer.truncate_after(so_far["step"])
    chance = float(torch.bincount(data.select.labels).max()) / len(data.select)
    batches = _Batches(len(data.train), batch_size, so_far["step"], total, seed, rank, world)
    loader = DataLoader(data.train, sampler=batches, batch_size=None, num_workers=workers)
    copy = _FreshCopy(model, so_far["attack_precision"])
    rows: list[dict[str, Any]] = []  # of the log, since the last evaluation point
    with (
        torch.random.fork_rng(),
        progress_bar(progress if rank == 0 else False, path.name, total) as show,
        append_lines(path / "log.jsonl" if writer is not None else None, so_far["step"]) as write_log,
        forwarding(path, sinks if writer is not None else ()) as forward,
    ):
        model.train()
        clock, cpu_clock = time.perf_counter(), time.process_time()
        for step, (images, labels) in enumerate(loader, start=so_far["step"] + 1):
            at = (step - 0.5) / total
            strength = attack.threat.epsilon * epsilon.factor(at) if attack else 0.0
            for group in optimiser.param_groups:
                group["lr"] = lr * optimizer.factor(at)
            step_seed = _mix(seed, step, rank)
            torch.manual_seed(step_seed)  # dropout and stochastic depth
            images, labels = images.to(accelerator.device), labels.to(accelerator.device)
            batch = Batch(images, labels, strength, step_seed)
            try:
                loss, logits = objective.loss(wrapped, copy, batch)
            except ValueError as error:  # an attack refuses a model that answers NaN
                check_finite(parameters, step, lr, error)
                raise
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(parameters, optimizer.clip or float("inf"))
            check_finite([loss.detach(), norm], step, lr)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            copy.outdated = True
            accuracy = float((logits.argmax(1) == labels).float().mean())
            rows.append(
                {"step": step, "epsilon": strength, "loss": float(loss.detach()), "accuracy": accuracy}
            )
            write_log(rows[-1])
            status = Status(step, total, strength, float(loss.detach()), accuracy)

            if step % eval_every == 0 or step == total:
                so_far["step"] = step
                so_far["train_seconds"] += time.perf_counter() - clock  # evaluation is not training
                so_far["cpu_seconds"] += time.process_time() - cpu_clock
                report = _evaluate(accelerator, model, data.report, attacks, seed, copy())
                select = _evaluate(accelerator, model, data.select, attacks, seed, copy())
                so_far["attack_precision"] = copy().precision
                robust = max(select.robust_accuracy(each) for each in attacks)
                # Only at full strength do the training and the evaluation attack compare.
                attacked = [
                    row["accuracy"] for row in rows if attack and row["epsilon"] == attack.threat.epsilon
                ]
                findings = [transfer_failure(select.clean_accuracy, chance, len(data.select), strength)]
                if attacked:
                    findings.append(catastrophic_overfitting(float(np.mean(attacked)), robust, chance))
                for finding in filter(None, findings):
                    log.warning("%s, step %d: %s", path.name, step, finding)
                    so_far["findings"].append({"step": step, "finding": finding})
                if writer is not None:
                    kept = ("train_seconds", "cpu_seconds", "attack_precision")
                    cost = {key: so_far[key] for key in kept} | _cost(model, accelerator)
                    _append(writer, report, select, {"step": step, "epoch": step / per_epoch} | cost)
                    save_checkpoint(checkpoint, model.module, optimiser, so_far)
                    forward()
                status = Status(step, total, strength, status.loss, accuracy, select.clean_accuracy, robust)
                rows = []
                clock, cpu_clock = time.perf_counter(), time.process_time()
            show(status)
    model.eval().to(memory_format=torch.contiguous_format)
    if writer is not None:
        columns = ["attack", "threat", "epsilon", "clean", "robust", "examples"]
        notes = {
            "objective": repr(objective),
            "epsilon_schedule": repr(epsilon) if attack else None,
            "steps": total,
            "seed": seed,
            "data": {
                "name": data.name,
                "fingerprint": data.fingerprint,
                "train": len(data.train),
                "report": len(data.report),
            },
            "results": load_runs(path)[0].points.tail(len(attacks))[columns].to_dict("records"),
            "findings": so_far["findings"],
        }
        save_adapter(model, path / "adapter", classes=data.classes, notes=notes)
        writer.finish({"train_seconds": so_far["train_seconds"], "findings": so_far["findings"]})
        checkpoint.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return load_runs(path)[0]


class _FreshCopy:
    """The attack copy of ``model``, made at its first use and brought up to date when it is asked for."""

    def __init__(self, model: Backbone, precision: Literal["auto"] | Precision) -> None:
        self.model, self.precision = model, precision
        self.copy: AttackCopy | None = None
        self.outdated = False

    def __call__(self) -> AttackCopy:
        if self.copy is None:
            self.copy = attack_copy(self.model, precision=self.precision)
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


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


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

    return Scores(add_up(scores.clean), {a: add_up(bits) for a, bits in scores.robust.items()}, scores.split)


def _append(writer: RunWriter, report: Scores, select: Scores, common: dict[str, Any]) -> None:
    bits = {"report/clean": report.clean, "select/clean": select.clean}
    rows = []
    for number, attack in enumerate(report.robust):
        key = f"robust-{number}"
        bits |= {f"report/{key}": report.robust[attack], f"select/{key}": select.robust[attack]}
        rows.append(
            common
            | {
                "attack": repr(attack),
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

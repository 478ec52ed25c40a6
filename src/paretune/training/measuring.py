"""What the loop measures: each step's loss and accuracy, read from the device together, and evaluation points.

Between two readings of the numbers the loop itself never waits, nor does an attack of :mod:`paretune.attacks`: what its
checks look at is read with those numbers, and an error names the step it is from. What is done once is the exception: the
first step shows what the model is like, and graphs are compared before they are used. So are models, and attacks and
objectives of one's own, that look at values themselves, and the scaler of float16 gradients.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretune.attacks import AttackCopy, attack_copy
from paretune.attacks.copy.options import CopyOptions
from paretune.attacks.copy.precision import Precision
from paretune.attacks.masking import zero_gradients
from paretune.attacks.waiting import Check, deferring, runs_ahead
from paretune.backbones.backbone import Backbone
from paretune.backbones.features import without_head
from paretune.evaluation import speed
from paretune.evaluation.scores import Scores
from paretune.runs.progress import Status
from paretune.training.checkpoints import Kept
from paretune.training.ema import Average
from paretune.training.guards import (
    TrainingDiverged,
    catastrophic_overfitting,
    check_divergence,
    never_attacked,
    no_op,
    no_robustness,
    transfer_failure,
)
from paretune.training.learning import Learning, seed_of
from paretune.training.objectives import Term, TrainingBatch
from paretune.training.pictures import Album
from paretune.training.plan import Plan
from paretune.training.record import Measured, Record
from paretune.training.replaying import Replays
from paretune.training.tasks import shared_view

WAIT_EVERY = 10  # steps between two looks at the numbers of an accelerator; there is no waiting on a CPU


class FreshCopy:
    """The attack copies of ``model``, made at their first use and brought up to date when one is asked for."""

    def __init__(self, model: Backbone, options: CopyOptions) -> None:
        self.model, self.options = model, options
        self.copy: AttackCopy | None = None
        self.headless: AttackCopy | None = None
        self.outdated = False

    def __call__(self) -> AttackCopy:
        """The copy, up to date."""
        self._refresh()
        if self.copy is None:
            self.copy = attack_copy(self.model, **vars(self.options))
        return self.copy

    def features(self) -> AttackCopy:
        """The copy without the head, up to date; ``"auto"`` precision, which is decided by logits, is float32 here."""
        self._refresh()
        if self.headless is None:
            precision: Precision = "fp32" if self.options.precision == "auto" else self.options.precision
            options = replace(self.options, precision=precision)
            self.headless = attack_copy(without_head(self.model), **vars(options))
        return self.headless

    def _refresh(self) -> None:
        if self.outdated:
            for victim in (self.copy, self.headless):
                if victim is not None:
                    victim.refresh()
        self.outdated = False


@dataclass(frozen=True, eq=False)
class AtWork:
    """A task while it is learnt.

    Args:
        plan: what is learnt.
        model: of the task, which in a run of several is a view of what they share.
        called: the same as it trains: the model, or its shards.
        term: the objective.
        copy: what attacks search on.
        replays: what evaluation points try first.
    """

    plan: Learning
    model: Backbone
    called: Backbone
    term: Term
    copy: FreshCopy
    replays: Replays

    def batch(
        self, device: torch.device, loaded: Sequence[Tensor], step: int, epsilon: float
    ) -> TrainingBatch:
        """What was ``loaded`` for ``step``, on ``device``."""
        plan = self.plan
        return TrainingBatch.on(
            device,
            *loaded,
            epsilon=epsilon,
            seed=seed_of(plan.seed, step, plan.number),
            epoch=(step - 1) // plan.per_epoch,
            train=plan.train,
            task=plan.number,
            share=plan.share,
        )

    @property
    def kept(self) -> dict[str, Kept]:
        """What checkpoints hold of it, by name."""
        number = self.plan.number or ""
        return {f"objective{number}": self.term, f"replays{number}": self.replays}

    def attacked(self, batch: TrainingBatch) -> Any:
        """What the loss takes beside the batch."""
        return self.term.attacked(self.copy, batch)


def at_work(plan: Plan, model: Backbone, learner: Backbone) -> list[AtWork]:
    """The tasks of ``plan``, before the first step of ``model``; ``learner`` is what trains: the model or its shards."""
    tasks = []
    for task in plan.tasks:
        view = shared_view(model, task.name, plan.noted) if plan.together else model
        term = plan.objective.begin(view, task.data, plan.seed)
        called = view if plan.together else learner
        replays = Replays(reuse=plan.reuse)
        tasks.append(AtWork(task, view, called, term, FreshCopy(view, plan.options), replays))
    return tasks


@dataclass(frozen=True, eq=False)
class _Step:
    """What is kept of a step until it is read.

    Args:
        step: its number.
        epsilon: of its attack.
        numbers: loss, accuracy, norm of the gradient, and whether all checks are well.
        checks: of its attack, in their order.
        largest: of the weights it began with, which is NaN where one is; nothing where there are no checks.
    """

    step: int
    epsilon: float
    numbers: Tensor
    checks: list[Check]
    largest: Sequence[Tensor]


class Readings:
    """Loss, accuracy, norm of the gradient and checks of the steps, which stay on the device until they are read.

    Args:
        record: of the run; its log gets a line a step.
        device: of the model.
        parameters: that are trained.
    """

    def __init__(self, record: Record, device: torch.device, parameters: Sequence[Tensor]) -> None:
        self.record, self.device, self.parameters = record, device, parameters
        self.every = WAIT_EVERY if runs_ahead(device) else 1
        self._checks: list[Check] = []  # of the present step
        self._unread: list[_Step] = []
        self._attacks: list[list[Any]] = []  # events before and after the attacks of the unread steps
        self.since_point: list[Status] = []

    @contextlib.contextmanager
    def checking(self, step: int, batch: TrainingBatch) -> Iterator[None]:
        """Around the loss: what the checks of an attack look at is read with the numbers, on a CPU at once.

        Args:
            step: its number.
            batch: whose labels nobody need look at; those of further tasks are waited for.

        Raises:
            TrainingDiverged: an attack refuses the weights for what is NaN or infinite.
            ValueError: the error of a check, here or of an earlier step.
        """
        together: contextlib.AbstractContextManager[list[Check]] = contextlib.nullcontext([])
        if self.every > 1:
            together = deferring(batch.labels, (batch.lowest_class, batch.highest_class))
        try:
            with (
                naming_divergence(self.parameters, step, self.record.plan.lr, self.record.findings),
                together as self._checks,
            ):
                yield
        except (ValueError, TrainingDiverged):  # of which what nobody has read yet may be the reason
            self._settle()
            self._refuse(step, self._checks, self.parameters)
            raise

    @contextlib.contextmanager
    def attacking(self) -> Iterator[None]:
        """Around the attacks of a step, whose seconds are counted: of a GPU by its own clock, read when numbers are."""
        if self.device.type == "cuda":
            event = partial(torch.cuda.Event, enable_timing=True)
            self._attacks.append([event(), event()])
            self._attacks[-1][0].record()
            yield
            self._attacks[-1][1].record()
        else:
            began = time.perf_counter()
            yield
            self.record.so_far["attack_seconds"] += time.perf_counter() - began

    def add(
        self,
        step: int,
        parts: Sequence[tuple[TrainingBatch, Tensor, Tensor]],
        norm: Tensor,
    ) -> None:
        """Keep the numbers of a step, before it changes the weights: the loss and the logits of its parts."""
        loss = torch.stack([mean.float() * part.share for part, mean, _ in parts]).sum()
        right = [(logits.argmax(dim=1) == part.labels).float().sum() for part, _, logits in parts]
        accuracy = torch.stack(right).sum() / sum(len(part.labels) for part, _, _ in parts)
        # Where float16 overflows, the step is left out and the scale of the gradients lowered.
        if self.record.plan.mixed_precision == "fp16":
            norm = torch.where(norm.isfinite(), norm, 0.0)
        well, largest = loss.new_ones(()), []
        if self._checks:
            well = torch.stack([ok for ok, _ in self._checks]).all().float()
            largest = [torch.nn.utils.get_total_norm(self.parameters, float("inf"))]
        numbers = torch.stack([loss, accuracy, norm.detach().float(), well])
        self._unread.append(_Step(step, parts[0][0].epsilon, numbers, self._checks, largest))

    def read(self, step: int) -> list[Status]:
        """The steps since the last reading, if it is time for one at ``step``; the accelerator is waited for, once.

        Raises:
            TrainingDiverged: a loss or a gradient is NaN or infinite.
            ValueError: the error of a check, which names the step.
        """
        plan = self.record.plan
        point = step in plan.measured_at or (
            plan.stop_on_failure and step == plan.early
        )  # where a run may end
        if step % self.every and not point:
            return []
        read = self._settle()
        self.since_point += read
        lines = [
            {name: getattr(status, name) for name in ("step", "epsilon", "loss", "accuracy")}
            for status in read
        ]
        self.record.log(lines, sync=point)
        return read

    def _settle(self) -> list[Status]:
        unread, self._unread = self._unread, []
        read: list[Status] = []
        if not unread:
            return read
        plan, findings = self.record.plan, self.record.findings
        rows = torch.stack([reading.numbers for reading in unread]).cpu()
        self.record.so_far["attack_seconds"] += sum(a.elapsed_time(b) for a, b in self._attacks) / 1000
        self._attacks = []
        for reading, row in zip(unread, rows, strict=True):
            loss, accuracy, _, well = row.tolist()
            if not well:
                self._refuse(reading.step, reading.checks, reading.largest)
            check_divergence([row], reading.step, plan.lr, findings=findings)
            read.append(Status(reading.step, plan.total, reading.epsilon, loss, accuracy))
        return read

    def _refuse(self, step: int, checks: Sequence[Check], weights: Sequence[Tensor]) -> None:
        """Raise the error of the first check that is not well, as ``step`` would have with these ``weights``."""
        for ok, error in checks:
            if not ok:
                with naming_divergence(weights, step, self.record.plan.lr, self.record.findings):
                    raise ValueError(f"step {step}: {error()}")


def look(
    step: int,
    epsilon: float,
    record: Record,
    model: Backbone,
    tasks: Sequence[AtWork],
    parameters: Sequence[Tensor],
) -> None:
    """Measure clean accuracy on the select split after ``step``, if the schedule asks for it or the first tenth is over.

    The schedule gets the mean over the tasks.
    """
    plan = record.plan
    asked = plan.asks(step, record.clean)
    early = step == plan.early and epsilon > 0 and step not in plan.measured_at
    if not (asked or early):
        return
    record.stop_clock()
    record.processes.equalise_buffers(model)
    with naming_divergence(parameters, step, plan.lr, record.findings):
        seen = [record.processes.evaluate(task.model, task.plan.data.select, (), plan.seed) for task in tasks]
    if asked:
        record.clean.append(sum(scores.clean_accuracy for scores in seen) / len(seen))
    if early:
        for task, scores in zip(tasks, seen, strict=True):
            record.note(_no_transfer(task, scores, epsilon, plan), step, failure=True)
    record.start_clock()


def measure(
    last: Status,
    readings: Readings,
    model: Backbone,
    optimizer: torch.optim.Optimizer,
    tasks: Sequence[AtWork],
    average: Average,
) -> Status:
    """Measure each task on both splits and elsewhere; note what is wrong, keep the point, return ``last`` with accuracies.

    What is measured has the averaged weights, if there are such. Of several tasks the accuracies are means.
    """
    record, plan = readings.record, readings.record.plan
    record.stop_clock()
    record.processes.equalise_buffers(model)
    began = time.perf_counter()
    with average.used(), naming_divergence(readings.parameters, last.step, plan.lr, record.findings):
        scored = [_scored(task, record) for task in tasks]
        record.so_far["attack_precision"] = tasks[0].copy().precision
        vanishing = [
            record.processes.vanishing_gradients(task.copy(), task.plan.data.select, plan.seed)
            for task in tasks
        ]
    for task in tasks:
        task.copy.outdated = True
    selects = [scores.select for scores, _ in scored]
    if record.step == 0 and record.writers:  # once a run
        steps = record.so_far["train_seconds"] * plan.total / last.step
        taken = {
            attack: sum(report.seconds.get(attack, 0.0) for (report, *_), _ in scored)
            for attack in plan.attacks
        }
        why = speed.slow_training(steps, time.perf_counter() - began, len(plan.measured_at), taken, model)
        if why is not None:
            speed.log.info(why, extra={"once": True})
    clean = [select.clean_accuracy for select in selects]
    robust = [max(select.robust_accuracy(attack) for attack in plan.attacks) for select in selects]
    failing = partial(record.note, step=last.step, failure=True)
    for task, select in zip(tasks, selects, strict=True):
        failing(_no_transfer(task, select, last.epsilon, plan))
    # Only at full strength do the training and the evaluation attack compare; each task counts by its images in a batch.
    full = plan.objective.attack and plan.objective.attack.threat.epsilon
    attacked = [status.accuracy for status in readings.since_point if full and status.epsilon == full]
    if attacked:
        trained = record.processes.mean(float(np.mean(attacked)))
        mean = partial(np.average, weights=[task.plan.batch_size for task in tasks])
        chance = float(mean([task.plan.chance for task in tasks]))
        failing(catastrophic_overfitting(trained, float(mean(robust)), chance))
    for task, (zero, seen) in zip(tasks, vanishing, strict=True):
        failing(_of(task, zero_gradients(zero, seen), plan))
    if plan.adapts(last.step) and (begun := record.so_far.pop("begun", None)):
        failing(no_op(model, optimizer, begun, last.step, plan.lr))
    if plan.objective.attack and last.step == plan.total:
        record.note(never_attacked(plan.epsilon, last.epsilon), last.step)
        for task, select in zip(tasks, selects, strict=True):
            record.note(_not_robust(task, select, last.epsilon, plan), last.step)
    best = record.is_best(last.step, selects)
    shown = best and (plan.keep.rule != "last" or last.step == plan.total or record.stop is not None)
    measured = []
    for scores, album in scored:
        ran = scores.report.ran(plan.attacks[0])
        pictures = album.pictures(last.step, ran, record.processes) if shown else None
        measured.append(scores._replace(pictures=pictures))
    record.point(last.step, measured, model, optimizer, average, best=best)
    readings.since_point = []
    record.start_clock()
    return replace(last, clean=sum(clean) / len(clean), robust=sum(robust) / len(robust))


def _scored(task: AtWork, record: Record) -> tuple[Measured, Album]:
    """A task on the report split, the select split and elsewhere, and what it saw of the first."""
    plan, data = record.plan, task.plan.data
    album, measure = Album(data.report, plan.attacks[0]), partial(record.processes.evaluate, task.model)
    report, select = (
        measure(split, plan.attacks, plan.seed, task.copy(), seen, task.replays.of(name))
        for name, split, seen in (("report", data.report, album), ("select", data.select, None))
    )
    under = plan.attacks if plan.attack_elsewhere else ()
    elsewhere = {
        name: measure(
            split,
            under,
            plan.seed,
            task.copy(),
            candidates=task.replays.of(f"elsewhere-{number}") if under else None,
        )
        for number, (name, split) in enumerate(data.elsewhere.items())
    }
    return Measured(report, select, elsewhere, None), album


def _no_transfer(task: AtWork, select: Scores, epsilon: float, plan: Plan) -> str | None:
    failure = transfer_failure(select.clean_accuracy, task.plan.chance, len(select.clean), epsilon)
    return _of(task, failure, plan)


def _not_robust(task: AtWork, select: Scores, epsilon: float, plan: Plan) -> str | None:
    """Under the weakest of the attacks within the ball that training ended with, as more was not asked of it."""
    norm = type(plan.objective.attack and plan.objective.attack.threat)
    accuracies = [
        (select.robust_accuracy(attack), repr(attack))
        for attack in plan.attacks
        if isinstance(attack.threat, norm) and attack.threat.epsilon <= epsilon
    ]
    if not accuracies:
        return None
    robust, weakest = max(accuracies)
    failure = no_robustness(select.clean_accuracy, robust, task.plan.chance, len(select.clean), weakest)
    return _of(task, failure, plan)


def _of(task: AtWork, finding: str | None, plan: Plan) -> str | None:
    """What was found, with the task if there are several."""
    return f"{finding} (in the task {task.plan.name})" if finding and plan.together else finding


@contextlib.contextmanager
def naming_divergence(
    parameters: Sequence[Tensor], step: int, lr: float, findings: Iterable[str]
) -> Iterator[None]:
    """Where attacks and measurements refuse a model that answers NaN, say that its training diverged."""
    try:
        yield
    except ValueError as error:
        check_divergence(parameters, step, lr, error, findings)
        raise

"""What the loop measures: each step's loss and accuracy, read from the device together, and evaluation points."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from paretune.attacks import AttackCopy, attack_copy
from paretune.attacks.copy.options import CopyOptions
from paretune.backbones.backbone import Backbone
from paretune.data.images import ImageData
from paretune.runs.progress import Status
from paretune.training.guards import catastrophic_overfitting, check_divergence, transfer_failure
from paretune.training.objectives import TrainingBatch
from paretune.training.record import Record

WAIT_EVERY = 10  # steps between two looks at the numbers of an accelerator; there is no waiting on a CPU


class FreshCopy:
    """The attack copy of ``model``, made at its first use and brought up to date when it is asked for."""

    def __init__(self, model: Backbone, options: CopyOptions) -> None:
        self.model, self.options = model, options
        self.copy: AttackCopy | None = None
        self.outdated = False

    def __call__(self) -> AttackCopy:
        """The copy, up to date."""
        if self.copy is None:
            self.copy = attack_copy(self.model, **vars(self.options))
        elif self.outdated:
            self.copy.refresh()
        self.outdated = False
        return self.copy


class Readings:
    """Loss, accuracy and norm of the gradient of the steps, which stay on the device until they are read.

    Args:
        record: of the run; its log gets a line a step.
        device: of the model.
    """

    def __init__(self, record: Record, device: torch.device) -> None:
        self.record = record
        self.every = 1 if device.type == "cpu" else WAIT_EVERY
        self._unread: list[tuple[int, float, Tensor]] = []
        self.since_point: list[Status] = []

    def add(self, step: int, batch: TrainingBatch, loss: Tensor, logits: Tensor, norm: Tensor) -> None:
        """Keep the numbers of a step."""
        accuracy = (logits.detach().argmax(dim=1) == batch.labels).float().mean()
        numbers = torch.stack([loss.detach().float(), accuracy, norm.detach().float()])
        self._unread.append((step, batch.epsilon, numbers))

    def read(self, step: int) -> list[Status]:
        """The steps since the last reading, if it is time for one at ``step``; the accelerator is waited for, once.

        Raises:
            TrainingDiverged: a loss or a gradient is NaN or infinite.
        """
        plan, point = self.record.plan, step in self.record.plan.measured_at
        if step % self.every and not point:
            return []
        read = []
        numbers = torch.stack([numbers for _, _, numbers in self._unread]).cpu()
        for (at, epsilon, _), row in zip(self._unread, numbers, strict=True):
            check_divergence([row], at, plan.lr, findings=self.record.findings)
            loss, accuracy, _ = row.tolist()
            read.append(Status(at, plan.total, epsilon, loss, accuracy))
        self._unread = []
        self.since_point += read
        lines = [
            {name: getattr(status, name) for name in ("step", "epsilon", "loss", "accuracy")}
            for status in read
        ]
        self.record.log(lines, sync=point)
        return read


def measure(
    last: Status,
    readings: Readings,
    model: Backbone,
    optimizer: torch.optim.Optimizer,
    data: ImageData,
    copy: FreshCopy,
    parameters: Sequence[Tensor],
) -> Status:
    """Measure ``model`` on both splits, note what goes wrong, and keep the point; returns ``last`` with its accuracies."""
    record, plan = readings.record, readings.record.plan
    record.stop_clock()
    record.processes.equalise_buffers(model)
    with naming_divergence(parameters, last.step, plan.lr, record.findings):
        report, select = (
            record.processes.evaluate(model, split, plan.attacks, plan.seed, copy())
            for split in (data.report, data.select)
        )
    record.so_far["attack_precision"] = copy().precision
    clean, robust = select.clean_accuracy, max(select.robust_accuracy(attack) for attack in plan.attacks)
    record.note(transfer_failure(clean, plan.chance, len(data.select), last.epsilon), last.step)
    # Only at full strength do the training and the evaluation attack compare.
    full = plan.objective.attack and plan.objective.attack.threat.epsilon
    attacked = [status.accuracy for status in readings.since_point if full and status.epsilon == full]
    if attacked:
        record.note(catastrophic_overfitting(float(np.mean(attacked)), robust, plan.chance), last.step)
    record.point(last.step, report, select, model, optimizer)
    readings.since_point = []
    record.start_clock()
    return replace(last, clean=clean, robust=robust)


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

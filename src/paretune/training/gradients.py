"""The gradient of a step: what is attacked, the losses of all parts in their precision, and perturbed weights."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from paretune.backbones.backbone import Backbone
from paretune.training.measuring import AtWork
from paretune.training.objectives import TrainingBatch
from paretune.training.perturbing import worst_weights
from paretune.training.precision import MixedPrecision

Seen = list[tuple[TrainingBatch, Tensor, Tensor]]  # parts of a batch, with the loss and the logits of each


def gradients(
    parts: Sequence[TrainingBatch],
    tasks: Sequence[AtWork],
    model: Backbone,
    precision: MixedPrecision,
    *,
    awp: float | None,
    attacking: AbstractContextManager[object] | None = None,
    share: Callable[[], object] = lambda: None,
    drop: Callable[[], object] = lambda: None,
) -> Seen:
    """Add the gradient of a step to those that the parameters of ``model`` have.

    Args:
        parts: of the batches of the step, each of one task.
        tasks: all of them.
        model: what trains.
        precision: of the losses; gradients have its scale.
        awp: size of the perturbation of the weights, see :func:`~paretune.training.perturbing.worst_weights`.
        attacking: around the attacks.
        share: makes the gradients of this process those of all, once the last part has added to them.
        drop: takes away the gradients of what is frozen in this step.
    """
    with attacking or nullcontext():
        attacked = [tasks[part.task].attacked(part) for part in parts]

    def descend() -> Seen:
        seen = _descend(parts, tasks, attacked, precision)
        share()
        return seen

    with worst_weights(model, awp, descend, drop):
        return descend()


def _descend(
    parts: Sequence[TrainingBatch],
    tasks: Sequence[AtWork],
    attacked: Sequence[Any],
    precision: MixedPrecision,
) -> Seen:
    """Add the gradient of the losses of ``parts`` to what there is."""
    seen = []
    for part, attack_result in zip(parts, attacked, strict=True):
        task = tasks[part.task]
        with precision.autocast():
            loss, logits = task.term.loss(task.called, part, attack_result)
        assert logits is not None  # the objective learns
        torch.autograd.backward(precision.scaler.scale(loss * part.share))
        seen.append((part, loss.detach(), logits.detach()))
    return seen

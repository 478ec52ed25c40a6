"""What a batch minimises, and with which attack."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune._values import Value
from paretune.attacks import Attack, AttackCopy
from paretune.attacks.inputs import check_logits


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """What one optimizer step learns.

    Args:
        images: (batch, channels, height, width) in [0, 1].
        labels: (batch,).
        epsilon: strength of the attack at this step; 0 means no attack.
        seed: seeds the attack.
        highest_class: the largest label.
        lowest_class: the smallest.
    """

    images: Tensor
    labels: Tensor
    epsilon: float
    seed: int
    highest_class: int
    lowest_class: int = 0

    @classmethod
    def on(
        cls, device: torch.device, images: Tensor, labels: Tensor, epsilon: float, seed: int
    ) -> "TrainingBatch":
        """The batch on ``device``; what a check must know of the labels is read before they move there.

        Nothing waits for the device where the tensors are in pinned memory.
        """
        lowest, highest = int(labels.min()), int(labels.max())
        images, labels = (each.to(device, non_blocking=each.is_pinned()) for each in (images, labels))
        return cls(images, labels, epsilon, seed, highest, lowest)


@dataclass(frozen=True)
class Objective(Value, ABC):
    """A loss on a batch.

    ``attack`` is what the loss trains against, None if it does not; the training loop scales its epsilon and keeps
    an attack copy for it.
    """

    @property
    @abstractmethod
    def attack(self) -> Attack | None:
        """The attack at full epsilon."""

    @abstractmethod
    def loss(
        self, model: nn.Module, copy: Callable[[], AttackCopy], batch: TrainingBatch
    ) -> tuple[Tensor, Tensor]:
        """The mean loss, and the logits it was computed from, for the log.

        Args:
            model: in training mode.
            copy: gives the attack copy, brought up to date with the model.
            batch: what to learn.
        """


@dataclass(frozen=True)
class Natural(Objective):
    """Cross-entropy on clean images."""

    @property
    def attack(self) -> None:
        """There is none."""

    def loss(
        self, model: nn.Module, copy: Callable[[], AttackCopy], batch: TrainingBatch
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy."""
        return _cross_entropy(model(batch.images), batch)


@dataclass(frozen=True)
class AdversarialTraining(Objective):
    """Cross-entropy on attacked images (Madry et al. 2018, https://arxiv.org/abs/1706.06083, equation 2.1).

    Args:
        inner: the attack, for example ``PGD(Linf(4/255), steps=7)``. Its last iterate is trained on, whether or not it
            fools the model.

    Raises:
        ValueError: ``inner`` is targeted, or stops at the first success and so has no last iterate (FAB, Square,
            AutoAttack).
    """

    inner: Attack

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", self.inner.for_training())

    @property
    def attack(self) -> Attack:
        """The attack at full epsilon."""
        return self.inner

    def loss(
        self, model: nn.Module, copy: Callable[[], AttackCopy], batch: TrainingBatch
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy on the images that the attack at ``epsilon`` returns."""
        images = batch.images
        if batch.epsilon > 0:
            attack = self.inner.with_epsilon(batch.epsilon)
            images = attack(copy(), images, batch.labels, seed=batch.seed)
        return _cross_entropy(model(images), batch)


def _cross_entropy(logits: Tensor, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Its mean, and the logits."""
    check_logits(logits, len(batch.labels), batch.highest_class)
    return cross_entropy(logits.float(), batch.labels), logits.detach()

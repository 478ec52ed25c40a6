"""Adversarial training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune.attacks import Attack, AttackCopy
from paretune.training.objectives.base import Objective, TrainingBatch


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

    def attacked(self, copy: Callable[[], AttackCopy], batch: TrainingBatch) -> Tensor:
        """The images that the attack at the epsilon of the step returns."""
        return batch.attack(self.inner, copy)

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy on the attacked images."""
        logits = batch.checked(model(attacked))
        return cross_entropy(logits, batch.labels), logits.detach()

"""Training on the images as they are."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune.attacks import Attack
from paretune.training.objectives.base import Objective, TrainingBatch


@dataclass(frozen=True)
class Natural(Objective):
    """Cross-entropy on the images as they are."""

    @property
    def attack(self) -> Attack | None:
        """None."""
        return None

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy."""
        logits = batch.checked(model(batch.images))
        return cross_entropy(logits, batch.labels), logits.detach()

"""Training on the images as they are."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune.attacks import Attack
from paretune.training.objectives.base import Objective, TrainingBatch


@dataclass(frozen=True)
class Natural(Objective):
    """Cross-entropy on the images as they are.

    Args:
        label_smoothing: the share of the target that all classes have in equal parts, from 0 to below 1, as in
            ``torch.nn.CrossEntropyLoss``.

    Raises:
        ValueError: it is out of range.
    """

    _: KW_ONLY
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        self.set_number("label_smoothing", below=1)

    @property
    def attack(self) -> Attack | None:
        """None."""
        return None

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy."""
        logits = batch.checked(model(batch.images))
        losses = cross_entropy(logits, batch.labels, reduction="none", label_smoothing=self.label_smoothing)
        return batch.mean(losses), logits.detach()

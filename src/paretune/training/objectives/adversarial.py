"""Adversarial training."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune.training.objectives.attacked import Attacked
from paretune.training.objectives.base import TrainingBatch


@dataclass(frozen=True)
class AdversarialTraining(Attacked):
    """Cross-entropy on attacked images (Madry et al. 2018, https://arxiv.org/abs/1706.06083, equation 2.1).

    Args:
        inner: the attack, for example ``PGD(Linf(4/255), steps=7)``. Its last iterate is trained on, whether or not it
            fools the model. None takes that of the task, on the command line and in sweeps.
        label_smoothing: the share of the target that all classes have in equal parts, from 0 to below 1, as in
            ``torch.nn.CrossEntropyLoss``; the attack goes by the labels.

    Raises:
        TypeError: ``inner`` is no attack.
        ValueError: ``inner`` is targeted, or stops at the first success and so has no last iterate (FAB, Square,
            AutoAttack); or ``label_smoothing`` is out of range.
    """

    _: KW_ONLY
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_number("label_smoothing", below=1)

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy on the attacked images."""
        logits = batch.checked(model(attacked))
        losses = cross_entropy(logits, batch.labels, reduction="none", label_smoothing=self.label_smoothing)
        return batch.mean(losses), logits.detach()

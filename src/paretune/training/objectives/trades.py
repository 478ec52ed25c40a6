"""TRADES: accuracy on images as they are, and predictions that an attack does not change."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paretune.attacks.losses import kl_divergence
from paretune.training.objectives.attacked import Attacked
from paretune.training.objectives.base import TrainingBatch


@dataclass(frozen=True)
class TRADES(Attacked):
    """Cross-entropy on the images plus ``beta`` times the change of the prediction under attack (Zhang et al. 2019,
    "Theoretically Principled Trade-off between Robustness and Accuracy", https://arxiv.org/abs/1901.08573, equation 5).

    CE(f(x), y) + beta · KL(p(x) ‖ p(x')), where the attack maximises that same divergence from the prediction of the model
    in evaluation mode, and the gradient flows through both predictions, as in ``trades.py`` of
    https://github.com/yaodongyu/TRADES. There f(x) is computed for each term anew, here once: that is the same but where
    dropout draws other masks, and batch norms that adapt see the images once less. At epsilon 0 it is the cross-entropy.

    Args:
        inner: a :class:`~paretune.PGD`, which is made to maximise the divergence (``loss="kl"``) from the start that the
            paper's code takes. None takes that of the task, on the command line and in sweeps.
        beta: weight of the divergence (1/λ of the paper), at least 0.
        label_smoothing: of the cross-entropy; see :class:`~paretune.AdversarialTraining`.

    Raises:
        TypeError: ``inner`` is no attack.
        ValueError: ``inner`` is no untargeted PGD with a random start, or a number is out of range.
    """

    _: KW_ONLY
    beta: float = 6.0
    label_smoothing: float = 0.0

    maximises: ClassVar[Literal["ce", "kl", "l2"]] = "kl"
    passes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_number("beta")
        self.set_number("label_smoothing", below=1)

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """The logits are those of the attacked images."""
        logits = batch.checked(model(batch.images))
        losses = cross_entropy(logits, batch.labels, reduction="none", label_smoothing=self.label_smoothing)
        if attacked is not batch.images:
            clean, logits = logits, batch.checked(model(attacked))
            losses = losses + self.beta * kl_divergence(clean.log_softmax(1), logits.log_softmax(1))
        return batch.mean(losses), logits.detach()

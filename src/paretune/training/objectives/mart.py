"""MART: images that the model gets wrong count more."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from paretune.attacks.losses import kl_divergence
from paretune.training.objectives.attacked import Attacked
from paretune.training.objectives.base import TrainingBatch


@dataclass(frozen=True)
class MART(Attacked):
    """Boosted cross-entropy on attacked images plus ``beta`` times the change of the prediction, weighted by how wrong that
    was (Wang et al. 2020, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
    https://openreview.net/forum?id=rklOg6EFwS).

    −log p_y(x') − log(1 − max_{k≠y} p_k(x')) + beta · KL(p(x) ‖ p(x')) · (1 − p_y(x)), where the attack maximises the
    cross-entropy, and the gradient flows through every p. ``mart.py`` of https://github.com/YisenWang/MART adds constants
    (1.0001, 1.0000001 and 1e-12) to keep its logarithms finite; here they are computed from the logits, where they are, so
    that the loss is the paper's, and differs by more than 0.001 only where a prediction is almost certain. That code starts
    its attack from Gaussian noise of standard deviation 0.001; PGD starts at a random point of the ball here. At epsilon 0
    the divergence is zero.

    Args:
        inner: the attack, for example ``PGD(Linf(8/255), steps=10)``. None takes that of the task, on the command line and
            in sweeps.
        beta: weight of the divergence (λ of the paper, beta of its code), at least 0.

    Raises:
        TypeError: ``inner`` is no attack.
        ValueError: ``inner`` is targeted or stops at the first success, or ``beta`` is out of range.
    """

    _: KW_ONLY
    beta: float = 5.0

    passes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_number("beta")

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """The logits are those of the attacked images."""
        clean = None if attacked is batch.images else batch.checked(model(batch.images))
        logits = batch.checked(model(attacked))
        log_q, labels = logits.log_softmax(1), batch.labels[:, None]
        wrong = (
            log_q.detach().scatter(1, labels, -torch.inf).argmax(1, keepdim=True)
        )  # the likeliest wrong class
        others = log_q.scatter(1, wrong, -torch.inf).logsumexp(1)  # log(1 - its probability)
        losses = nll_loss(log_q, batch.labels, reduction="none") - others
        if clean is not None:
            log_p = clean.log_softmax(1)
            missed = 1 - log_p.gather(1, labels).squeeze(1).exp()
            losses = losses + self.beta * kl_divergence(log_p, log_q) * missed
        return batch.mean(losses), logits.detach()

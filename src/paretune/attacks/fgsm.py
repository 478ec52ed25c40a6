"""Single-step attacks, for cheap adversarial training.

Two classes, because they keep different promises: what :class:`FGSM` returns lies in the ball; what :class:`NFGSM`
returns does not, by design, so that it must not be used to measure robustness.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from paretune.attacks.base import Attack, Call
from paretune.attacks.threats import Linf


@dataclass(frozen=True)
class FGSM(Attack):
    """One step along the gradient of the cross-entropy (fast gradient sign method, for Linf).

    Args:
        start: ``"random"``, a random point of the ball, which is FGSM-RS (Wong et al. 2020, "Fast is better than free",
            https://arxiv.org/abs/2001.03994, algorithm 3); ``"image"``, the image itself (Goodfellow et al. 2015,
            https://arxiv.org/abs/1412.6572, section 4).
        step_size: length of the step in pixel units. None takes 1.25 · epsilon from a random start (Wong et al., section
            5.1) and epsilon from the image.

    Raises:
        TypeError: ``threat`` is not a threat.
        ValueError: a field is out of range.
    """

    _: KW_ONLY
    start: Literal["random", "image"] = "random"
    step_size: float | None = None

    lengths: ClassVar[tuple[str, ...]] = ("step_size",)

    @property
    def effective_step_size(self) -> float:
        """Length of the step in pixel units."""
        if self.step_size is not None:
            return self.step_size
        return (1.25 if self.start == "random" else 1.0) * self.threat.epsilon

    def perturb(self, call: Call) -> Tensor:
        """See :meth:`~paretune.attacks.base.Attack.perturb`; makes one forward and backward pass."""
        start = call.images
        if self.start == "random":
            start = self.threat.random_start(call.images, call.streams)
        gradient = _gradient(call, start)
        return self.threat.move(start.detach(), gradient, self.effective_step_size, call.images)


@dataclass(frozen=True)
class NFGSM(Attack):
    """Noise that may leave the ball, then one step from there, without a projection (de Jorge et al. 2022, "Make Some
    Noise", https://arxiv.org/abs/2202.01181, equation 4).

    The result lies in [0, 1] and within ``(noise + 1) · epsilon`` (with the default step) of the image, not within
    epsilon: train with it, and evaluate with another attack. ``NFGSM.in_ball`` is False, so that :func:`paretune.evaluate`
    refuses it.

    Args:
        threat: an :class:`~paretune.attacks.Linf`; the paper defines no other.
        noise: half width of the uniform noise, in units of epsilon (k of the paper, which takes 2).
        step_size: length of the step in pixel units; None takes epsilon.

    Raises:
        TypeError: ``threat`` is not Linf.
        ValueError: a field is out of range.
    """

    _: KW_ONLY
    noise: float = 2.0
    step_size: float | None = None

    in_ball: ClassVar[bool] = False
    lengths: ClassVar[tuple[str, ...]] = ("step_size",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.threat, Linf):
            raise TypeError(
                f"NFGSM: threat must be Linf, got {self.threat!r}; for other norms use FGSM or PGD"
            )
        if not (self.noise >= 0 and math.isfinite(self.noise)):
            raise ValueError(f"NFGSM: noise must be a finite number of at least 0, got {self.noise!r}")

    def perturb(self, call: Call) -> Tensor:
        """See :meth:`~paretune.attacks.base.Attack.perturb`, but the result may lie outside the ball; makes one forward
        and backward pass."""
        # Uniform, as a random change in Linf is.
        start = call.images + self.noise * call.streams.draw(0, call.images, self.threat.random_change)
        step_size = self.threat.epsilon if self.step_size is None else self.step_size
        return self.threat.step(start, _gradient(call, start), step_size).clamp_(0, 1)


def _gradient(call: Call, start: Tensor) -> Tensor:
    start = start.detach().requires_grad_()
    losses = F.cross_entropy(call.oracle.logits(start), call.goals, reduction="none")
    return call.oracle.gradient(losses, start)

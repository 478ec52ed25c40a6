"""How the trainable parameters move: AdamW, its learning rate over time and its learning rates over the network."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch

from paretune._values import Value, check_choices
from paretune.backbones.backbone import Backbone, inside
from paretune.strategies.mechanics.adapting import require_adaptation, trainable_parameters
from paretune.training.depth import depths

# The one-cycle schedule starts at 1/25 of the peak and ends at 1/10,000 of that, as torch's OneCycleLR does.
_FIRST, _LAST = 1 / 25, 1 / 250_000


@dataclass(frozen=True)
class AdamW(Value):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with a learning-rate schedule.

    Layer-wise decay is that of BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254) as timm has it, the one-cycle
    schedule that of Smith & Topin 2018 (https://arxiv.org/abs/1708.07120) as torch's ``OneCycleLR`` has it. How deep a
    parameter is, :func:`~paretune.training.depth.depths` says.

    Args:
        lr: peak learning rate; None takes the strategy's own ``learning_rate``.
        weight_decay: decoupled weight decay, on matrices and kernels only (not on biases, norms and scales).
        warmup: fraction of training in which the learning rate grows: from zero in a line; with ``"one-cycle"`` from 1/25 of
            the peak by half a cosine, of which torch's ``pct_start`` is 0.3.
        schedule: what follows: ``"cosine"``, half a cosine to zero; ``"linear"``, a line to zero; ``"constant"``, the peak;
            or ``"one-cycle"``, half a cosine to 1/250,000 of the peak.
        clip: largest norm of the gradient; None does not clip.
        layer_decay: factor on the learning rate for each residual block further from the head, in (0, 1]: of N blocks the
            last has it once, the first N times, the stem N + 1 times. 1 is none, 0.65 to 0.75 are usual for a ViT.
        head_lr: peak learning rate of the head; None takes that of the rest.
    """

    lr: float | None = None
    _: KW_ONLY
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Literal["cosine", "linear", "constant", "one-cycle"] = "cosine"
    clip: float | None = 1.0
    layer_decay: float = 1.0
    head_lr: float | None = None

    def __post_init__(self) -> None:
        for name, rate in (("lr", self.lr), ("head_lr", self.head_lr)):
            if rate is not None and not 0 < rate < 10:
                raise ValueError(f"{name} must be above 0 and below 10, got {rate}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction of training in [0, 1), got {self.warmup}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        check_choices(self)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0 or None, got {self.clip}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"layer_decay must be above 0 and at most 1, which is none, got {self.layer_decay}; to train "
                "nothing but the head, take LinearProbe()"
            )

    def build(self, model: Backbone, lr: float) -> torch.optim.Optimizer:
        """The torch optimizer of what the adapted ``model`` trains; the model alone decides the order of its parameters.

        The learning rate of each group is ``lr`` times the ``"factor"`` of :meth:`factors` that it carries.
        """
        trained = trainable_parameters(model)
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, factor in self.factors(model, lr).items():
            matrix = trained[name].ndim > 1
            decay = self.weight_decay if matrix else 0.0
            fresh = {"params": [], "lr": lr * factor, "factor": factor, "weight_decay": decay}
            groups.setdefault((factor, matrix), fresh)["params"].append(trained[name])
        return torch.optim.AdamW(list(groups.values()))

    def factors(self, model: Backbone, lr: float) -> dict[str, float]:
        """Factor on the learning rate ``lr`` for each parameter that the adapted ``model`` trains, by name.

        Raises:
            ValueError: ``layer_decay`` is not 1 and no residual block of the model is known.
        """
        trained, head = trainable_parameters(model), require_adaptation(model).head
        try:
            depth = depths(model) if self.layer_decay < 1 else dict.fromkeys(trained, 0)
        except ValueError as error:
            raise ValueError(f"layer_decay={self.layer_decay}: {error}, or take layer_decay=1.0") from error
        last = max(depth.values())
        of_head = 1.0 if self.head_lr is None else self.head_lr / lr
        return {
            name: of_head if inside(name, head) else self.layer_decay ** (last - depth[name])
            for name in trained
        }

    def factor(self, progress: float) -> float:
        """Factor on the learning rate when the fraction ``progress`` of training is done."""
        rising = progress < self.warmup
        part = progress / self.warmup if rising else (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "one-cycle":
            start, end = (_FIRST, 1.0) if rising else (1.0, _LAST)
            return end + (start - end) * _half_cosine(part)
        if rising:
            return part
        return {"cosine": _half_cosine(part), "linear": 1 - part, "constant": 1.0}[self.schedule]


def _half_cosine(part: float) -> float:
    """From 1 to 0 as ``part`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * part))

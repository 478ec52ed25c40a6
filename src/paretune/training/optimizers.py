"""How the trainable parameters move: AdamW with a linear warm-up and a cosine decay."""

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from paretune._values import Value


@dataclass(frozen=True)
class AdamW(Value):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) with a learning-rate schedule.

    Args:
        lr: peak learning rate; None takes the strategy's own ``learning_rate``.
        weight_decay: decoupled weight decay, on matrices and kernels only (not on biases, norms and scales).
        warmup: fraction of training with a linearly growing learning rate.
        decay: what follows: a half cosine to zero, or nothing.
        clip: largest norm of the gradient; None does not clip.
    """

    lr: float | None = None
    _: KW_ONLY
    weight_decay: float = 0.01
    warmup: float = 0.1
    decay: str = "cosine"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.lr is not None and not 0 < self.lr < 10:
            raise ValueError(f"lr must be above 0 and below 10, got {self.lr}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction of training in [0, 1), got {self.warmup}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.decay not in ("cosine", "none"):
            raise ValueError(f"decay must be 'cosine' or 'none', got {self.decay!r}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be above 0 or None, got {self.clip}")

    def build(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.AdamW:
        """The torch optimizer, with its learning rate at ``lr``."""
        chosen = list(parameters)
        groups = [
            {"params": [p for p in chosen if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)

    def factor(self, progress: float) -> float:
        """Factor on the learning rate when the fraction ``progress`` of training is done."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.decay == "none":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))

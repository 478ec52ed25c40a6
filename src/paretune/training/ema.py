"""The exponential moving average of what is trained, which is then what is measured and saved."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from paretune.backbones.backbone import Backbone
from paretune.interchange.placing import stored_tensors_full_names
from paretune.strategies.mechanics.adapting import require_adaptation


class Average:
    """a ← d · a + (1 − d) · w after each step, with d = min(decay, (1 + step) / (10 + step)).

    The average (Polyak & Juditsky 1992; of adversarially trained weights, Rebuffi et al. 2021,
    https://arxiv.org/abs/2103.01946, section 3.4) begins at the weights that training begins with, and the ramp, which is
    TensorFlow's for short runs, forgets them. Buffers that follow training are averaged too; whole numbers are copied.

    Args:
        model: adapted; its trained tensors are averaged.
        decay: in [0, 1); None averages nothing.
    """

    def __init__(self, model: Backbone, decay: float | None) -> None:
        self.decay = decay
        self._live: dict[str, Tensor] = {}
        if decay is not None:
            self._live = stored_tensors_full_names(model.module, require_adaptation(model))
        self._mean = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step``."""
        for name, live in self._live.items():
            if live.is_floating_point():
                assert self.decay is not None
                self._mean[name].lerp_(live, 1 - min(self.decay, (1 + step) / (10 + step)))
            else:
                self._mean[name].copy_(live)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """The model has the averages meanwhile."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages."""
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self._mean[name])
            self._mean[name].copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """The averages, by the names of the tensors."""
        return self._mean

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` has given."""
        for name, value in self._mean.items():
            value.copy_(tensors[name])

"""BitFit: only the biases train (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paretune.strategies.base import Anatomy, Strategy


@dataclass(frozen=True)
class BitFit(Strategy):
    """Train every bias, those of LayerNorm and BatchNorm (beta) included, and the head.

    A convolution without a bias is followed by a norm whose beta takes its place.
    """

    learning_rate: ClassVar[float] = 2e-2

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Nothing is added.

        Raises:
            ValueError: the model has no bias outside its head.
        """
        names = [name for name, _ in module.named_parameters() if is_bias(name)]
        if all(name.startswith(f"{anatomy.head}.") for name in names):
            raise ValueError(f"BitFit: {type(module).__name__} has no bias outside its head {anatomy.head!r}")
        return names


def is_bias(name: str) -> bool:
    """``bias``, and the ``q_bias`` and ``v_bias`` of models that keep them apart from the fused projection."""
    last = name.rpartition(".")[2]
    return last == "bias" or last.endswith("_bias")

"""BitFit: only the biases train (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paretune.backbones.backbone import inside
from paretune.strategies.mechanics.base import Anatomy, Strategy, base_parameters


@dataclass(frozen=True)
class BitFit(Strategy):
    """Train every bias, those of LayerNorm and BatchNorm (beta) included, and the head.

    A convolution without a bias is followed by a norm whose beta takes its place.
    """

    learning_rate: ClassVar[float] = 2e-2

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Nothing is added.

        Raises:
            ValueError: the model has no bias outside its head, or none in ``where``.
        """
        chosen = self.select(module, anatomy)
        names = {
            name: base for name, base in base_parameters(module).items() if is_bias(base) and chosen(base)
        }
        if all(inside(base, anatomy.head) for base in names.values()):
            part = "" if self.where == ("all",) else f" in where={self.where!r}"
            raise ValueError(
                f"BitFit: {type(module).__name__} has no bias outside its head {anatomy.head!r}{part}"
            )
        return list(names)


def is_bias(name: str) -> bool:
    """``bias``, the ``q_bias`` and ``v_bias`` of models that keep them apart, and torch's biases of keys and values."""
    last = name.rpartition(".")[2]
    return last in ("bias", "bias_k", "bias_v") or last.endswith("_bias")

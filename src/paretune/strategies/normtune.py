"""NormTune: only the scales and shifts of the normalisation layers train (Frankle et al. 2021, https://arxiv.org/abs/2003.00152)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paretune.backbones.backbone import inside
from paretune.strategies.mechanics.base import Anatomy, Strategy, base_layers, base_parameters


@dataclass(frozen=True)
class NormTune(Strategy):
    """Train gamma and beta of every LayerNorm, BatchNorm, GroupNorm and RMSNorm, and the head."""

    learning_rate: ClassVar[float] = 1e-2

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Nothing is added.

        Raises:
            ValueError: the model has no normalisation layer with parameters, or none in ``where``.
        """
        chosen = self.select(module, anatomy)
        norms = {name for name, _ in norm_layers(module)}
        names = [
            name
            for name, base in base_parameters(module).items()
            if base.rpartition(".")[0] in norms and chosen(base) and not inside(base, anatomy.head)
        ]
        if not names:
            part = "" if self.where == ("all",) else f" in where={self.where!r}"
            raise ValueError(f"NormTune: {type(module).__name__} has no norm with parameters{part}")
        return names


def norm_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers of ``module`` that normalise activations: by their kind, or by the name of their class.

    timm and transformers have RMS, affine-only and channels-first norms of their own, which share no base class.
    """
    kinds = nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm | nn.RMSNorm
    for name, part in base_layers(module):
        parameters = [parameter for _, parameter in part.named_parameters(recurse=False)]
        if parameters and (isinstance(part, kinds) or type(part).__name__.lower().endswith(_NORMS)):
            yield name, part


_NORMS = ("norm", "norm1d", "norm2d", "normact", "normact2d", "grn", "affine")

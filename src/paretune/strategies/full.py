"""Full fine-tuning: every parameter trains."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from torch import nn

from paretune.strategies.base import Anatomy, Strategy


@dataclass(frozen=True)
class FullFineTune(Strategy):
    """Train every parameter; batch-norm statistics follow training unless ``bn="frozen"``."""

    _: KW_ONLY
    bn: Literal["frozen", "adapt"] = "adapt"

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Nothing is added."""
        return [name for name, _ in module.named_parameters()]

"""Linear probing: only the head trains."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paretune.strategies.mechanics.base import Anatomy, Strategy


@dataclass(frozen=True)
class LinearProbe(Strategy):
    """Train the classifier head only."""

    learning_rate: ClassVar[float] = 1e-2
    why_everywhere: ClassVar[str] = "only the head trains"

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Nothing is added."""
        return []

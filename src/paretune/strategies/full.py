"""Full fine-tuning: every parameter trains."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paretune.strategies.base import Anatomy, Strategy


@dataclass(frozen=True)
class FullFineTune(Strategy):
    """Train every parameter.

    With ``bn="adapt"`` the attack sees running statistics while training uses those of the batch. Over a short
    adversarial fine-tuning the two differ so much that the model is not robust; hence ``"frozen"`` here too.
    """

    learning_rate: ClassVar[float] = 5e-4

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Nothing is added."""
        return [name for name, _ in module.named_parameters()]

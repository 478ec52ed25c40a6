"""Fine-tuning the model's own parameters: all of them, or those of a part."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from paretune.strategies.mechanics.base import Anatomy, Strategy, base_parameters


@dataclass(frozen=True)
class FullFineTune(Strategy):
    """Train every parameter, or with ``where`` those of a part: ``FullFineTune(where="last:2")``.

    With ``bn="adapt"`` the attack sees running statistics while training uses those of the batch. Over a short
    adversarial fine-tuning the two differ so much that the model is not robust; hence ``"frozen"`` here too.
    """

    learning_rate: ClassVar[float] = 5e-4

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Nothing is added."""
        chosen = self.select(module, anatomy)
        return [name for name, base in base_parameters(module).items() if chosen(base)]

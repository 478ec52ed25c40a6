"""Several strategies on one model: ``LoRA(rank=4) + BitFit()``."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from paretune.strategies.base import Anatomy, Strategy


@dataclass(frozen=True)
class Union(Strategy):
    """What each of ``strategies`` adds and trains; made by adding strategies up.

    A weight that several of them change is changed by one after the other, in this order.

    Args:
        strategies: two or more. They must agree on ``bn``, which is that of the union.
    """

    strategies: tuple[Strategy, ...]

    why_everywhere = "each strategy of a union has its own"

    def __post_init__(self) -> None:
        flat: list[Strategy] = []
        for part in self.strategies:
            if not isinstance(part, Strategy):
                raise TypeError(f"a union is made of strategies, got {part!r}")
            flat += part.strategies if isinstance(part, Union) else (part,)
        policies = {part.bn for part in flat} | ({self.bn} - {"frozen"})
        if len(flat) < 2:
            raise ValueError(f"a union needs two strategies or more, got {self.strategies!r}")
        if len(policies) > 1:
            raise ValueError(
                f"the strategies of {' + '.join(map(repr, flat))} must agree on bn; give each of them bn='adapt'"
            )
        alone = [part for part in flat if part.why_alone]
        if alone:
            raise ValueError(f"{type(alone[0]).__name__} cannot be part of a union: {alone[0].why_alone}")
        made: dict[str, Any] = {
            "strategies": tuple(flat),
            "bn": policies.pop(),
            # The most careful of the peak rates, because one optimiser moves them all.
            "learning_rate": min(part.learning_rate for part in flat),
            "why_not_mergeable": "; ".join(
                f"{type(part).__name__}: {part.why_not_mergeable}" for part in flat if part.why_not_mergeable
            ),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.strategies))

    @property
    def starts_at_base(self) -> bool:
        """Whether all of them do."""
        return all(part.starts_at_base for part in self.strategies)

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Install each in turn."""
        # By identity, because a later strategy may move a parameter that an earlier one trains to another name.
        chosen: set[nn.Parameter] = set()
        for part in self.strategies:
            names = part.install(module, anatomy)
            parameters = dict(module.named_parameters(remove_duplicate=False))
            chosen |= {parameters[name] for name in names}
        return [name for name, parameter in module.named_parameters() if parameter in chosen]

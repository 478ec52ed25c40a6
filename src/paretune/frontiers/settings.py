"""What is fixed before looking at frontiers, checked once for all that compare them."""

from dataclasses import dataclass
from typing import Literal

from paretune.frontiers.pareto import Reference, checked_reference, floored_reference
from paretune.frontiers.volumes import Corner


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of :func:`paretune.compare`, which describes them.

    Raises:
        ValueError: one is out of range.
    """

    reference: Reference = (0.0, 0.0)
    min_clean: float = 0.0
    min_robust: float = 0.0
    level: float = 0.95
    margin: float = 0.005
    interval: Literal["basic", "bca"] = "basic"
    resamples: int = 2000
    seed: int = 0
    by: Literal["area", "volume"] = "area"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", checked_reference(self.reference))
        floored_reference(self.reference, self.min_clean, self.min_robust)
        if not 0 < self.level < 1:
            hint = f"; did you mean {self.level / 100:g}?" if 1 < self.level < 100 else ""
            raise ValueError(f"level must lie in (0, 1), such as 0.95; got {self.level:g}{hint}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must lie in [0, 1), as a difference of areas; got {self.margin}")
        if self.interval not in ("basic", "bca"):
            raise ValueError(f"interval must be 'basic' or 'bca'; got {self.interval!r}")
        if self.by not in ("area", "volume"):
            raise ValueError(f"by must be 'area' or 'volume'; got {self.by!r}")
        if self.resamples < 100:
            raise ValueError(
                f"resamples must be at least 100 for an interval to mean something; got {self.resamples}"
            )

    @property
    def start(self) -> Reference:
        """Where areas start: at the reference or at the floors, whichever is higher."""
        return floored_reference(self.reference, self.min_clean, self.min_robust)

    @property
    def corner(self) -> Corner:
        """Where volumes start: where areas do, and for shifted accuracy, which is a clean one, at the clean reference."""
        return *self.start, self.reference[0]

"""How much a race may take: hours, or gradient evaluations."""

import math
import re
from dataclasses import dataclass
from typing import Self

from paretune._values import MOST, shown

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS = {
    **dict.fromkeys(("s", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "min", "minute", "minutes"), "min"),
    **dict.fromkeys(("h", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("gradient", "gradients", "gradient evaluations"), "gradients"),
}


@dataclass(frozen=True)
class Budget:
    """An amount and its unit; reads ``"2h"`` or ``"3e6 gradients"``.

    Args:
        amount: above 0.
        unit: s, min, h, d, or gradients: passes of one image forward and back.
    """

    amount: float
    unit: str

    @classmethod
    def read(cls, value: object) -> Self:
        """From a text.

        Raises:
            ValueError: it is no number with a unit, or out of range.
        """
        if isinstance(value, cls):
            return value
        match = re.fullmatch(r"\s*([\d_,.]+(?:e\+?\d+)?)\s*([a-z ]*?)\s*", str(value), re.IGNORECASE)
        unit = _UNITS.get(match[2].lower()) if match else None
        try:
            amount = float(match[1].replace(",", "").replace("_", "")) if match else math.nan
        except ValueError:
            amount = math.nan
        if unit is None or not 0 < amount <= MOST * MOST:
            raise ValueError(
                "budget must be a time or a number of gradient evaluations above 0, as in '2h', '90 min' or "
                f"'3e6 gradients'; got {shown(value)}"
            )
        return cls(amount, unit)

    def plain(self) -> str:
        """As :meth:`read` reads it."""
        return f"{self.amount:.15g} {self.unit}"

    @property
    def gradient_evaluations(self) -> float:
        """That are allowed; infinite for a time."""
        return self.amount if self.unit == "gradients" else math.inf

    @property
    def seconds(self) -> float:
        """That are allowed; infinite for gradient evaluations."""
        return math.inf if self.unit == "gradients" else self.amount * _SECONDS[self.unit]

    def allows(self, gradient_evaluations: float, seconds: float) -> bool:
        """Whether this much is within it."""
        return gradient_evaluations <= self.gradient_evaluations and seconds <= self.seconds

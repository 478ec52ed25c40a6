"""Which evaluation point a run ends with, and when to stop waiting for a better one."""

from dataclasses import dataclass
from typing import Literal

from paretune._values import check_choices, check_whole

Rule = Literal["last", "clean", "robust", "harmonic", "area"]


@dataclass(frozen=True)
class Keep:
    """The rule on the select split; the report split decides nothing.

    Args:
        rule: ``"last"`` ends with the last step. The others end with the point of the largest clean accuracy, robust
            accuracy (under the attack that it withstands least), harmonic mean of the two, or product of the two, which is
            the area that the point alone dominates; of equal points with the earliest.
        patience: stop after so many points without a better one; None goes on to the last step.

    Raises:
        ValueError: there is no such rule, or patience without a rule or below 1.
    """

    rule: Rule = "last"
    patience: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
            if self.rule == "last":
                raise ValueError(
                    f"patience={self.patience} needs a rule of what is better: keep='robust', or clean, harmonic, area"
                )

    def score(self, clean: float, robust: float) -> float:
        """What is to be large of a point with these accuracies on the select split."""
        if self.rule == "harmonic":
            return 2 * clean * robust / (clean + robust) if clean + robust else 0.0
        return {"last": 0.0, "clean": clean, "robust": robust, "area": clean * robust}[self.rule]

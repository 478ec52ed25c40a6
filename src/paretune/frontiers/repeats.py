"""What repeats, and nothing else, say about an area: Student's t over the areas of training seeds.

Three repeats are the least from which a spread is worth stating; with three, an interval is 2.5 standard deviations
to each side, and it is honest about that. Repeats show the luck of training. They do not show the luck of the test
examples, which they share.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from paretune.frontiers.deciding import SAME, Floats

LEAST_REPEATS = 3


@dataclass(frozen=True)
class Spread:
    """A mean, its standard error and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: float

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided interval at ``level``."""
        half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def turned(self) -> "Spread":
        """That of the difference the other way round."""
        return Spread(-self.mean, self.error, self.freedom)

    @property
    def p_value(self) -> float:
        """Two-sided, that the mean is zero."""
        return min(1.0, 2 * float(stdtr(self.freedom, -abs(self.mean) / self.error)))


def spread(areas: Floats) -> Spread | None:
    """Of repeats, shape ``(repeats,)``; None if they are fewer than three, or copies of one another."""
    if len(areas) < LEAST_REPEATS or float(np.ptp(areas)) < SAME:
        return None
    return Spread(float(areas.mean()), float(areas.std(ddof=1)) / math.sqrt(len(areas)), len(areas) - 1)


def gap(a: Mapping[str, float], b: Mapping[str, float]) -> Spread | None:
    """The difference ``a - b``; None if it cannot be said how sure it is.

    Repeats of the same names are pairs. Others are two samples of unequal variance: Welch, "The generalization of
    'Student's' problem" (Biometrika 1947, https://doi.org/10.1093/biomet/34.1-2.28), equation (28).

    Args:
        a: the area of each repeat, by its name.
        b: likewise.
    """
    if a.keys() == b.keys():
        return spread(np.array([a[name] - b[name] for name in a]))
    of_a, of_b = (spread(np.array([*of.values()])) for of in (a, b))
    if of_a is None or of_b is None:
        return None
    return combined(of_a.mean - of_b.mean, [(side.error, side.freedom) for side in (of_a, of_b)])


def combined(mean: float, sources: Iterable[tuple[float, float]]) -> Spread | None:
    """A mean whose error has several independent sources; None if there is no error at all.

    The degrees of freedom are those of Satterthwaite, "An approximate distribution of estimates of variance components"
    (Biometrics Bulletin 1946), equation (17).

    Args:
        mean: estimated.
        sources: the standard error from each, and its degrees of freedom.
    """
    parts = [(error**2, freedom) for error, freedom in sources]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return None
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return Spread(mean, math.sqrt(variance), freedom)


def pooled(spreads: Sequence[Spread]) -> Spread | None:
    """The mean of independent estimates, one of each task: what they say of these tasks, and of no others."""
    sources = [(estimate.error / len(spreads), estimate.freedom) for estimate in spreads]
    return combined(float(np.mean([estimate.mean for estimate in spreads])), sources)

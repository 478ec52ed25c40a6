"""Maximum mean discrepancy between data sets."""

import math
from dataclasses import dataclass, field

import numpy as np

from paretune.shifts.distances.base import Floats, Kind, Pair


@dataclass(frozen=True)
class MMD(Kind):
    """Squared maximum mean discrepancy with the kernel exp(−‖x − x'‖² / 2σ²): the unbiased estimate, which may be below 0.

    Gretton et al. 2012, "A Kernel Two-Sample Test", https://jmlr.org/papers/v13/gretton12a.html, equation 3. It is the one
    distance here whose expectation does not depend on how many examples there are, given σ.

    Args:
        bandwidth: σ. None takes the median distance between any two of the pooled examples (section 8 there), so that each
            pair of data sets has a kernel of its own; give one number to all where values are compared.
        on: "features" or "pixels".
    """

    bandwidth: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ValueError(f"bandwidth must be finite and above 0, or None; got {self.bandwidth}")

    @property
    def never_negative(self) -> bool:
        """An unbiased estimate of 0 is below it as often as above."""
        return False

    def of(self, pair: Pair) -> float:
        """The mean of the kernel within both samples, without the diagonal, less twice its mean between them."""
        within, between = [side.between for side in pair.sides], pair.between
        variance = self._variance(within[0], between, within[1])
        inside = 0.0
        for squared in within:
            n = len(squared)
            inside += (np.exp(-squared / (2 * variance)).sum() - n) / (n * (n - 1))
        return float(inside - 2 * np.exp(-between / (2 * variance)).mean())

    def _variance(self, *blocks: Floats) -> float:
        if self.bandwidth is not None:
            return self.bandwidth**2
        first, between, second = blocks
        pairs = [block[np.triu_indices(len(block), 1)] for block in (first, second)]
        variance = float(np.median(np.concatenate([*pairs, between.ravel()])))
        if variance == 0:
            raise ValueError(
                "half of all pairs of examples are the same, so that their median distance is 0; give a bandwidth"
            )
        return variance

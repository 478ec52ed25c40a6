"""The optimal-transport data set distance: transport of examples whose labels are distributions of features."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from paretune.shifts.distances.base import Floats, Kind, Pair
from paretune.shifts.distances.frechet import gaussian_distance
from paretune.shifts.distances.transport import entropic_cost, exact_cost


@dataclass(frozen=True)
class OTDD(Kind):
    """min over couplings of E ‖x − x'‖² + W₂²(α_y, α_y'), where α_y are the examples of class y.

    Alvarez-Melis and Fusi 2020, "Geometric Dataset Distances via Optimal Transport", https://arxiv.org/abs/2002.02923,
    equations 4 to 8 with p = 2. A label is the distribution of what it labels, so the two sets need no label in common, and
    how classes are numbered or called has no effect. The value is the transport cost, the p-th power of a metric.

    It is that of the paper, and not always that of its code, github.com/microsoft/otdd. There, half of the cost is reported;
    the inner distances that are called exact are entropic ones, at 0.1 in squared units of the data, and so is the outer
    one, debiased; classes of fewer than two examples are left out in silence; and examples beyond ``maxsamples`` are drawn
    without a seed for the outer problem, but all of them make the inner distances.

    Args:
        inner: W₂² between classes: "exact", by transport of their examples, or "gaussian", of Gaussians with their means and
            covariances, which is a lower bound of it up to the n − 1 in covariances (Gelbrich 1990).
        entropy: of the outer problem, as a fraction of the mean cost: Sinkhorn's iteration instead of the exact solution,
            which is at least as quick up to some thousands of examples.
        debiased: take off half of what each set is from itself with this entropy (Feydy et al. 2019,
            https://arxiv.org/abs/1810.08278, equation 3). Then equal sets are at 0, and values may be below.
        on: "features" or "pixels".
    """

    inner: Literal["exact", "gaussian"] = field(default="exact", kw_only=True)
    entropy: float = field(default=0.0, kw_only=True)
    debiased: bool = field(default=False, kw_only=True)

    labelled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.entropy < math.inf:
            raise ValueError(f"entropy must be finite and at least 0, which is exact; got {self.entropy}")
        if self.debiased and not self.entropy:
            raise ValueError("debiased=True takes off the bias of an entropy; give one, such as entropy=0.05")

    @property
    def never_negative(self) -> bool:
        """Unless debiased: the cost is not of negative type then."""
        return not self.debiased

    @property
    def least(self) -> int:
        """Two examples of each class for a covariance, one for a distribution."""
        return 2 if self.inner == "gaussian" else 1

    def of(self, pair: Pair) -> float:
        """The cost of the transport."""
        cost = self.cost(pair)
        if not self.entropy:
            return exact_cost(cost)
        strength = self.entropy * float(cost.mean())
        if strength == 0:  # all examples are one
            return 0.0
        value = entropic_cost(cost, strength)
        if self.debiased:
            value -= sum(entropic_cost(self.cost(side), strength) for side in pair.sides) / 2
        return value

    def cost(self, pair: Pair) -> Floats:
        """‖x − x'‖² + W₂²(α_y, α_y') of each example of the first sample and each of the second."""
        between = pair.between
        first, second = (side.between for side in pair.sides) if self.inner == "gaussian" else (None, None)
        labels = np.empty_like(between)
        for rows in pair.classes(pair.first):
            for columns in pair.classes(pair.second):
                block = np.ix_(rows, columns)
                if first is not None and second is not None:
                    inner = gaussian_distance(
                        first[np.ix_(rows, rows)], between[block], second[np.ix_(columns, columns)]
                    )
                else:
                    inner = exact_cost(between[block])
                labels[block] = inner
        return between + labels

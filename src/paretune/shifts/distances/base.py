"""What a kind of distance is: a number that follows from how far the examples of two samples are apart."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from paretune._values import Value, check_choices

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two samples: rows of one matrix of squared distances.

    Attributes:
        squared: ‖x_i − x_j‖² of all examples that either may take, shape (examples, examples).
        labels: Class of each of them, shape (examples,). What two data sets call 3 is one class or two without any effect.
        first: Rows of the first sample.
        second: Rows of the second sample.
    """

    squared: Floats
    labels: Rows
    first: Rows
    second: Rows

    @property
    def between(self) -> Floats:
        """Squared distances, shape (first, second)."""
        return self.squared[np.ix_(self.first, self.second)]

    @property
    def sides(self) -> "tuple[Pair, Pair]":
        """The first sample with itself, the second with itself."""
        return replace(self, second=self.first), replace(self, first=self.second)

    def classes(self, rows: Rows) -> list[Rows]:
        """Places in ``rows`` of the examples of each class that has any there, in the order of the labels."""
        labels = self.labels[rows]
        return [np.flatnonzero(labels == label) for label in np.unique(labels)]


@dataclass(frozen=True)
class Kind(Value, ABC):
    """A kind of distance between data sets.

    Attributes:
        on: What the examples are: features that enter the head of the backbone, or the pixels themselves.
        labelled: Whether labels count.
    """

    on: Literal["features", "pixels"] = field(default="features", kw_only=True)

    labelled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def least(self) -> int:
        """Examples that it needs of each class, or of each set where labels do not count."""
        return 2

    @property
    def never_negative(self) -> bool:
        """Whether its values cannot be below 0."""
        return True

    @abstractmethod
    def of(self, pair: Pair) -> float:
        """The distance between the two samples of ``pair``, squared as its paper has it."""


def squared_distances(examples: Floats) -> Floats:
    """‖x_i − x_j‖² of ``examples`` (examples, dimensions): symmetric, never negative, 0 on the diagonal."""
    centred = examples - examples.mean(0)  # the differences of large numbers are small ones then
    norms = np.einsum("ij,ij->i", centred, centred)
    squared: Floats = np.maximum(norms[:, None] + norms[None, :] - 2 * centred @ centred.T, 0)
    squared = (squared + squared.T) / 2
    np.fill_diagonal(squared, 0)
    return squared

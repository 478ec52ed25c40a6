"""Accuracy class by class, with intervals that hold for few examples, and their mean, the balanced accuracy.

A class has few examples, and under attack often none of them right, where a bootstrap would say that it is sure. Intervals
are therefore Wilson's, of the binomial: "Probable inference, the law of succession, and statistical inference" (JASA 1927,
https://doi.org/10.2307/2276774); coverage in Brown, Cai and DasGupta, "Interval estimation for a binomial proportion"
(Statistical Science 2001, https://doi.org/10.1214/ss/1009213286). Where seeds are averaged, or groups of examples stand or
fall together, they are as wide as if these were perfectly alike: the number of examples becomes (sum of s)^2 / (sum of s^2)
of the sizes s of the groups. From five seeds on, the luck of training is added.

Errors of several sources, and of the classes in the balanced accuracy, are combined by their squares on either side of the
estimate: Zou, Huang and Zhang, "A note on confidence interval estimation for a linear function of binomial proportions"
(CSDA 2009, https://doi.org/10.1016/j.csda.2008.09.033).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from paretune.frontiers.bootstrap import Bits
from paretune.frontiers.deciding import Floats
from paretune.frontiers.resampling import SEEDS_TO_RESAMPLE


@dataclass(frozen=True, eq=False)
class ByClass:
    """Accuracies of the classes that have examples, in the order of their labels; arrays of shape ``(classes,)``.

    Args:
        labels: of the classes.
        examples: of each class.
        accuracy: fraction right, averaged over seeds.
        low: end of the interval.
        high: end of the interval.
        balanced: mean accuracy of the classes: estimate, low, high.
        plain: accuracy over all examples: estimate, low, high.
    """

    labels: NDArray[np.int64]
    examples: NDArray[np.int64]
    accuracy: Floats
    low: Floats
    high: Floats
    balanced: tuple[float, float, float]
    plain: tuple[float, float, float]

    @property
    def worst_first(self) -> NDArray[np.intp]:
        """Positions by rising accuracy, ties in the order of labels."""
        return np.argsort(self.accuracy, kind="stable")


def by_class(
    labels: NDArray[np.int64], bits: Bits, *, level: float = 0.95, groups: ArrayLike | None = None
) -> ByClass:
    """Accuracy of each class, balanced and plain, with intervals.

    Args:
        labels: true classes, shape ``(examples,)``.
        bits: which examples each training seed gets right, shape ``(seeds, examples)``.
        level: of the intervals, in (0, 1).
        groups: a label for each example where some stand or fall together, shape ``(examples,)``.

    Raises:
        ValueError: there is no example, shapes differ, or ``level`` is out of range.

    >>> found = by_class(np.array([0, 0, 0, 1]), np.array([[True, True, False, False]]))
    >>> found.accuracy.round(3), round(found.balanced[0], 3), found.plain[0]
    (array([0.667, 0.   ]), 0.333, 0.5)
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), such as 0.95; got {level}")
    if labels.size == 0 or bits.ndim != 2 or bits.shape[1:] != labels.shape:
        raise ValueError(
            f"bits must have the shape (seeds, examples) and labels (examples,), with examples; got {bits.shape} and "
            f"{labels.shape}"
        )
    classes, members, examples = np.unique(labels, return_inverse=True, return_counts=True)
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    # The groups of each class: those of the first class, then those of the second, …
    parts, sizes_within = np.unique(members * len(labels) + units, return_counts=True)
    independent = examples**2 / np.bincount(parts // len(labels), sizes_within**2)
    combined = (
        np.linalg.norm if len(parts) == len(np.unique(units)) else np.sum
    )  # a group in two lets them err together

    per_seed = np.stack([np.bincount(members, row, len(classes)) for row in bits]) / examples
    accuracy = per_seed.mean(axis=0)
    low, high = wilson(accuracy, independent, level)
    below, above = (float(combined(side)) / len(classes) for side in (accuracy - low, high - accuracy))
    low, high = _with_luck(per_seed, accuracy - low, high - accuracy, level)
    whole = bits.mean(axis=1)
    plain = whole.mean()
    plain_low, plain_high = wilson(plain, alike(len(labels), groups), level)
    return ByClass(
        classes,
        examples,
        accuracy,
        low,
        high,
        balanced=_one(per_seed.mean(axis=1), below, above, level),
        plain=_one(whole, plain - plain_low, plain_high - plain, level),
    )


def alike(examples: int, groups: ArrayLike | None) -> float:
    """As how many independent ones so many examples count, of groups that stand or fall together."""
    if groups is None:
        return float(examples)
    return float(examples**2 / (np.unique(groups, return_counts=True)[1] ** 2).sum())


def wilson(accuracy: ArrayLike, examples: ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Ends of the score interval: the p with (accuracy - p)^2 = z^2 p (1 - p) / examples."""
    p, n, z = np.asarray(accuracy, float), np.asarray(examples, float), float(ndtri((1 + level) / 2))
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.minimum(p, np.maximum(0.0, middle - half)), np.maximum(p, np.minimum(1.0, middle + half))


def name_of(label: int, names: tuple[str, ...] | None) -> str:
    """What a class is called: its name, or its label where it has none."""
    return str(label) if names is None else names[label]


def _with_luck(per_seed: Floats, below: ArrayLike, above: ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Ends of intervals, (classes,), with the error of the mean over enough seeds, (seeds, classes), beside other errors."""
    mean, trained = per_seed.mean(axis=0), luck(per_seed, level)
    low, high = mean - np.hypot(below, trained), mean + np.hypot(above, trained)
    return np.maximum(0.0, low), np.minimum(1.0, high)


def luck(per_seed: Floats, level: float) -> Floats:
    """How far the mean over seeds, of (seeds, classes), may err through the luck of training; 0 for fewer than five."""
    seeds = len(per_seed)
    if seeds < SEEDS_TO_RESAMPLE:
        return np.zeros(per_seed.shape[1])
    error: Floats = stdtrit(seeds - 1, (1 + level) / 2) * per_seed.std(axis=0, ddof=1) / np.sqrt(seeds)
    return error


def _one(per_seed: Floats, below: float, above: float, level: float) -> tuple[float, float, float]:
    low, high = _with_luck(per_seed[:, None], below, above, level)
    return float(per_seed.mean()), float(low[0]), float(high[0])

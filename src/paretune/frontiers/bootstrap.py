"""Resampling of examples, in matrix products.

All estimates are functions of accuracies, and an accuracy is the mean of a vector of correctness bits. A
bootstrap resample of ``N`` examples is a vector of counts that sums to ``N``, so ``B`` resamples of ``K``
accuracies are one product of a ``(B, N)`` matrix with an ``(N, K)`` one. Sharing the counts between
everything that is compared makes the comparison paired. Where examples come in groups that stand or fall
together (a patient, a video), groups are drawn instead of examples.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from paretune.frontiers.deciding import Floats

Bits = NDArray[np.bool_]

# Counts held at once: 64 MB as float32, in which all counts and their sums up to 2^24 are exact.
_BLOCK = 2**24


@dataclass(frozen=True, eq=False)
class Units:
    """What is drawn with replacement: the examples of a split, or groups of them.

    Args:
        sizes: examples in each unit, shape ``(units,)``.
        order: the examples sorted by unit, shape ``(examples,)``; ``None`` where each is its own unit.
    """

    sizes: NDArray[np.float32]
    order: NDArray[np.intp] | None = None

    @classmethod
    def of(cls, examples: int, groups: ArrayLike | None = None) -> "Units":
        """Each example by itself, or the groups of equal labels; ``groups`` has the shape ``(examples,)``."""
        if groups is None:
            return cls(np.ones(examples, dtype=np.float32))
        _, label, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
        return cls(sizes.astype(np.float32), np.argsort(label, kind="stable"))

    def __len__(self) -> int:
        return len(self.sizes)

    def right(self, bits: Bits | NDArray[np.float32]) -> NDArray[np.float32]:
        """How many examples of each unit are right: ``(points, units)`` from ``(points, examples)``."""
        if self.order is None:
            return bits.astype(np.float32)
        starts = np.concatenate(([0], np.cumsum(self.sizes[:-1]))).astype(np.intp)
        return np.add.reduceat(bits[:, self.order].astype(np.float32), starts, axis=1)

    def means(self, counts: NDArray[np.float32], bits: Bits) -> Floats:
        """Accuracies of shape ``(block, points)`` from bits of shape ``(points, examples)``."""
        right = (counts @ self.right(bits).T).astype(np.float64)
        means: Floats = right / (counts @ self.sizes).astype(np.float64)[:, None]
        return means


def resample_counts(
    units: int, resamples: int, seed: int | tuple[int, ...], beside: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Multinomial counts, in blocks of shape ``(block, units)``; each row sums to ``units``.

    Args:
        units: that are drawn.
        resamples: rows of all blocks.
        seed: of the draws.
        beside: other units that are drawn with these, which share the memory of a block.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _BLOCK // (units + beside)))
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        counts = np.empty((block, units), dtype=np.float32)
        for row in counts:  # one at a time stays in the cache
            row[:] = np.bincount(rng.integers(0, units, size=units), minlength=units)
        yield counts


def seed_error(areas: Floats) -> float:
    """The standard error of a mean area that the spread between training seeds makes.

    The spread holds some of the noise of the examples too, which is resampled besides: it counts twice, on the
    safe side; taking it out would leave the difference of two noisy variances.

    Args:
        areas: of at least two seeds, shape ``(seeds,)``.
    """
    return float(areas.std(ddof=1) / np.sqrt(len(areas)))


def seed_luck(error: float, seeds: int, resamples: int, seed: int, name: str) -> Floats:
    """Draws of how the mean area errs through the luck of ``seeds`` trainings, independent between names.

    The mean of ``S`` seeds errs by a Student's t with ``S - 1`` degrees of freedom times its standard error.
    Drawing ``S`` of ``S`` seeds with replacement instead would give intervals that are lumpy and, for so few,
    too narrow: Hesterberg, "What teachers should know about the bootstrap" (American Statistician 2015,
    https://doi.org/10.1080/00031305.2015.1089789, section 3.3).
    """
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    luck: Floats = error * rng.standard_t(seeds - 1, size=resamples)
    return luck


def expanded(resampled: Floats, units: int, level: float) -> Floats:
    """Resamples spread so that intervals of few units are not too narrow.

    A bootstrap of ``n`` units understates the variance by ``(n - 1) / n`` and has the tails of a normal where
    an estimated variance calls for Student's t. Hesterberg (2015, as in :func:`seed_luck`), section 4.5, makes
    up for both in the quantiles; spreading the resamples at the level of the interval does the same.
    """
    upper = (1 + level) / 2
    factor = np.sqrt(units / (units - 1)) * stdtrit(units - 1, upper) / ndtri(upper)
    centre = resampled.mean()
    wider: Floats = centre + factor * (resampled - centre)
    return wider


def basic_interval(estimate: float, resampled: Floats, level: float) -> tuple[float, float]:
    """The basic, or reverse percentile, interval: quantiles of the resampled errors, turned round the
    estimate.

    Davison & Hinkley, "Bootstrap Methods and their Application" (1997), equation (5.6). The plain percentile
    interval would count the bias of a maximum twice.
    """
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(2 * estimate - high), float(2 * estimate - low)


def bca_interval(
    estimate: float, resampled: Floats, level: float, acceleration: float
) -> tuple[float, float]:
    """The bias-corrected and accelerated interval.

    Efron, "Better bootstrap confidence intervals" (JASA 1987), equation (3.9): quantiles of ``resampled`` at
    levels moved by the median bias and by the skewness, ``acceleration``.
    """
    bias = float(ndtri(_share(resampled, estimate)))
    z = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(resampled, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def acceleration(influence: Floats) -> float:
    """A sixth of the skewness of the influence of each unit on the estimate: equation (6.6) of Efron (1987)."""
    spread = float((influence**2).sum()) ** 1.5
    return float((influence**3).sum()) / (6 * spread) if spread > 0 else 0.0


def _share(resampled: Floats, value: float) -> float:
    """The share of resamples below, ties half and never quite 0 or 1."""
    below = np.count_nonzero(resampled < value) + np.count_nonzero(resampled == value) / 2
    return float((below + 0.5) / (len(resampled) + 1))

"""Resampling of examples, in matrix products.

All estimates are functions of accuracies, and an accuracy is the mean of a vector of correctness bits. A
bootstrap resample of ``N`` examples is a vector of counts that sums to ``N``, so ``B`` resamples of ``K``
accuracies are one product of a ``(B, N)`` matrix with an ``(N, K)`` one. Sharing the counts between
everything that is compared makes the comparison paired.
"""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK = (
    2**24
)  # counts held at once: 64 MB as float32, in which all counts and their sums up to 2^24 are exact


def resample_counts(examples: int, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Multinomial counts, in blocks of shape ``(block, examples)``; each row sums to ``examples``."""
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _BLOCK // examples))
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        drawn = rng.integers(0, examples, size=(block, examples))
        drawn += np.arange(block)[:, None] * examples
        yield (
            np.bincount(drawn.ravel(), minlength=block * examples).reshape(block, examples).astype(np.float32)
        )


def resampled_means(counts: NDArray[np.float32], bits: NDArray[np.bool_]) -> Floats:
    """Accuracies of shape ``(block, points)`` from bits of shape ``(points, examples)``."""
    right: NDArray[np.float32] = counts @ bits.T.astype(np.float32)
    means: Floats = right.astype(np.float64) / bits.shape[1]
    return means


def pool_seeds(areas: Floats, *, resample: bool, seed: int, name: str) -> Floats:
    """Average over training seeds the areas of shape ``(seeds, resamples)``.

    With ``resample`` the seeds are drawn again too, independently of those of other names. Drawing ``S`` of
    ``S`` understates their variance by ``(S - 1) / S``, so the drawn weights are spread by the root of the
    inverse.
    """
    seeds, resamples = areas.shape
    if not resample:
        pooled: Floats = areas.mean(axis=0)
        return pooled
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    weights = 1 / seeds + (weights - 1 / seeds) * np.sqrt(seeds / (seeds - 1))
    drawn: Floats = np.einsum("bs,sb->b", weights, areas)
    return drawn


def basic_interval(estimate: float, resampled: Floats, level: float) -> tuple[float, float]:
    """The basic, or reverse percentile, interval: quantiles of the resampled errors, turned round the
    estimate.

    Davison & Hinkley, "Bootstrap Methods and their Application" (1997), equation (5.6). The plain percentile
    interval would count the bias of a maximum twice.
    """
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(2 * estimate - high), float(2 * estimate - low)


def p_value(difference: float, resampled: Floats) -> float:
    """The two-sided p-value of "no difference" of the basic interval; at least 2 / (resamples + 1)."""
    turned = 2 * difference - resampled
    tail = min(np.count_nonzero(turned <= 0), np.count_nonzero(turned >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(resampled) + 1)))


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values so that the chance of any false rejection among them is bounded.

    Holm, "A simple sequentially rejective multiple test procedure" (Scand. J. Statist. 1979).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return [float(value) for value in adjusted]

"""The Fréchet distance between Gaussians, of whole data sets (FID) and of classes, from squared distances alone."""

from dataclasses import dataclass

import numpy as np

from paretune.shifts.distances.base import Floats, Kind, Pair


@dataclass(frozen=True)
class Frechet(Kind):
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½): the squared 2-Wasserstein distance, were both sets Gaussian.

    Dowson and Landau 1982, as the Fréchet inception distance uses it (Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500, equation 6), here on the features of the backbone that is given. Covariances are
    those of the samples, with n − 1. With fewer examples than features they miss most of what they estimate, and the value
    is far too high.

    Args:
        on: "features" or "pixels".
    """

    def of(self, pair: Pair) -> float:
        """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½)."""
        first, second = pair.sides
        return gaussian_distance(first.between, pair.between, second.between)


def gaussian_distance(first: Floats, between: Floats, second: Floats) -> float:
    """Squared 2-Wasserstein distance between Gaussians with the moments of two samples of at least two examples.

    The trace of the square root is the nuclear norm of Σ^½ Σ'^½, which is that of X X'ᵀ over √((n − 1)(m − 1)) for the
    centred samples X and X'; and X X'ᵀ follows from distances by centring them twice. That is exact for covariances of any
    rank, and needs no square root of a matrix.

    Args:
        first: Squared distances within the first sample, (n, n).
        between: Squared distances between them, (n, m).
        second: Squared distances within the second sample, (m, m).
    """
    n, m = between.shape
    means = between.mean() - first.mean() / 2 - second.mean() / 2
    spreads = first.sum() / (2 * n * (n - 1)) + second.sum() / (2 * m * (m - 1))
    products = between - between.mean(0) - between.mean(1)[:, None] + between.mean()
    root = np.linalg.svd(products / -2, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    return float(max(means + spreads - 2 * root, 0.0))  # rounding

"""The volume below points (clean, robust, shifted): the area under the frontier, with a third axis.

Shifted accuracy is clean accuracy on images unlike those of training. The volume below the points is

    volume = 1 / ((1 - a0) (1 - r0) (1 - s0)) * integral over s from s0 to 1 of area {points with shifted >= s} ds

with the reference point (a0, r0, s0), where the area is the one of :mod:`paretune.frontiers.pareto` before it is divided:
the share of demands (clean >= a, robust >= r, shifted >= s) that some point meets. It is the three-dimensional hypervolume
of Zitzler & Thiele (IEEE TEC 1999, https://doi.org/10.1109/4235.797969), divided by that of the ideal point. It is exact,
by a sweep over the points from the highest shifted accuracy down: between two of them, the area does not change (as in
Fonseca, Paquete & López-Ibáñez, IEEE CEC 2006, https://doi.org/10.1109/CEC.2006.1688440).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.frontiers.pareto import area, checked_accuracies

Corner = tuple[float, float, float]  # (clean, robust, shifted) where volumes start


def volume(
    clean: ArrayLike, robust: ArrayLike, shifted: ArrayLike, reference: Corner = (0.0, 0.0, 0.0)
) -> float:
    """The volume below the points, as a fraction of the ideal point's.

    Points that are not better than the reference in all three accuracies contribute nothing; without points it is 0. A
    point that is added never lowers it, and a dominated one never changes it. It takes n² log n steps for n points.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``, in any order.
        robust: accuracies in [0, 1], shape ``(points,)``.
        shifted: accuracies in [0, 1], shape ``(points,)``.
        reference: (clean, robust, shifted) at which the axes cross, each in [0, 1).

    Returns:
        A number in [0, 1]; with the reference (0, 0, 0) it is the hypervolume itself.

    Raises:
        ValueError: a value is not a finite number in [0, 1] (the row is named), or the reference is not in [0, 1).

    >>> round(volume([0.9, 0.6], [0.2, 0.5], [0.5, 0.4]), 4)  # 0.4 * (0.6 * 0.5 + 0.3 * 0.2) + 0.1 * 0.9 * 0.2
    0.162
    """
    a0, r0, s0 = checked_corner(reference)
    a, r, s = checked_accuracies(clean=clean, robust=robust, shifted=shifted)
    order = np.argsort(-s)
    a, r, s = a[order], r[order], np.maximum(s[order], s0)
    depths = s - np.append(s[1:], s0)
    slabs = (depth * area(a[:k], r[:k], (a0, r0)) for k, depth in enumerate(depths, start=1) if depth > 0)
    return float(sum(slabs)) / (1 - s0)


def ordered_volume(
    clean: NDArray[Any], robust: NDArray[Any], shifted: NDArray[Any], reference: Corner = (0.0, 0.0, 0.0)
) -> NDArray[np.float64]:
    """The volume below points whose clean and robust accuracies are taken *in the order given*, the last axis.

    Each slab has the signed area of :func:`paretune.frontiers.pareto.ordered_area`, in which nothing is maximised. The slabs
    are those of the shifted accuracies as they are. In falling order of clean accuracy, points of a frontier of clean and
    robust accuracy give :func:`volume`.

    Args:
        clean: shape ``(..., points)``.
        robust: shape ``(..., points)``.
        shifted: shape ``(..., points)``; what is below the reference counts as being there.
        reference: as in :func:`volume`.

    Returns:
        Shape ``(...)``.
    """
    a0, r0, s0 = reference
    height = np.maximum(shifted, s0)
    order = np.argsort(-height, axis=-1, kind="stable")
    falling = np.take_along_axis(height, order, axis=-1)
    depth = -np.diff(falling, axis=-1, append=s0)
    rank = np.argsort(order, axis=-1)
    slab = np.arange(height.shape[-1])
    areas = np.zeros(np.broadcast_shapes(clean.shape, robust.shape, height.shape))
    before = np.full(areas.shape, float(r0))  # robust accuracy of the point before, in each slab
    for point in slab:
        within = rank[..., point, None] <= slab
        up = robust[..., point, None]
        areas += np.where(within, (clean[..., point, None] - a0) * (up - before), 0.0)
        before = np.where(within, up, before)
    total: NDArray[np.float64] = (depth * areas).sum(axis=-1) / ((1 - a0) * (1 - r0) * (1 - s0))
    return total


def checked_corner(reference: Corner) -> Corner:
    """The reference as three floats.

    Raises:
        ValueError: it is not three numbers in [0, 1).
    """
    corner = tuple(float(value) for value in reference)
    if len(corner) != 3 or not all(0 <= value < 1 for value in corner):
        raise ValueError(
            f"reference must be three accuracies in [0, 1), such as (0.1, 0.0, 0.1); got {reference}"
        )
    return corner[0], corner[1], corner[2]

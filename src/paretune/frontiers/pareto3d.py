"""Three accuracies at once: clean, robust, and under a shift of the data.

The volume under a frontier is the three-dimensional hypervolume, as a fraction of the ideal point's. It is not
on the scale of the two-dimensional area: never compare one with the other.

One sweep does both jobs. Points come by falling third accuracy; a staircase in the plane of the other two
keeps what is not dominated so far, sorted, so that a point finds its place by bisection and removes what it
dominates. Each point adds the area it gains in the plane times its own third accuracy. This is the dimension
sweep of Fonseca, Paquete & López-Ibáñez, "An improved dimension-sweep algorithm for the hypervolume indicator"
(CEC 2006, https://doi.org/10.1109/CEC.2006.1688440), in O(n log n) but for the insertions into the list, which
move little memory.
"""

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.frontiers.pareto import checked_accuracies

Reference3 = tuple[float, float, float]


def frontier_mask_3d(clean: ArrayLike, robust: ArrayLike, shifted: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other dominates; of equal points, the first.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``.
        robust: accuracies in [0, 1], shape ``(points,)``.
        shifted: accuracies in [0, 1], on shifted or corrupted data, shape ``(points,)``.

    Raises:
        ValueError: the shapes differ, or a value is not a finite number in [0, 1]; the row is named.
    """
    points = np.column_stack(checked_accuracies(clean=clean, robust=robust, shifted=shifted))
    # Best first, by the third, then the first, then the second; stable, so the first of equals leads.
    order = np.lexsort((-points[:, 1], -points[:, 0], -points[:, 2]))
    gains = _gains(points[order], (-1.0, -1.0))
    mask = np.zeros(len(points), dtype=bool)
    mask[order] = np.array(gains) > 0
    return mask


def volume(
    clean: ArrayLike,
    robust: ArrayLike,
    shifted: ArrayLike,
    reference: Reference3 = (0.0, 0.0, 0.0),
) -> float:
    """The volume under the frontier of the points, as a fraction of the ideal point's.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``, in any order.
        robust: accuracies in [0, 1], shape ``(points,)``.
        shifted: accuracies in [0, 1], on shifted or corrupted data, shape ``(points,)``.
        reference: where the three axes cross, each in [0, 1); points not beyond it contribute nothing.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: a value is not a finite number in [0, 1]; the row is named.

    >>> round(volume([0.9, 0.5], [0.4, 0.5], [0.5, 0.6]), 3)  # 0.18 + 0.15 - 0.1 common to both
    0.23
    """
    points = np.column_stack(checked_accuracies(clean=clean, robust=robust, shifted=shifted))
    corner = np.array(reference, dtype=float)
    if corner.shape != (3,) or not ((corner >= 0) & (corner < 1)).all():
        raise ValueError(f"reference must be three accuracies in [0, 1), such as (0, 0, 0); got {reference}")
    points = points[(points > corner).all(axis=1)]
    points = points[np.argsort(-points[:, 2])]  # the order of ties shifts gains between equals, not the sum
    gains = _gains(points, (float(corner[0]), float(corner[1])))
    return float((points[:, 2] - corner[2]) @ np.array(gains)) / float(np.prod(1 - corner))


def _gains(points: NDArray[np.float64], corner: tuple[float, float]) -> list[float]:
    """The area in the first two accuracies that each point gains over those before it; 0 if dominated.

    Every point lies beyond ``corner``. Plain lists: a step of this loop costs less than one numpy call.
    """
    across, up = [corner[0], math.inf], [math.inf, corner[1]]  # the staircase, between two sentinels
    gains = []
    for x, y in zip(points[:, 0].tolist(), points[:, 1].tolist(), strict=True):
        place = bisect_left(across, x)
        below = up[place]
        if below >= y:
            gains.append(0.0)
            continue
        end = place + (across[place] == x)  # a point right below this one goes too
        right, gain, i = x, 0.0, place - 1
        while below <= y:
            left = across[i]
            gain += (right - left) * (y - below)
            right, below = left, up[i]
            i -= 1
        across[i + 2 : end] = (x,)
        up[i + 2 : end] = (y,)
        gains.append(gain)
    return gains

"""Which points are on the frontier, and the area under it.

A point is a pair (clean, robust) of accuracies, both to be maximised. One point dominates another if it is at
least as good in both and better in one; the frontier is what no point dominates. The area under its staircase
is

    area = 1 / ((1 - a0) (1 - r0)) * integral over a from a0 to 1 of (max {robust : clean >= a, robust >= r0}
    - r0) da

with the reference point (a0, r0): the mean, over all clean accuracies one might insist on, of the best robust
accuracy on offer. It is the two-dimensional hypervolume of Zitzler & Thiele, "Multiobjective evolutionary
algorithms: a comparative case study" (IEEE TEC 1999, https://doi.org/10.1109/4235.797969), divided by that of
the ideal point (1, 1). A point that is added never lowers it and a dominated one never changes it, which the
trapezoid rule over the observed range does not guarantee. Fix the reference before looking at results: (0,
0), or (chance, 0).

Other indicators are in :mod:`paretune.frontiers.indicators`.
"""

from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Reference = tuple[float, float]


def frontier_mask(clean: ArrayLike, robust: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other dominates; of equal points, the first.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``.
        robust: accuracies in [0, 1], shape ``(points,)``.

    Raises:
        ValueError: the shapes differ, or a value is not a finite number in [0, 1]; the row is named.
    """
    a, r = checked_accuracies(clean=clean, robust=robust)
    order = np.lexsort((-r, -a))  # by clean, then by robust, best first; stable, so the first of equals leads
    best_before = np.maximum.accumulate(np.concatenate(([-1.0], r[order])))[:-1]
    mask = np.zeros(len(a), dtype=bool)
    mask[order] = r[order] > best_before
    return mask


@overload
def frontier(points: pd.DataFrame) -> pd.DataFrame: ...
@overload
def frontier(points: ArrayLike) -> NDArray[np.float64]: ...
def frontier(points: Any) -> Any:
    """The non-dominated points, by falling clean (and so rising robust) accuracy, without repetitions.

    Args:
        points: a DataFrame with the columns ``clean`` and ``robust``, or an array of shape ``(points, 2)``.

    Returns:
        Rows of ``points``, of the same type.

    Raises:
        ValueError: a column is missing, a value is not a finite number in [0, 1], or a table has points of
            several tasks, attacks or epsilons, which no frontier can hold together; the row is named.
    """
    if isinstance(points, pd.DataFrame):
        if missing := {"clean", "robust"} - {*points.columns}:
            raise ValueError(f"points lacks the columns {sorted(missing)}; it has {[*points.columns]}")
        _check_unmixed(points)
        rows = np.flatnonzero(frontier_mask(points["clean"], points["robust"]))
        return points.iloc[rows[np.argsort(-points["clean"].to_numpy(dtype=float)[rows])]]
    array = np.asarray(points, dtype=float)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"points must have the shape (points, 2), clean and robust; got {array.shape}")
    front = array[frontier_mask(array[:, 0], array[:, 1])]
    return front[np.argsort(-front[:, 0])]


def area(
    clean: ArrayLike,
    robust: ArrayLike,
    reference: Reference = (0.0, 0.0),
    *,
    min_clean: float = 0.0,
    min_robust: float = 0.0,
) -> float:
    """The area under the frontier of the points, as a fraction of the ideal point's.

    Points that are not better than the reference in both accuracies contribute nothing; without points it is
    0. Floors make it the *partial* area: of the part of the plane that lies above both, again as a fraction of
    the ideal point's.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``, in any order.
        robust: accuracies in [0, 1], shape ``(points,)``.
        reference: (clean, robust) at which the axes cross, each in [0, 1).
        min_clean: the least clean accuracy that anyone would deploy, in [0, 1).
        min_robust: the least robust accuracy that anyone would deploy, in [0, 1).

    Returns:
        A number in [0, 1]; with the reference (0, 0) and no floors it is the hypervolume itself.

    Raises:
        ValueError: a value is not a finite number in [0, 1]; the row is named.

    >>> round(area([0.9, 0.8, 0.7], [0.1, 0.4, 0.3]), 4)
    0.33
    >>> round(area([0.9, 0.8, 0.7], [0.1, 0.4, 0.3], min_clean=0.75), 4)  # (0.15 * 0.1 + 0.05 * 0.3) / 0.25
    0.12
    """
    reference = a0, r0 = floored_reference(reference, min_clean, min_robust)
    a, r = checked_accuracies(clean=clean, robust=robust)
    inside = (a > a0) & (r > r0)
    a, r = a[inside], r[inside]
    order = np.argsort(-a)
    return float(ordered_area(a[order], np.maximum.accumulate(r[order]), reference))


def ordered_area(
    clean: NDArray[Any], robust: NDArray[Any], reference: Reference = (0.0, 0.0)
) -> NDArray[np.float64]:
    """The signed area under the staircase through points *in the order given*, the last axis.

    Nothing is maximised here: with the order chosen on other examples, estimates of the accuracies give an
    estimate of the area without the upward bias of a maximum. In falling order of clean accuracy it equals
    :func:`area`.

    Args:
        clean: shape ``(..., points)``.
        robust: shape ``(..., points)``.
        reference: as in :func:`area`.

    Returns:
        Shape ``(...)``.
    """
    a0, r0 = reference
    rises = np.diff(robust, axis=-1, prepend=r0)
    total: NDArray[np.float64] = ((clean - a0) * rises).sum(axis=-1) / ((1 - a0) * (1 - r0))
    return total


def checked_reference(reference: Reference) -> Reference:
    """The reference as two floats.

    Raises:
        ValueError: it is not two numbers in [0, 1).
    """
    a0, r0 = (float(value) for value in reference)
    if not (0 <= a0 < 1 and 0 <= r0 < 1):
        raise ValueError(f"reference must be two accuracies in [0, 1), such as (0.1, 0.0); got {reference}")
    return a0, r0


def floored_reference(reference: Reference, min_clean: float, min_robust: float) -> Reference:
    """Where an area with floors starts: at the reference or at the floor, whichever is higher.

    Raises:
        ValueError: the reference or a floor is not in [0, 1).
    """
    a0, r0 = checked_reference(reference)
    for name, floor in (("min_clean", min_clean), ("min_robust", min_robust)):
        if not 0 <= floor < 1:
            raise ValueError(f"{name} must be an accuracy in [0, 1), such as 0.8; got {floor}")
    return max(a0, float(min_clean)), max(r0, float(min_robust))


def checked_accuracies(**columns: ArrayLike) -> list[NDArray[np.float64]]:
    """Vectors of accuracies, by name.

    Raises:
        ValueError: their lengths differ, or a value is not a finite number in [0, 1]; the row is named.
    """
    vectors = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    shapes = [values.shape for values in vectors.values()]
    if len(shapes[0]) != 1 or len({*shapes}) > 1:
        raise ValueError(
            f"{' and '.join(vectors)} must be vectors of one length; got the shapes "
            f"{' and '.join(map(str, shapes))}"
        )
    for name, values in vectors.items():
        wrong = ~((values >= 0) & (values <= 1))  # NaN compares false, so it is wrong too
        if wrong.any():
            row = int(np.argmax(wrong))
            percent = "; these look like percentages: divide by 100" if 1 < values[row] <= 100 else ""
            raise ValueError(
                f"row {row}: {name} must be a finite accuracy in [0, 1]; got {values[row]}{percent}"
            )
    return [*vectors.values()]


def _check_unmixed(points: pd.DataFrame) -> None:
    for column in ("task", "attack", "threat", "epsilon"):
        if column in points and points[column].nunique(dropna=False) > 1:
            row = int(np.argmax(points[column].to_numpy() != points[column].iloc[0]))
            raise ValueError(
                f"row {row}: {column} is {points[column].iloc[row]!r}, but {points[column].iloc[0]!r} before; "
                f"one frontier holds points of one {column}. Group the points by it first"
            )

"""Other numbers about frontiers than their area, each under its own name and with its caveat.

None of them is the area that :func:`paretune.compare` ranks by. Zitzler et al., "Performance assessment of
multiobjective optimizers: an analysis and review" (IEEE TEC 2003, https://doi.org/10.1109/TEVC.2003.810758)
compare most of them. *Compliant* means: a frontier that another one dominates never gets the better value.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.frontiers.pareto import Reference, area, checked_accuracies, checked_reference, frontier_mask

Points = tuple[ArrayLike, ArrayLike]  # clean, robust
Floats = NDArray[np.float64]


def hull_area(clean: ArrayLike, robust: ArrayLike, reference: Reference = (0.0, 0.0)) -> float:
    """The area under the concave hull of the points and the axes, as a fraction of the ideal point's.

    Caveat: points between two checkpoints are within reach only by *drawing one of the two for every request*,
    with a coin that the attacker does not see. Then clean accuracy is the mixture's and robust accuracy at
    least that. A single deployed checkpoint reaches the staircase of :func:`paretune.area`, which is never
    larger. Compliant.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``, in any order.
        robust: accuracies in [0, 1], shape ``(points,)``.
        reference: (clean, robust) at which the axes cross, each in [0, 1).

    Raises:
        ValueError: a value is not a finite number in [0, 1]; the row is named.

    >>> round(hull_area([0.8, 0.4], [0.2, 0.6]), 4)  # staircase 0.32; plus half of 0.4 by 0.4
    0.4
    """
    a0, r0 = checked_reference(reference)
    front = _front(clean, robust, (a0, r0))
    if not len(front):
        return 0.0
    corners = np.vstack([(front[0, 0], r0), front, (a0, front[-1, 1])])
    hull: list[Floats] = []
    for point in corners:  # by falling clean accuracy: keep what turns left
        while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    across, up = np.array(hull).T
    return float(np.trapezoid(up[::-1] - r0, across[::-1])) / ((1 - a0) * (1 - r0))


def trapezoid_area(clean: ArrayLike, robust: ArrayLike) -> float:
    """The trapezoid rule along the frontier, over the clean accuracies observed; not normalised.

    Caveat: this is the usual ad hoc number, here only to be compared with results of others. It is **not
    compliant**: a single checkpoint that beats a whole frontier gets 0, and a better point can lower it.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``, in any order.
        robust: accuracies in [0, 1], shape ``(points,)``.

    Raises:
        ValueError: a value is not a finite number in [0, 1]; the row is named.

    >>> round(trapezoid_area([0.5, 0.85], [0.28, 0.1]), 4), trapezoid_area([0.9], [0.3])  # yet (0.9, 0.3) wins
    (0.0665, 0.0)
    """
    a, r = checked_accuracies(clean=clean, robust=robust)
    on_front = frontier_mask(a, r)
    order = np.argsort(a[on_front])
    return float(np.trapezoid(r[on_front][order], a[on_front][order]))


def weighted_area(clean: ArrayLike, robust: ArrayLike, weights: ArrayLike) -> float:
    """The share of weight that lies under the frontier, where parts of the plane matter more than others.

    Caveat: any ranking of crossing frontiers can be had by some weights; fix them before looking. Compliant
    where the weight is positive. Zitzler, Brockhoff & Thiele, "The hypervolume indicator revisited" (EMO 2007,
    https://doi.org/10.1007/978-3-540-70928-2_64).

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``, in any order.
        robust: accuracies in [0, 1], shape ``(points,)``.
        weights: rectangles ``(clean from, robust from, clean to, robust to, weight per area)``, shape
            ``(rectangles, 5)``; where they overlap, weights add up.

    Returns:
        A number in [0, 1]; with one rectangle from (0, 0) to (1, 1) it is :func:`paretune.area`.

    Raises:
        ValueError: a value is not a finite number in [0, 1], or a rectangle is not one; the row is named.

    >>> low, high = (0, 0, 0.5, 1, 1), (0.5, 0, 1, 1, 3)  # high clean accuracies count three times
    >>> round(weighted_area([0.8], [0.5], [low, high]), 4)  # (0.5 * 0.5 + 3 * 0.3 * 0.5) / 2
    0.35
    """
    a, r = checked_accuracies(clean=clean, robust=robust)
    rectangles = np.atleast_2d(np.asarray(weights, dtype=float))
    if rectangles.ndim != 2 or rectangles.shape[1] != 5 or not len(rectangles):
        raise ValueError(f"weights must have the shape (rectangles, 5); got {np.shape(weights)}")
    under = total = 0.0
    for row, (a0, r0, a1, r1, weight) in enumerate(rectangles.tolist()):
        if not (0 <= a0 < a1 <= 1 and 0 <= r0 < r1 <= 1 and 0 <= weight < np.inf):
            raise ValueError(
                f"row {row}: a rectangle goes from two accuracies up to two others, in [0, 1], with a weight of "
                f"at least 0; got {rectangles[row].tolist()}"
            )
        inside = area(np.clip((a - a0) / (a1 - a0), 0, 1), np.clip((r - r0) / (r1 - r0), 0, 1))
        mass = weight * (a1 - a0) * (r1 - r0)
        under, total = under + mass * inside, total + mass
    if not total:
        raise ValueError("weights must have a rectangle with a weight above 0")
    return under / total


def epsilon_indicator(
    points: Points, other: Points, *, kind: Literal["additive", "multiplicative"] = "additive"
) -> tuple[float, float]:
    """How much every point of one set must gain to be nowhere behind the other set, both ways round.

    Additive: in accuracy; ``(0.02, 0.10)`` says that the first lacks at most 2 points of accuracy anywhere, and
    the second 10. Multiplicative: as a factor. Below 0 (or 1): everywhere strictly ahead. If the first value is
    at most 0 (or 1) and the second is above, the first set dominates: a stronger claim than a larger area.
    Caveat: it is decided by the single worst place. Compliant.

    Args:
        points: clean and robust accuracies in [0, 1], two vectors of one length, not empty.
        other: likewise.
        kind: of the gain.

    Returns:
        What ``points`` lacks, and what ``other`` lacks.

    Raises:
        ValueError: a value is not a finite number in [0, 1] (for factors: 0 in a set that must gain what the
            other has), a set is empty, or the kind is unknown.

    >>> epsilon_indicator(([0.9, 0.5], [0.25, 0.5]), ([0.75], [0.25]))
    (0.0, 0.25)
    """
    if kind not in ("additive", "multiplicative"):
        raise ValueError(f"kind must be 'additive' or 'multiplicative'; got {kind!r}")
    sets = []
    for name, (clean, robust) in (("points", points), ("other", other)):
        front = _front(clean, robust, (-1.0, -1.0))
        if not len(front):
            raise ValueError(f"{name} is empty; an empty set lacks everything")
        if kind == "multiplicative" and not front.all():
            raise ValueError(
                f"{name} has an accuracy of 0 on its frontier: no factor lifts it; use 'additive'"
            )
        sets.append(front)
    return _lack(sets[0], sets[1], kind), _lack(sets[1], sets[0], kind)


def contributions(clean: ArrayLike, robust: ArrayLike, reference: Reference = (0.0, 0.0)) -> Floats:
    """How much area would go with each point: what lies under it and under no other point.

    Caveat: they do not add up to the area, and of two equal or nearly equal points neither contributes.

    Args:
        clean: accuracies in [0, 1], shape ``(points,)``, in any order.
        robust: accuracies in [0, 1], shape ``(points,)``.
        reference: (clean, robust) at which the axes cross, each in [0, 1).

    Returns:
        Shape ``(points,)``, in the order given; fractions of the ideal point's area.

    Raises:
        ValueError: a value is not a finite number in [0, 1]; the row is named.

    >>> contributions([0.9, 0.8, 0.5], [0.1, 0.4, 0.3]).round(4).tolist()  # 0.8 * 0.3 - 0.5 * 0.2
    [0.01, 0.14, 0.0]
    """
    a0, r0 = checked_reference(reference)
    a, r = checked_accuracies(clean=clean, robust=robust)
    rows = np.flatnonzero(frontier_mask(a, r) & (a > a0) & (r > r0))
    rows = rows[np.argsort(-a[rows])]
    made = np.zeros(len(a))
    if not len(rows):
        return made
    left, below = (
        np.append(a[rows][1:], a0),
        np.append(r0, r[rows][:-1]),
    )  # the corner of each point's own box
    # Any other point in a box, beyond its corner, takes away from it; a point lies in one box at most.
    others = np.setdiff1d(np.flatnonzero((a > a0) & (r > r0)), rows)
    box = (
        np.searchsorted(-a[rows], -a[others], side="right") - 1
    )  # the last with at least this clean accuracy
    held = (r[others] <= r[rows][box]) & (r[others] > below[box])
    for place, row in enumerate(rows):
        corner = (float(left[place]), float(below[place]))
        own = (a[row] - corner[0]) * (r[row] - corner[1])
        taken = others[held & (box == place)]
        if len(taken):
            own -= area(a[taken], r[taken], corner) * (1 - corner[0]) * (1 - corner[1])
        made[row] = max(0.0, own)
    return made / ((1 - a0) * (1 - r0))


def attainment_surface(sets: Sequence[Points], level: float) -> Floats:
    """The frontier that at least this share of the sets attain: the worst seed's at 1, the union's near 0.

    A set attains a target (clean, robust) if one of its points is at least as good in both. Grunert da Fonseca,
    Fonseca & Hall, "Inferential performance assessment of stochastic optimizers and the attainment function"
    (EMO 2001, https://doi.org/10.1007/3-540-44719-9_15). The level 0.5 is the median frontier of several seeds.

    Args:
        sets: for each repetition the clean and the robust accuracies, two vectors of one length.
        level: share of the sets, in (0, 1].

    Returns:
        The corners of the surface by falling clean accuracy, shape ``(corners, 2)``.

    Raises:
        ValueError: there are no sets, a value is not a finite number in [0, 1], or the level is out of range.

    >>> attainment_surface([([0.9, 0.5], [0.1, 0.5]), ([0.75], [0.25])], 1.0).tolist()
    [[0.75, 0.1], [0.5, 0.25]]
    """
    if not 0 < level <= 1:
        raise ValueError(f"level must be a share of the sets in (0, 1], such as 0.5; got {level}")
    if not len(sets):
        raise ValueError("sets must hold at least one set of points; got none")
    fronts = [_front(clean, robust, (-1.0, -1.0)) for clean, robust in sets]
    targets = np.unique(np.concatenate([front[:, 0] for front in fronts]))[::-1]
    best = np.stack([_best_robust(front, targets) for front in fronts])  # (sets, targets); -1 where none
    needed = int(np.ceil(level * len(fronts) - 1e-9))
    robust = np.sort(best, axis=0)[len(fronts) - needed]  # the needed-th largest
    reached = robust >= 0
    surface = np.column_stack([targets, robust])[reached]
    corners: Floats = surface[frontier_mask(*surface.T)]
    return corners


def attainment(sets: Iterable[Points], clean: ArrayLike, robust: ArrayLike) -> Floats:
    """The share of the sets that attain each target: the empirical attainment function.

    Args:
        sets: for each repetition the clean and the robust accuracies, two vectors of one length.
        clean: of the targets, shape ``(targets,)``.
        robust: of the targets, shape ``(targets,)``.

    Returns:
        Shape ``(targets,)``, in [0, 1].

    Raises:
        ValueError: there are no sets, or a value is not a finite number in [0, 1]; the row is named.
    """
    a, r = checked_accuracies(clean=clean, robust=robust)
    best = [_best_robust(_front(*points, (-1.0, -1.0)), a) for points in sets]
    if not best:
        raise ValueError("sets must hold at least one set of points; got none")
    share: Floats = (np.stack(best) >= r).mean(axis=0)
    return share


def _front(clean: ArrayLike, robust: ArrayLike, reference: Reference) -> Floats:
    """The frontier beyond the reference by falling clean accuracy, shape ``(points, 2)``."""
    a, r = checked_accuracies(clean=clean, robust=robust)
    rows = np.flatnonzero(frontier_mask(a, r) & (a > reference[0]) & (r > reference[1]))
    rows = rows[np.argsort(-a[rows])]
    return np.column_stack([a[rows], r[rows]])


def _best_robust(front: Floats, clean: Floats) -> Floats:
    """The best robust accuracy of the frontier at no less than each clean accuracy; -1 where it has none."""
    reached = np.searchsorted(-front[:, 0], -clean, side="right")
    best: Floats = np.append(-1.0, front[:, 1])[reached]
    return best


def _lack(front: Floats, other: Floats, kind: str) -> float:
    """Largest over the points of ``other`` of the least gain with which a point of ``front`` covers it."""
    worst = -np.inf
    for target in other:
        gains = target / front if kind == "multiplicative" else target - front
        worst = max(worst, float(gains.max(axis=1).min()))
    return worst


def _turn(a: Floats, b: Floats, c: Floats) -> float:
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

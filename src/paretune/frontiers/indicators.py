"""Other numbers about frontiers than their area, each under its own name and with its caveat.

None of them is the area that :func:`paretune.compare` ranks by. Zitzler et al., "Performance assessment of
multiobjective optimizers: an analysis and review" (IEEE TEC 2003, https://doi.org/10.1109/TEVC.2003.810758)
compare most of them. *Compliant* means: a frontier that another one dominates never gets the better value.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from paretune.frontiers.deciding import Floats
from paretune.frontiers.pareto import Reference, checked_accuracies, checked_reference, frontier_mask

Points = tuple[ArrayLike, ArrayLike]  # clean, robust


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

"""Would more search change the order? The expected area against the number of evaluated points.

A strategy that was evaluated at K points could have been evaluated at fewer. Averaged over all ways to draw k of
its K points, choosing the frontier among the k on the select split and measuring it on the report split, the
area is a curve over k: a strategy may win with ten points and lose with a hundred. It is the expected validation
performance of Dodge et al., "Show your work" (EMNLP 2019, https://doi.org/10.18653/v1/D19-1224) for frontiers,
and drawn without replacement.

The average over subsets is exact. The staircase through a subset is a sum over its successive points, and two
points are successive on the frontier of a subset if it holds both and none of the n points that dominate their
common corner. Of the subsets of size k, a share C(K - 2 - n, k - 2) / C(K, k) does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaln, ndtri

from paretune.frontiers.bootstrap import Units
from paretune.frontiers.cells import narrow
from paretune.frontiers.comparing import labelled_points
from paretune.frontiers.deciding import Floats
from paretune.frontiers.pareto import Reference
from paretune.frontiers.settings import Settings
from paretune.runs.store import Run, as_runs

BUDGETS = 40  # at most, evenly spread over the logarithm


@dataclass(frozen=True)
class BudgetCurve:
    """The expected area of one strategy against the points evaluated, averaged over its training seeds."""

    task: str
    attack: str
    threat: str
    epsilon: float
    strategy: str
    points: tuple[int, ...]  # evaluated per seed, rising; the last is all that the poorest seed has
    areas: tuple[float, ...]
    low: tuple[float, ...]  # pointwise intervals over the report examples, the points and seeds as they are
    high: tuple[float, ...]


def budget_curves(
    runs: str | Path | Run | Iterable[Run | str | Path],
    *,
    reference: Reference = (0.0, 0.0),
    level: float = 0.95,
) -> tuple[BudgetCurve, ...]:
    """One curve for each strategy, under each task, attack and epsilon.

    Args:
        runs: as in :func:`paretune.compare`.
        reference: (clean, robust) where areas start.
        level: of the intervals, in (0, 1).

    Raises:
        FileNotFoundError: there are no runs.
        ValueError: no run has points, or an argument is out of range.
    """
    start = Settings(reference=reference, level=level).start
    loaded = as_runs(runs)
    return curves_of(labelled_points(loaded), loaded, start, level)


def curves_of(
    points: pd.DataFrame, runs: list[Run], start: Reference, level: float
) -> tuple[BudgetCurve, ...]:
    """:func:`budget_curves` of labelled points, or of some of them.

    Args:
        points: as ``paretune.frontiers.comparing.labelled_points`` gives them.
        runs: that they index.
        start: where areas start.
        level: of the intervals.
    """
    curves = []
    names = ["task", "threat", "epsilon", "attack", "label"]
    parts = narrow(points).groupby([points[name] for name in names], sort=True)
    for (task, threat, epsilon, attack, label), rows in parts:
        by_seed = [group for _, group in rows.groupby("seed")]
        budgets = _budgets(min(len(group) for group in by_seed))
        areas = np.zeros(len(budgets))
        influence = np.zeros((len(budgets), int(rows["examples"].iloc[0])))
        for group in by_seed:
            select = group[["clean_select", "robust_select"]].to_numpy(dtype=float)
            report = group[["clean", "robust"]].to_numpy(dtype=float)
            expected, by_clean, by_robust = expected_areas(select, report, budgets, start)
            bits = [runs[row["run_index"]].bits(row) for row in group.to_dict("records")]
            units = Units.of(influence.shape[1])
            for slopes, name, column in ((by_clean, "clean", 0), (by_robust, "robust", 1)):
                right = units.right(np.stack([of_run[f"report/{name}"] for of_run in bits]))
                influence += (slopes @ right - (slopes @ report[:, column])[:, None]) / len(by_seed)
            areas += expected / len(by_seed)
        half = ndtri((1 + level) / 2) * np.sqrt((influence**2).mean(axis=1) / influence.shape[1])
        shared: dict[str, Any] = {"task": str(task), "attack": str(attack), "threat": str(threat)}
        curves.append(
            BudgetCurve(
                **shared,
                epsilon=float(epsilon),  # type: ignore[arg-type]  # pandas types keys of groups as Scalar
                strategy=str(label),
                points=tuple(int(k) for k in budgets),
                areas=tuple(areas.tolist()),
                low=tuple(np.maximum(0.0, areas - half).tolist()),
                high=tuple(np.minimum(1.0, areas + half).tolist()),
            )
        )
    return tuple(curves)


def expected_areas(
    select: Floats, report: Floats, budgets: NDArray[np.intp], reference: Reference
) -> tuple[Floats, Floats, Floats]:
    """The expected area of the frontier chosen among ``k`` of the points, for each ``k`` of ``budgets``.

    Args:
        select: clean and robust accuracies that choose, shape ``(points, 2)``.
        report: clean and robust accuracies that measure, in the same order.
        budgets: numbers of points, each from 1 to all.
        reference: (clean, robust) where areas start.

    Returns:
        The areas, and their derivatives by the report's clean and robust accuracies, shape ``(budgets, points)`` each.
    """
    total = len(select)
    eligible = np.flatnonzero((select > reference).all(axis=1))
    order = eligible[np.lexsort((-select[eligible, 1], -select[eligible, 0]))]
    height = select[order, 1]
    across, up = report[order, 0] - reference[0], report[order, 1] - reference[1]
    place = np.arange(len(order))
    # (i, l): whether l, coming before j in the order, keeps i from being the one before j on the frontier.
    hides = (height[None] > height[:, None]) | (
        (height[None] == height[:, None]) & (place[None] < place[:, None])
    )
    hidden = np.hstack([np.zeros((len(order), 1), dtype=int), np.cumsum(hides, axis=1)])[:, :-1]  # (i, j)
    rises = (height[None] > height[:, None]) & (place[None] > place[:, None])
    areas = np.zeros(len(budgets))
    by_clean, by_robust = np.zeros((2, len(budgets), total))
    for row, k in enumerate(budgets.tolist()):
        first = _share(total, k, place, 1)
        follow = np.where(rises, _share(total, k, hidden, 2), 0.0)  # (i, j): i and then j
        step = first * up + follow.T @ (-up) + up * follow.sum(axis=0)  # expected rise at j
        areas[row] = float(across @ step)
        by_clean[row, order] = step
        by_robust[row, order] = across * (first + follow.sum(axis=0)) - follow @ across
    scale = (1 - reference[0]) * (1 - reference[1])
    return areas / scale, by_clean / scale, by_robust / scale


def _share(total: int, k: int, absent: NDArray[Any], present: int) -> Floats:
    """Of the subsets of ``k`` of ``total``, the share with ``present`` given members and ``absent`` others not."""
    rest, drawn = total - present - absent, k - present
    if drawn < 0:
        return np.zeros(np.shape(absent))
    possible = rest >= drawn
    rest = np.where(possible, rest, drawn)
    logarithm = _log_choose(rest, drawn) - _log_choose(np.array(total), k)
    return np.where(possible, np.exp(logarithm), 0.0)


def _log_choose(n: NDArray[Any], k: int) -> Floats:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0))


def _budgets(most: int) -> NDArray[np.intp]:
    return np.unique(np.rint(np.geomspace(1, most, BUDGETS)).astype(int))

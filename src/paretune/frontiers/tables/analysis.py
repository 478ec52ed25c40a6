"""Any results: areas of somebody's table of accuracies, with as much certainty as the table allows.

Each (task, group, seed) is one frontier. A group's area is the mean over its seeds. Every frontier of a task counts
with the same number of points K, the least that any has, as more points make a larger area by themselves: of a
frontier with more points, K evenly spaced rows. Where rows are in the order of training, these are what evaluating it K
times would have given; where they are in no order, K of them by chance. A file sorted by accuracy would be neither.

A table of accuracies says less than runs do. Which test examples were right is not in it, so intervals come from
repeats only (three seeds or more) and are about the luck of training, not of the test examples. Unless it has
accuracies of a select split as well, frontiers are chosen by the accuracies that measure them, and areas are
optimistic. With a column of shifted accuracies there are volumes beside areas, as :mod:`paretune.frontiers.third_axis`
describes them. A table from :func:`paretune.load_points` leads back to its runs: then the areas, intervals and tests
are those of :func:`paretune.compare`.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paretune.frontiers.across import AcrossTasks, across_rankings
from paretune.frontiers.cells import chosen_front, spaced_subsets
from paretune.frontiers.deciding import SAME, Floats, gap_text, listed
from paretune.frontiers.inference import holm
from paretune.frontiers.pareto import Reference, ordered_area
from paretune.frontiers.power import needed_seeds
from paretune.frontiers.ranking import Area, Gap
from paretune.frontiers.repeats import LEAST_REPEATS, gap, spread
from paretune.frontiers.settings import Settings
from paretune.frontiers.tables.columns import Names, Table, tidy
from paretune.frontiers.tables.own_runs import compare_own
from paretune.frontiers.tables.ranking import TaskRanking
from paretune.frontiers.volumes import ordered_volume

_AXES = ("clean", "robust")
_NO_RUNS = (
    "The table is of runs, but they are not here as it has them, or its groups are not their strategies: areas come "
    "from its accuracies alone."
)


@dataclass(frozen=True, eq=False)
class Analysis:
    """One :class:`TaskRanking` for each task, and the groups over all tasks if there are several."""

    tasks: tuple[TaskRanking, ...]
    across: AcrossTasks | None  # None for one task, or where no group is in all
    reference: Reference  # where areas start: the reference, or a floor above it
    points: pd.DataFrame  # the rows: task, group, seed, clean, robust, and what chose them

    @property
    def areas(self) -> tuple[Area, ...]:
        """Those of all tasks; within each, best first."""
        return tuple(area for task in self.tasks for area in task.areas)

    @property
    def verdict(self) -> str:
        """What the numbers allow to say, one line for each task, and one for all of them."""
        if len(self.tasks) == 1:
            return self.tasks[0].verdict
        lines = [f"{task.task}: {task.verdict}" for task in self.tasks]
        if self.across is not None:
            lines.append(f"Over all tasks: {self.across.verdict}")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """The areas as a table, one row for each group of each task; without an interval, its ends are missing."""
        columns = {
            "task": [area.task for area in self.areas],
            "group": [area.strategy for area in self.areas],
            "area": [area.area for area in self.areas],
            "low": pd.array([area.low for area in self.areas], dtype="Float64"),
            "high": pd.array([area.high for area in self.areas], dtype="Float64"),
            "k": [area.k for area in self.areas],
            "reference_clean": self.reference[0],
            "reference_robust": self.reference[1],
        }
        if any(task.volumes for task in self.tasks):
            volumes = [task.volume_of[area.strategy] for task in self.tasks for area in task.areas]
            columns["volume"] = [volume.area for volume in volumes]
            columns["volume_low"] = pd.array([volume.low for volume in volumes], dtype="Float64")
            columns["volume_high"] = pd.array([volume.high for volume in volumes], dtype="Float64")
        return pd.DataFrame(columns)


def analyze(
    table: pd.DataFrame | str | Path,
    *,
    group: Names = "strategy",
    clean: str = "clean",
    robust: str = "robust",
    task: Names | None = None,
    seed: str | None = None,
    select: tuple[str, str] | None = None,
    shifted: str | None = None,
    reference: Reference = (0.0, 0.0),
    min_clean: float = 0.0,
    min_robust: float = 0.0,
    percent: bool = False,
    equal_budgets: bool = True,
    level: float = 0.95,
    margin: float = 0.005,
) -> Analysis:
    """Areas, ranks, and what can be said of their certainty, from any table of clean and robust accuracies.

    Args:
        table: a DataFrame, or a .csv, .tsv or .parquet file; one row is one evaluated model.
        group: the column of what is compared, or several columns that together name it; a string may hold several
            with commas between them.
        clean: the column of clean accuracies, in [0, 1].
        robust: the column of robust accuracies under one attack, in [0, 1].
        task: the column or columns whose values are analysed apart: data set, attack, epsilon.
        seed: the column that tells repeats of one training apart. From three on there are intervals.
        select: two columns, the clean and the robust accuracies on other examples, which then choose the frontiers.
        shifted: the column of accuracies on shifted images, such as those of another domain. There are volumes then beside
            areas, of the same points: what is shifted chooses nothing.
        reference: (clean, robust) where areas start; fix it before looking. (0, 0), or (chance, 0).
        min_clean: the least clean accuracy that you would deploy, in [0, 1): areas are partial.
        min_robust: the least robust accuracy that you would deploy, in [0, 1).
        percent: accuracies are percentages. Everything else stays a fraction.
        equal_budgets: count K points of every frontier, evenly spaced in the order of the rows; false counts all, and
            areas favour groups with more.
        level: of intervals and tests, in (0, 1).
        margin: areas closer than this, in [0, 1), are equal for practical purposes.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: it is Parquet, and pyarrow is not installed.
        ValueError: a column is missing, a cell is empty or not an accuracy (its row is named), or an argument is out
            of range.

    >>> table = pd.DataFrame({"strategy": ["A", "A", "B"], "clean": [0.9, 0.7, 0.8], "robust": [0.1, 0.4, 0.3]})
    >>> [(each.strategy, round(each.area, 3)) for each in analyze(table).areas]  # one point of each, the last
    [('A', 0.28), ('B', 0.24)]
    """
    settings = Settings(
        reference=reference, min_clean=min_clean, min_robust=min_robust, level=level, margin=margin
    )
    cells = Table.read(table)
    points = tidy(
        cells,
        group=group,
        clean=clean,
        robust=robust,
        task=task,
        seed=seed,
        select=select,
        shifted=shifted,
        percent=percent,
    )
    measured = compare_own(cells.frame, points, settings) if equal_budgets else None
    if measured is not None:
        tasks = measured
    else:
        tasks = tuple(
            _rank(str(name), rows, equal_budgets, settings)
            for name, rows in points.groupby("task", sort=True)
        )
        if equal_budgets and {"path", "bits"} <= {*cells.frame.columns}:
            tasks = tuple(dataclasses.replace(ranking, notes=(*ranking.notes, _NO_RUNS)) for ranking in tasks)
    return Analysis(tasks, _across(tasks), settings.start, points)


def _rank(
    task: str, rows: pd.DataFrame, equal_budgets: bool, settings: Settings, axes: tuple[str, ...] = _AXES
) -> TaskRanking:
    report = rows[[*axes]].to_numpy(dtype=float)
    select = rows[["clean_select", "robust_select"] if "clean_select" in rows else [*_AXES]].to_numpy(
        dtype=float
    )
    indices: dict[Any, Any] = {**rows.groupby(["group", "seed"]).indices}
    fronts = {(str(group), str(seed)): np.asarray(front) for (group, seed), front in indices.items()}
    sizes = {key: len(front) for key, front in fronts.items()}
    k = min(sizes.values())
    areas: dict[str, dict[str, float]] = {}
    for (group, seed), front in sorted(fronts.items()):
        used = k if equal_budgets else len(front)
        areas.setdefault(group, {})[seed] = _measured(select[front], report[front], used, settings)
    ranked = []
    for group, of_seed in areas.items():
        values = np.array([*of_seed.values()])
        of_repeats = spread(values)
        low, high = (None, None) if of_repeats is None else of_repeats.interval(settings.level)
        ranked.append(
            Area(
                task=task,
                strategy=group,
                area=float(values.mean()),
                low=None if low is None else max(0.0, low),
                high=None if high is None else min(1.0, high),
                k=k if equal_budgets else min(sizes[group, seed] for seed in of_seed),
                seeds=tuple(of_seed),
                per_seed=tuple(of_seed.values()),
            )
        )
    ranked.sort(key=lambda area: (-area.area, area.strategy))
    differences = _differences([(area.strategy, area.area) for area in ranked], areas, settings.level)
    tested = any(d.p_value is not None for d in differences)
    all_notes = [
        *_notes(rows, sizes, ranked, equal_budgets, settings.start),
        *_constant(ranked, differences),
        *_settling(ranked, differences, settings),
    ]
    by_volume = axes != _AXES
    of_frontiers = [[sizes[area.strategy, seed] for seed in areas[area.strategy]] for area in ranked]
    return TaskRanking(
        task=task,
        areas=tuple(ranked),
        points=tuple((min(counts), max(counts)) for counts in of_frontiers),
        differences=tuple(differences),
        k=k,
        equal_budgets=equal_budgets or len({*sizes.values()}) == 1,
        covers=_covers(ranked, tested),
        notes=() if by_volume else tuple(all_notes),
        settings=settings,
        volumes=None
        if by_volume or "shifted" not in rows
        else _rank(task, rows, equal_budgets, settings, (*_AXES, "shifted")),
        corner=settings.corner if by_volume else None,
    )


def _measured(select: Floats, report: Floats, k: int, settings: Settings) -> float:
    """The area, or the volume, of one frontier from ``k`` evenly spaced of its points; shapes ``(points, 2 or 3)``."""
    (used,) = spaced_subsets(np.zeros(len(report)), k, 1, 0)
    clean, robust, *shifted = report[used][chosen_front(select[used], settings.start)].T
    if shifted:
        return float(ordered_volume(clean, robust, shifted[0], settings.corner))
    return float(ordered_area(clean, robust, settings.start))


def _differences(
    ranked: list[tuple[str, float]], areas: dict[str, dict[str, float]], level: float
) -> list[Gap]:
    pairs = [(*pair, gap(areas[pair[0][0]], areas[pair[1][0]])) for pair in combinations(ranked, 2)]
    adjusted = iter(holm([paired.p_value for *_, paired in pairs if paired is not None]))
    differences = []
    for (a, area_a), (b, area_b), paired in pairs:
        low, high = (None, None) if paired is None else paired.interval(level)
        p_value = None if paired is None else next(adjusted)
        if paired is None and _repeated_alike(areas[a], areas[b]):
            low, high, p_value = 0.0, 0.0, 1.0
        differences.append(Gap(a, b, area_a - area_b, low, high, p_value, paired))
    return differences


def _repeated_alike(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two groups have repeats, and equal areas in each: they are the same, whatever the luck of training."""
    repeats = spread(np.array([*a.values()])) is not None and a.keys() == b.keys()
    return repeats and all(abs(a[name] - b[name]) < SAME for name in a)


def _covers(areas: list[Area], tested: bool) -> str:
    if not tested and all(area.low is None for area in areas):
        return (
            f"There are no intervals: they take {LEAST_REPEATS} seeds of a group, with "
            "areas that are not all equal, or runs that hold which examples were right."
        )
    paired = len({frozenset(area.seeds) for area in areas}) == 1
    return (
        f"Intervals{' and tests' if tested else ''} are Student's t over training seeds"
        + (", paired by seed" if paired and tested else "")
        + ": they cover the luck of training, not of the test examples, which the seeds share."
    )


def _notes(
    rows: pd.DataFrame,
    sizes: dict[tuple[str, str], int],
    areas: list[Area],
    equal_budgets: bool,
    reference: Reference,
) -> Iterator[str]:
    """What a reader should know before believing the numbers."""
    if "clean_select" not in rows:
        yield (
            "The accuracies that measure the frontiers also chose them, so areas are too high, the more so the more "
            "points there are and the fewer test examples. Accuracies on other examples can choose: name them with "
            "select."
        )
    least, most = min(sizes.values()), max(sizes.values())
    if least < most:
        (group, seed) = min(sizes, key=lambda key: sizes[key])
        who = f"{group}, {seed}" if seed else group
        yield f"Frontiers have {least} ({who}) to {most:,} points; " + (
            f"{least} evenly spaced ones of each are used, in the order of the rows."
            if equal_budgets
            else "areas are of unequal budgets, and more points make a larger area by themselves."
        )
    repeats = {len(area.seeds) for area in areas}
    if len(repeats) > 1:
        yield f"Groups have between {min(repeats)} and {max(repeats)} seeds."
    copied = [area.strategy for area in areas if len(area.seeds) >= LEAST_REPEATS and area.low is None]
    if copied:
        yield f"The seeds of {listed(copied)} have equal areas: copies say nothing of the luck of training."
    nothing = [area.strategy for area in areas if area.area == 0]
    if nothing:
        yield (
            f"No point of {listed(nothing)} is above the reference ({reference[0]:g}, {reference[1]:g}) in both "
            "accuracies."
        )
    best_robust = rows.groupby("group")["robust"].max()
    tiny = best_robust[(best_robust > 0) & (best_robust <= 0.01)]
    if best_robust.max() > 0.01 and len(tiny):
        yield (
            f"No robust accuracy of {listed([str(name) for name in tiny.index])} is above 1 %; are they in the unit of the "
            "others?"
        )
    if (swapped := float((rows["robust"] > rows["clean"]).mean())) > 0.5:
        yield (
            f"Robust accuracy is above clean accuracy in {swapped:.0%} of the rows, which an attack cannot achieve; "
            "are the columns swapped, or in different units?"
        )


def _constant(areas: list[Area], differences: list[Gap]) -> Iterator[str]:
    """Those that are behind the best by one and the same amount in each of the repeats that have a spread."""
    best = areas[0]
    alike = {area.strategy for area in areas if area.low is not None and {*area.seeds} == {*best.seeds}}
    constant = [
        d.strategy_b
        for d in differences
        if d.strategy_a == best.strategy and d.p_value is None and {d.strategy_a, d.strategy_b} <= alike
    ]
    if constant:
        yield (
            f"{best.strategy} is ahead of {listed(constant)} by the same amount with each seed, to the last digit: such "
            "seeds say nothing of how certain that is."
        )


def _settling(areas: list[Area], differences: list[Gap], settings: Settings) -> Iterator[str]:
    """How many repeats would tell the nearest group that is not told apart from the best."""
    repeats = {area.strategy: len(area.seeds) for area in areas}
    tested = sum(d.p_value is not None for d in differences)
    for d in (d for d in differences if d.strategy_a == areas[0].strategy):
        if d.spread is None or d.p_value is None or d.p_value < 1 - settings.level:
            continue
        effect = max(d.difference, settings.margin, SAME)
        seeds = min(repeats[d.strategy_a], repeats[d.strategy_b])
        alpha = (1 - settings.level) / tested
        needed = needed_seeds(effect, seeds=seeds, v_examples=0.0, v_seeds=d.spread.error**2, alpha=alpha)
        if needed is not None and needed > seeds:
            yield (
                f"About {needed} seeds, instead of {seeds}, would tell {d.strategy_b} from {d.strategy_a} with a chance "
                f"of 80% if the true difference is {gap_text(effect)}."
            )
        return


def _across(tasks: tuple[TaskRanking, ...]) -> AcrossTasks | None:
    everywhere = set.intersection(*({area.strategy for area in task.areas} for task in tasks))
    if len(tasks) < 2 or not everywhere:
        return None
    return across_rankings(tasks, repeats=min(len(ranked.seeds) for task in tasks for ranked in task.areas))

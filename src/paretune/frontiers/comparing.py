"""Which strategy has the best frontier, how sure that is, and what it costs.

For each (task, attack, epsilon):

1. The checkpoints of a frontier are *chosen* by their accuracies on the select split, and the area under
   their staircase is *measured* on the report split, in the order of the choice. Choosing and measuring on
   one split takes a maximum over noise, which inflates areas, the more so the more points there are.
2. Every strategy gets the same budget: K points from each of R runs per seed, the least that any has. Of a
   longer run K evenly spaced points are used, those that evaluating it K times would have given; of more runs,
   the area is the average over the choices of R.
3. The areas of a strategy's training seeds are averaged.
4. Intervals are bootstrap intervals over the report examples, with the same resamples for all strategies, so
   that differences are paired, and over the select examples, which might have chosen another front. From five
   seeds on they cover the luck of training too. p-values are adjusted over all pairs, by the step-down method of
   :func:`paretune.frontiers.inference.tell_apart`.
5. Where runs measured shifted images, the volume that these add as a third axis stands beside the area:
   :mod:`paretune.frontiers.third_axis`. It decides only where ``by="volume"`` asks for it.
6. Where the runs are those of a race, what it put out on the select split is not among the best:
   :mod:`paretune.frontiers.elimination`.
7. From these p-values and the margin follow who may be best, what is tied, and every sentence:
   :mod:`paretune.frontiers.deciding`.

What an interval is about is the area that this budget and this way of choosing give on average.
``benchmarks/coverage.py`` measures, on simulated training curves with a known truth, how often it holds it: from
60 examples on, or 100 groups of them, in 93 to 97 of 100 cases at 95 % (BCa to 98). In at most 5 of 100 comparisons
any of the strategies that are equal are told apart, and in at least 97 the set of those that may be best holds a best
one. With fewer than five seeds that is true of the trained models at hand, not of training them again. Outside, the
notes of a :class:`Condition` say so.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from paretune.frontiers.bootstrap import Units
from paretune.frontiers.cells import Cell, Samples, Trained, load_cell, narrow
from paretune.frontiers.elsewhere import measured_elsewhere
from paretune.frontiers.estimates import condition_of, estimated
from paretune.frontiers.notes import check_same_examples, notes
from paretune.frontiers.pareto import Reference, frontier_mask
from paretune.frontiers.race import race_of
from paretune.frontiers.settings import Settings
from paretune.frontiers.third_axis import with_third_axis
from paretune.frontiers.verdict import Comparison, Condition, Recommendation
from paretune.runs.store import Run, as_runs

# By task, threat, epsilon and attack: how it was compared, its runs with their labels, and what came of it.
KnownConditions = dict[tuple[str, ...], tuple[Settings, tuple[tuple[Run, str], ...], Condition]]
Groups = tuple[ArrayLike, ArrayLike]  # a label for each report example, and for each select example


def compare(
    runs: str | Path | Run | pd.DataFrame | Iterable[Run | str | Path],
    *,
    reference: Reference = (0.0, 0.0),
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    margin: float = 0.005,
    min_clean: float = 0.0,
    min_robust: float = 0.0,
    interval: Literal["basic", "bca"] = "basic",
    by: Literal["area", "volume"] = "area",
    groups: Mapping[str, Groups] | None = None,
) -> Comparison:
    """Compare the frontiers of all strategies among ``runs``, for each task, attack and epsilon on its own.

    A strategy is told from another by its configuration, and by the backbone where a task has several. Its
    runs of one training seed, with other learning rates say, are points of one frontier.

    Args:
        runs: a directory, runs from :func:`paretune.runs.load_runs`, several of either, or points: those rows of
            :func:`paretune.load_points` that are to count.
        reference: (clean, robust) where areas start; fix it before looking. (0, 0), or (chance, 0).
        level: of the intervals and tests, in (0, 1).
        resamples: of the report examples, at least 100.
        seed: of the resampling; the same seed gives the same numbers, whatever else is compared.
        margin: areas closer than this, in [0, 1), are equal for practical purposes in the recommendation.
        min_clean: the least clean accuracy that you would deploy, in [0, 1): areas are partial, see
            :func:`paretune.area`.
        min_robust: the least robust accuracy that you would deploy, in [0, 1).
        interval: of areas: "basic", or "bca" (bias-corrected and accelerated). Those of differences are symmetric, as
            their tests are.
        by: what decides, of areas under clean and robust accuracy: "area"; or "volume", which takes accuracy on shifted
            images as a third axis (:mod:`paretune.frontiers.third_axis`) and needs runs that measured it.
        groups: for tasks whose examples are not independent (several images of one patient, frames of one
            video, one image in several corruptions): task -> (a label for each report example, a label for
            each select example). Groups are then resampled instead of examples.

    Raises:
        FileNotFoundError: there are no runs.
        ValueError: no run has points, runs of one task were measured on different examples, an argument is out of
            range, or a strategy lacks the shifted accuracies that ``by="volume"`` needs.
    """
    settings = Settings(
        reference=reference,
        min_clean=min_clean,
        min_robust=min_robust,
        level=level,
        margin=margin,
        interval=interval,
        resamples=resamples,
        seed=seed,
        by=by,
    )
    return compare_runs(as_runs(runs), settings, groups)


def compare_runs(
    runs: list[Run],
    settings: Settings,
    groups: Mapping[str, Groups] | None = None,
    known: KnownConditions | None = None,
) -> Comparison:
    """:func:`compare`, of runs that are read.

    Args:
        runs: to compare.
        settings: options of the comparison.
        groups: as in :func:`compare`; the same whenever ``known`` is.
        known: conditions of earlier comparisons: one of the same runs (the same objects) is not made again. Those of this
            comparison take its place.
    """
    points = labelled_points(runs)
    before = dict(known or {})
    after: KnownConditions = {}
    if strange := sorted({*(groups or {})} - {*points["task"]}):
        raise ValueError(f"groups names the tasks {strange}, but the runs have {sorted({*points['task']})}")
    conditions = []
    for (task, *others), rows in points.groupby(["task", "threat", "epsilon", "attack"], sort=True):
        names = rows.drop_duplicates("run_index")
        of_runs = tuple((runs[i], label) for i, label in zip(names["run_index"], names["label"], strict=True))
        place = (str(task), *map(str, others))
        of_place = before.get(place)
        if of_place is None or of_place[:2] != (settings, of_runs):
            check_same_examples(rows, runs)
            condition = _compare_one(rows, runs, settings, (groups or {}).get(str(task)))
            of_place = (settings, of_runs, condition)
        after[place] = of_place
        conditions.append(of_place[2])
    if known is not None:
        known.clear()
        known.update(after)
    return Comparison(tuple(conditions))


def recommend(
    runs: str | Path | Run | pd.DataFrame | Iterable[Run | str | Path],
    *,
    task: str | None = None,
    max_trainable: int | None = None,
    max_seconds: float | None = None,
    **options: Any,
) -> tuple[Recommendation, ...]:
    """The strategy to use for each task, attack and epsilon, with its evidence and what would change it.

    It is the cheapest, by trainable parameters and then training time, of those that cannot be told apart
        from the largest area (or volume, with ``by="volume"``) or come within ``margin`` of it. What the data do not
        decide is said: :attr:`Recommendation.certainty`.

    Args:
        runs: as in :func:`compare`.
        task: only this one; ``None`` for all.
        max_trainable: leave out strategies with more trainable parameters.
        max_seconds: leave out strategies that trained longer, in seconds for one seed.
        **options: those of :func:`compare`, such as ``min_clean`` and ``margin``.

    Raises:
        FileNotFoundError, ValueError: as :func:`compare`; the task is unknown, or no strategy is within the
            limits.
    """
    loaded = of_task(as_runs(runs), task)
    conditions = compare(loaded, **options).conditions
    return tuple(
        condition.within(max_trainable=max_trainable, max_seconds=max_seconds).judged.recommendation
        for condition in conditions
    )


def of_task(runs: list[Run], task: str | None) -> list[Run]:
    """The runs of one task; all for ``None``.

    Raises:
        ValueError: no run has this task; the nearest is named.
    """
    if task is None:
        return runs
    tasks = sorted({str(run.config["task"]) for run in runs})
    if task not in tasks:
        near = difflib.get_close_matches(task, tasks, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there are no runs of task {task!r}; {hint}Tasks: {', '.join(tasks)}")
    return [run for run in runs if run.config["task"] == task]


def labelled_points(runs: list[Run]) -> pd.DataFrame:
    """All points with ``label``, a short name that tells strategies apart, ``run_index`` and ``chosen``.

    The label is the display name while that is unique in the task, else the configuration; with what else was learnt at once
    where some runs of the task learnt it alone or with other tasks. ``chosen`` marks
    the points on the frontier of the select split, among those of one label, seed and condition.

    Raises:
        ValueError: no run has points.
    """
    of_row = [index for index, run in enumerate(runs) for _ in range(len(run.points))]
    if not of_row:
        raise ValueError(f"none of the {len(runs)} runs has a point yet; wait for the first evaluation")
    backbones, companies = ([tell(run.config) for run in runs] for tell in (_backbone, _company))
    points = pd.concat([run.points for run in runs if len(run.points)], ignore_index=True).assign(
        run_index=of_row,
        backbone=[backbones[index] for index in of_row],
        company=[companies[index] for index in of_row],
    )
    configs = points.groupby(["task", "strategy"])["config"].transform("nunique")
    several = points.groupby("task")[["backbone", "company"]].transform("nunique")
    label = points["strategy"].where(configs == 1, points["config"])
    label = label.where(several["backbone"] == 1, label + " on " + points["backbone"])
    points["label"] = label.where(several["company"] == 1, label + points["company"])
    chosen = np.zeros(len(points), dtype=bool)
    clean, robust = (points[f"{name}_select"].to_numpy(dtype=float) for name in ("clean", "robust"))
    for rows in points.groupby(["task", "threat", "epsilon", "attack", "label", "seed"]).indices.values():
        chosen[rows] = frontier_mask(clean[rows], robust[rows])
    return points.assign(chosen=chosen)


def _compare_one(rows: pd.DataFrame, runs: list[Run], settings: Settings, groups: Groups | None) -> Condition:
    reference, seed = settings.start, settings.seed
    by_cell = [group for _, group in narrow(rows).groupby(["label", "seed"], sort=True)]
    budget = (
        int(rows.groupby("run_index").size().min()),
        min(int(group["run_index"].nunique()) for group in by_cell),
    )
    samples = _samples(rows, groups, seed)
    cells: dict[str, list[Trained[Cell]]] = {}
    for group in by_cell:
        cell = load_cell(group, runs, budget, reference, samples, seed)
        cells.setdefault(str(group["label"].iloc[0]), []).append(cell)
    judged = estimated(cells, samples, reference, rows, budget[0], settings)
    ranked = [area.strategy for area in judged.areas]
    race = race_of(runs, {str(label): [*of.unique()] for label, of in rows.groupby("label")["run_index"]})
    units = (len(samples.report), len(samples.select))
    condition = Condition(
        **condition_of(rows),
        areas=judged.areas,
        differences=judged.differences,
        k=budget[0],
        runs_per_seed=budget[1],
        examples=int(rows["examples"].iloc[0]),
        examples_select=int(rows["examples_select"].iloc[0]),
        groups=len(samples.report) if groups is not None else None,
        seeds_resampled=judged.seeds_resampled,
        notes=tuple(notes(rows, runs, budget, len(judged.differences), settings, units, groups is not None)),
        settings=settings,
        elsewhere=tuple(measured_elsewhere(rows, runs, ranked, settings.level, groups and groups[0])),
        race=race if race is not None and race.holds(settings) else None,
    )
    condition = dataclasses.replace(condition, notes=(*condition.notes, *condition.race_notes))
    return with_third_axis(condition, rows, runs, cells, samples)


def _samples(rows: pd.DataFrame, groups: Groups | None, seed: int) -> Samples:
    sizes = {"report": int(rows["examples"].iloc[0]), "select": int(rows["examples_select"].iloc[0])}
    task = rows["task"].iloc[0]
    if rows["examples_select"].nunique() > 1:
        raise ValueError(
            f"runs of task {task!r} chose on different numbers of examples: "
            f"{sorted({*rows['examples_select'].tolist()})}. Use one split"
        )
    for split, size in sizes.items():
        if size < 2:
            raise ValueError(f"task {task!r} has {size} {split} example; nothing can be resampled below two")
    if groups is None:
        return Samples.of(Units.of(sizes["report"]), Units.of(sizes["select"]), seed)
    units = []
    for (split, size), labels in zip(sizes.items(), groups, strict=True):
        if np.shape(labels) != (size,):
            raise ValueError(
                f"groups of task {task!r}: the {split} split has {size} examples, so its groups must have "
                f"the shape ({size},); got {np.shape(labels)}"
            )
        units.append(Units.of(size, labels))
        if len(units[-1]) < 2:
            raise ValueError(
                f"groups of task {task!r}: the {split} split has one group; at least two are needed"
            )
    return Samples.of(units[0], units[1], seed)


def _company(config: Mapping[str, Any]) -> str:
    """With which other tasks the run of this configuration learnt its own."""
    others = [name for name in config.get("together", ()) if name != config["task"]]
    return f" with {' and '.join(others)}" if others else " alone"


def _backbone(config: Mapping[str, Any]) -> str:
    value = config.get("backbone")
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

"""From a table of points back to the runs it was read from, which know which examples were right."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paretune.frontiers.comparing import compare_runs, labelled_points
from paretune.frontiers.settings import Settings
from paretune.frontiers.tables.ranking import TaskRanking
from paretune.frontiers.verdict import Condition
from paretune.runs.rows import ROW_FIELDS
from paretune.runs.store import Run, load_runs

_IDENTITY = ["step", "attack", "epsilon"]


def compare_own(
    frame: pd.DataFrame, points: pd.DataFrame, settings: Settings
) -> tuple[TaskRanking, ...] | None:
    """The rankings by :func:`paretune.compare`, if the table is of runs that are here and groups are strategies.

    Args:
        frame: the table as it came.
        points: the same rows as :func:`paretune.frontiers.tables.columns.tidy` makes them.
        settings: of the comparison.

    Returns:
        None where the table is from elsewhere, its runs are gone or differ from it, or its groups or tasks cut across
        their strategies or conditions.
    """
    if not {*ROW_FIELDS, "path"} <= {*frame.columns}:
        return None
    numbered = frame[["path", *_IDENTITY]].assign(row=np.arange(len(frame)))
    try:
        restricted = [_restricted(str(path), rows) for path, rows in numbered.groupby("path", sort=True)]
        loaded = labelled_points([run for run, _ in restricted])
    except (OSError, ValueError):
        return None
    named = points.iloc[np.concatenate([rows for _, rows in restricted])]
    there = {"clean": "clean", "robust": "robust"} | (
        {"shifted": "clean_elsewhere"} if "shifted" in named else {}
    )
    if not {*there.values()} <= {*loaded.columns}:
        return None
    for name, column in there.items():
        if not np.allclose(
            named[name].to_numpy(dtype=float), loaded[column].to_numpy(dtype=float), atol=1e-6
        ):
            return None
    condition = [*zip(*(loaded[name] for name in ("task", "threat", "epsilon", "attack")), strict=True)]
    groups = _one_to_one(
        [*zip(condition, loaded["label"], strict=True)], [*zip(named["task"], named["group"], strict=True)]
    )
    tasks = _one_to_one(condition, [*named["task"]])
    if groups is None or tasks is None:
        return None
    try:
        compared = compare_runs([run for run, _ in restricted], settings).conditions
    except OSError:  # points without their bits
        return None
    rankings = []
    for outcome in compared:
        key = (outcome.task, outcome.threat, outcome.epsilon, outcome.attack)
        names = {label: group for (of, label), (_, group) in groups.items() if of == key}
        sizes = loaded[[setting == key for setting in condition]].groupby("run_index").size()
        ranking = _ranking(outcome, tasks[key], names, (int(sizes.min()), int(sizes.max())))
        if "shifted" in named:
            if outcome.volumes is None or len(outcome.volumes.areas) < len(outcome.areas):
                return None
            volumes = _ranking(outcome.volumes, tasks[key], names, ranking.points[0])
            ranking = dataclasses.replace(ranking, volumes=volumes)
        rankings.append(ranking)
    return tuple(sorted(rankings, key=lambda ranking: ranking.task))


def _restricted(path: str, rows: pd.DataFrame) -> tuple[Run, list[int]]:
    """The run in ``path`` with no other points than the table has, and the row of each point."""
    if not all((Path(path) / name).is_file() for name in ("config.json", "points.jsonl")):
        raise ValueError(f"{path} is not a run directory")  # and is not searched for any
    (run,) = load_runs(path)
    points = enumerate(run.points[_IDENTITY].itertuples(index=False))
    places = {(int(step), str(attack), float(epsilon)): place for place, (step, attack, epsilon) in points}
    row_of: dict[int, int] = {}
    for step, attack, epsilon, row in rows[[*_IDENTITY, "row"]].itertuples(index=False):
        place = places.get((int(step), str(attack), float(epsilon)))
        if place is None:
            raise ValueError(f"{path} has no point of step {step}")
        row_of.setdefault(place, int(row))  # a row that is repeated counts once
    kept = sorted(row_of)
    return dataclasses.replace(run, points=run.points.iloc[kept]), [row_of[place] for place in kept]


def _one_to_one(a: list[Any], b: list[Any]) -> dict[Any, Any] | None:
    """What each of ``a`` is in ``b``; None unless they are two names of the same."""
    pairs = {*zip(a, b, strict=True)}
    return dict(pairs) if len(pairs) == len({*a}) == len({*b}) else None


def _ranking(condition: Condition, task: str, names: dict[str, str], points: tuple[int, int]) -> TaskRanking:
    """The condition as the table names it."""
    luck = (
        ", and cover the luck of training."
        if condition.seeds_resampled
        else "; with fewer than five training seeds they are about these trained models."
    )
    return TaskRanking(
        task=task,
        areas=tuple(
            dataclasses.replace(area, task=task, strategy=names[area.strategy]) for area in condition.areas
        ),
        differences=tuple(
            dataclasses.replace(d, task=task, strategy_a=names[d.strategy_a], strategy_b=names[d.strategy_b])
            for d in condition.differences
        ),
        k=condition.k,
        notes=condition.notes,
        settings=condition.settings,
        points=(points,) * len(condition.areas),
        equal_budgets=True,
        covers=(
            f"Intervals and tests are paired bootstraps over {condition.examples:,} test examples of the runs, which "
            f"{condition.examples_select:,} others chose{luck}"
        ),
        corner=condition.corner,
    )

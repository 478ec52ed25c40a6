"""Points with the configuration of their run beside them: one flat table, for files that other programs read."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from paretune.runs.fields import flat
from paretune.runs.store import Run


def point_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each point of ``runs``.

    Columns are those of :func:`paretune.load_points`, then ``finished`` and each field of the configurations behind
    ``config.``, such as ``config.optimizer.lr``. A column holds numbers, or texts: a list, a mapping, and a number
    among texts, are JSON. What a run does not have is missing.

    Raises:
        ValueError: no run has a point.
    """
    filled = [run for run in runs if len(run.points)]
    if not filled:
        raise ValueError(f"none of the {len(runs)} runs has a point yet; wait for the first evaluation")
    points = pd.concat([run.points for run in filled], ignore_index=True)
    fields = [
        {
            "path": str(run.path),
            "finished": run.done,
            **{f"config.{name}": value for name, value in flat(run.config).items()},
        }
        for run in filled
    ]
    names = [*dict.fromkeys(name for of_run in fields for name in of_run)]
    of_row = [place for place, run in enumerate(filled) for _ in range(len(run.points))]
    columns = {name: [of_run.get(name) for of_run in fields] for name in names}
    beside = pd.DataFrame({name: _column(values) for name, values in columns.items()}).iloc[of_row]
    told = {
        str(name): _column(points[name].tolist())
        for name in points
        if points[name].map(type).isin([dict, list]).any()
    }
    return pd.concat([points.assign(**told), beside.reset_index(drop=True)], axis="columns")


def _column(values: list[Any]) -> list[Any]:
    """Values of one kind, as a file of columns needs them."""
    known = [value for value in values if value is not None and value == value]  # NaN differs from itself
    for kinds in (bool, (int, float), str):
        if all(
            isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)) for value in known
        ):
            return values
    return [
        value if value is None or isinstance(value, str) or value != value else json.dumps(value)
        for value in values
    ]

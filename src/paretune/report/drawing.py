"""What a frontier plot shows, worked out once for every renderer: points, staircases, labels, colours, ranges."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.frontiers.comparing import labelled_points
from paretune.frontiers.pareto import frontier, frontier_mask
from paretune.report.labels import Range, place_labels
from paretune.report.runs import run_names, run_settings
from paretune.runs.store import Run, as_runs

# Okabe & Ito's palette for all forms of colour vision (https://jfly.uni-koeln.de/color/), without its yellow, which
# is too light for lines on white; grey is last. Shapes change with every name, and dashes with every round of colours,
# so colour is never the only difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#2B2B2B", "#8A8A8A")
# The same hues dark enough for text on white (contrast 4.5 and more).
TEXT_COLOURS = ("#00659E", "#AD4C00", "#007656", "#A24A7C", "#8A5F00", "#1C709F", "#2B2B2B", "#666666")
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "cross",
    "triangle-right",
    "triangle-left",
)
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3))  # pixels drawn and left out; the first is solid


@dataclass(frozen=True)
class Style:
    """How one strategy looks in every plot of a report."""

    number: int
    colour: str
    text: str
    shape: str
    dash: tuple[int, ...]


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A colour, a shape and a dash for each strategy, by its place in the alphabet; 64 marks before one repeats."""
    looks = {}
    for i, label in enumerate(sorted({*labels})):
        turn, number = divmod(i, len(COLOURS))
        shape = SHAPES[(number + turn) % len(SHAPES)]
        looks[label] = Style(number, COLOURS[number], TEXT_COLOURS[number], shape, DASHES[turn % len(DASHES)])
    return looks


@dataclass(frozen=True, eq=False)
class Drawing:
    """One frontier plot.

    Args:
        points: columns ``strategy``, ``seed``, ``step``, ``run`` (what one line joins), ``name`` (of the run),
            ``config``, ``clean``, ``robust``, ``chosen``, ``inside``.
        stairs: one staircase for each seed, columns ``strategy``, ``seed``, ``line`` (which staircase), ``clean``,
            ``robust``: by rising clean accuracy, the best robust accuracy of that seed at no less than it. Between two
            rows the height is that of the right one.
        labels: as :func:`paretune.report.labels.place_labels` gives them.
        clean: range of the horizontal axis, around the frontiers; poorer points lie outside.
        robust: range of the vertical one.
        origin: clean and robust accuracy where areas start.
        widths: in pixels, from the least to the most for which labels are placed.
    """

    points: pd.DataFrame
    stairs: pd.DataFrame
    labels: pd.DataFrame
    clean: Range
    robust: Range
    origin: tuple[float, float]
    widths: Range

    @property
    def most_seeds(self) -> int:
        """The number of staircases of the strategy that has the most."""
        return int(self.stairs.groupby("strategy")["line"].nunique().max())

    @property
    def outside(self) -> int:
        """The number of points outside the ranges."""
        return int((~self.points["inside"]).sum())


def as_points(source: str | Path | Run | Iterable[Run] | pd.DataFrame) -> pd.DataFrame:
    """Points with ``label`` and ``chosen``, from runs or from any table with ``strategy``, ``clean``, ``robust``.

    Of points that this function gave, they are what they are.

    Raises:
        ValueError: a column is missing, or an accuracy is not a finite number in [0, 1].
    """
    if not isinstance(source, pd.DataFrame):
        runs = as_runs(source)
        points = labelled_points(runs)
        names, settings, index = run_names(runs), run_settings(runs), points["run_index"]
        return points.assign(run_name=[names[i] for i in index], settings=[settings[i] for i in index])
    if {"label", "chosen", "run_name", "settings"} <= {*source.columns}:
        return source.reset_index(drop=True)  # what this function gave
    if missing := {"strategy", "clean", "robust"} - {*source.columns}:
        raise ValueError(f"points lacks the columns {sorted(missing)}; it has {[*source.columns]}")
    points = source.reset_index(drop=True)
    frontier_mask(points["clean"], points["robust"])
    points = points.assign(label=points["strategy"].astype(str))
    defaults: dict[str, Any] = {
        "seed": "",
        "step": np.arange(len(points)),
        "task": "",
        "attack": "",
        "threat": "",
        "config": "",
    }
    for name, value in ({**defaults, "epsilon": 0.0}).items():
        if name not in points:
            points[name] = value
    run = points["path"] if "path" in points else points["label"]
    points = points.assign(
        run_index=run, run_name=[Path(str(path)).name for path in run], settings=points["config"].astype(str)
    )
    splits = (
        ("clean_select", "robust_select")
        if {"clean_select", "robust_select"} <= {*points}
        else ("clean", "robust")
    )
    chosen = np.zeros(len(points), dtype=bool)
    for rows in points.groupby(["task", "threat", "epsilon", "attack", "label", "seed"]).indices.values():
        chosen[rows] = frontier_mask(*(points[name].to_numpy()[rows] for name in splits))
    return points.assign(chosen=chosen)


def draw(
    points: pd.DataFrame,
    *,
    widths: Range,
    height: int = 430,
    limit: int = 4000,
    origin: tuple[float, float] = (0.0, 0.0),
) -> Drawing:
    """Work out the plot of one condition.

    Args:
        points: as :func:`as_points` gives them.
        widths: of the plotting area in pixels, from the least to the most for which labels are placed.
        height: of the plotting area in pixels.
        limit: points drawn at most; those on frontiers go first, then an even choice of the others.
        origin: clean and robust accuracy where areas start.
    """
    chosen = points[points["chosen"]]
    clean, robust = range_around(chosen["clean"]), range_around(chosen["robust"])
    stairs = pd.concat(
        [
            pd.DataFrame(
                staircase(rows[["clean", "robust"]].to_numpy(dtype=float)), columns=["clean", "robust"]
            ).assign(strategy=label, seed=seed, line=f"{label}/{seed}")
            for label, of_label in chosen.groupby("label", sort=True)
            for seed, rows in of_label.groupby("seed", sort=True)
        ],
        ignore_index=True,
    )
    table = pd.DataFrame(
        {
            "strategy": points["label"],
            "seed": points["seed"],
            "step": points["step"],
            "run": points["label"] + "/" + points["seed"].astype(str) + "/" + points["run_index"].astype(str),
            "name": points["run_name"],
            "config": points["settings"],
            "clean": points["clean"].astype(float),
            "robust": points["robust"].astype(float),
            "chosen": points["chosen"],
        }
    ).sort_values(["run", "step"])
    if len(table) > limit:
        first, rest = table[table["chosen"]], table[~table["chosen"]]
        kept = pd.concat([_thin(first, limit), _thin(rest, max(0, limit - len(first)))])
        table = kept.sort_values(["run", "step"])
    inside = table["clean"].between(*clean) & table["robust"].between(*robust)
    table = table.assign(inside=inside)
    ring = pd.DataFrame({"clean": [origin[0]], "robust": [origin[1]], "chosen": [True]})
    marks = pd.concat([table[inside][[*ring]], ring])
    labels = place_labels(stairs, marks, clean, robust, widths, height)
    return Drawing(table, stairs, labels, clean, robust, origin, widths)


def _thin(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    count = min(count, len(rows))
    return rows.iloc[np.arange(count) * len(rows) // max(count, 1)]


def range_around(values: "pd.Series[Any]") -> Range:
    """The range of an axis, with room on both sides."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.07 * (high - low), 0.01, 0.02 - (high - low) / 2)  # at least 4 points from end to end
    return max(0.0, low - pad), min(1.0, high + pad)


def staircase(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners below points of shape ``(points, 2)``, from the left edge over the front down to the axis at the right."""
    front = frontier(points)[::-1]
    return np.concatenate([[[0.0, front[0, 1]]], front, [[front[-1, 0], 0.0]]])

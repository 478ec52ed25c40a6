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
# is too light for lines on white. Shapes change with every name, so colour is never the only difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
# The same hues dark enough for text on white (contrast 4.5 and more).
TEXT_COLOURS = ("#00659E", "#AD4C00", "#007656", "#A24A7C", "#8A5F00", "#1C709F", "#666666")
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


@dataclass(frozen=True)
class Style:
    """How one strategy looks in every plot of a report."""

    number: int
    colour: str
    text: str
    shape: str


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A colour and a shape for each strategy, by its place in the alphabet; 56 pairs before one repeats."""
    return {
        label: Style(
            i % len(COLOURS),
            COLOURS[i % len(COLOURS)],
            TEXT_COLOURS[i % len(COLOURS)],
            SHAPES[i % len(SHAPES)],
        )
        for i, label in enumerate(sorted({*labels}))
    }


@dataclass(frozen=True, eq=False)
class Drawing:
    """One frontier plot.

    Args:
        points: columns ``strategy``, ``seed``, ``step``, ``run`` (what one line joins), ``name`` (of the run),
            ``config``, ``clean``, ``robust``, ``chosen``, ``inside``.
        stairs: by rising clean accuracy, columns ``strategy``, ``clean``, ``robust``, ``low``, ``high``: the average
            over seeds of the best robust accuracy at no less than each clean accuracy, and what every seed and what
            any seed attains there. Between two rows the height is that of the right one.
        labels: columns ``strategy``, ``text``, ``clean``, ``robust``, ``side``; a strategy without a free place
            has no row.
        clean, robust: the ranges of the axes, around the frontiers; poorer points lie outside.
    """

    points: pd.DataFrame
    stairs: pd.DataFrame
    labels: pd.DataFrame
    clean: Range
    robust: Range

    @property
    def shaded(self) -> bool:
        """Whether a strategy has seeds with different frontiers, so that there is something to shade."""
        return bool((self.stairs["low"] < self.stairs["high"]).any())

    @property
    def outside(self) -> int:
        """The number of points outside the ranges."""
        return int((~self.points["inside"]).sum())


def as_points(source: str | Path | Run | Iterable[Run] | pd.DataFrame) -> pd.DataFrame:
    """Points with ``label`` and ``chosen``, from runs or from any table with ``strategy``, ``clean``, ``robust``.

    Raises:
        ValueError: a column is missing, or an accuracy is not a finite number in [0, 1].
    """
    if not isinstance(source, pd.DataFrame):
        runs = as_runs(source)
        points = labelled_points(runs)
        names, settings, index = run_names(runs), run_settings(runs), points["run_index"]
        return points.assign(run_name=[names[i] for i in index], settings=[settings[i] for i in index])
    if missing := {"strategy", "clean", "robust"} - {*source.columns}:
        raise ValueError(f"points lacks the columns {sorted(missing)}; it has {[*source.columns]}")
    points = source.reset_index(drop=True)
    frontier_mask(points["clean"], points["robust"])
    points = points.assign(label=points["strategy"].astype(str))
    defaults: dict[str, Any] = {
        "seed": 0,
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


def draw(points: pd.DataFrame, *, size: tuple[int, int], limit: int = 4000) -> Drawing:
    """Work out the plot of one condition.

    Args:
        points: as :func:`as_points` gives them.
        size: width and height of the plotting area in pixels, for which labels are placed.
        limit: points drawn at most; those on frontiers go first, then an even choice of the others.
    """
    chosen = points[points["chosen"]]
    clean, robust = _range(chosen["clean"]), _range(chosen["robust"])
    by_label = [(str(label), rows) for label, rows in chosen.groupby("label", sort=True)]
    stairs = pd.concat([_stairs(rows, label) for label, rows in by_label])
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
    labels = place_labels(stairs, table[inside], clean, robust, size)
    return Drawing(table, stairs, labels, clean, robust)


def _thin(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    count = min(count, len(rows))
    return rows.iloc[np.arange(count) * len(rows) // max(count, 1)]


def _range(values: "pd.Series[Any]") -> Range:
    low, high = float(values.min()), float(values.max())
    pad = max(0.07 * (high - low), 0.01, 0.02 - (high - low) / 2)  # at least 4 points from end to end
    return max(0.0, low - pad), min(1.0, high + pad)


def _stairs(chosen: pd.DataFrame, label: str) -> pd.DataFrame:
    """From the left edge down to the axis at the right; averaging over seeds keeps the area under them.

    ``low`` and ``high`` are the attainment surfaces of all seeds and of any; see
    :func:`paretune.frontiers.indicators.attainment_surface`.
    """
    cleans, by_seed = _fronts(chosen)
    across = np.concatenate([[0.0], cleans[::-1], cleans[:1]])
    heights = np.hstack([by_seed[:, -1:], by_seed[:, ::-1], np.zeros((len(by_seed), 1))])
    table = pd.DataFrame({"clean": across, "robust": heights.mean(axis=0)})
    table = table.assign(low=heights.min(axis=0), high=heights.max(axis=0))
    # Seeds chose different checkpoints; where the staircases go on level, a corner says nothing.
    level = (table[["robust", "low", "high"]] == table[["robust", "low", "high"]].shift(-1)).all(axis=1)
    level.iloc[0] = False
    return table[~level].assign(strategy=label).reset_index(drop=True)


def _fronts(chosen: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All clean accuracies, falling, and the best robust accuracy of each seed at no less: (seeds, accuracies)."""
    cleans = np.sort(chosen["clean"].unique())[::-1]
    return cleans, np.stack([_best_robust(rows, cleans) for _, rows in chosen.groupby("seed")])


def _best_robust(rows: pd.DataFrame, cleans: NDArray[np.float64]) -> NDArray[np.float64]:
    """max {robust : clean >= c} for each c of ``cleans``."""
    front = frontier(rows[["clean", "robust"]].to_numpy())
    position = np.searchsorted(-front[:, 0], -cleans, side="right")  # points at least that clean
    return np.concatenate(([0.0], front[:, 1]))[position]

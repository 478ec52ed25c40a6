"""What a frontier plot shows, worked out once for every renderer: points, staircases, labels, colours, ranges."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.pareto import frontier, frontier_mask
from paretune.results import Run, as_runs
from paretune.stats import labelled_points

Range = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

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
        points: columns ``strategy``, ``seed``, ``step``, ``run``, ``clean``, ``robust``, ``chosen``, ``inside``.
        stairs: corners in drawing order, columns ``strategy``, ``clean``, ``robust``, ``order``: the average over
            seeds of the best robust accuracy at each clean accuracy.
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
    def outside(self) -> int:
        """The number of points outside the ranges."""
        return int((~self.points["inside"]).sum())


def as_points(source: str | Path | Run | Iterable[Run] | pd.DataFrame) -> pd.DataFrame:
    """Points with ``label`` and ``chosen``, from runs or from any table with ``strategy``, ``clean``, ``robust``.

    Raises:
        ValueError: a column is missing, or an accuracy is not a finite number in [0, 1].
    """
    if not isinstance(source, pd.DataFrame):
        return labelled_points(as_runs(source))
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
    }
    for name, value in ({**defaults, "epsilon": 0.0}).items():
        if name not in points:
            points[name] = value
    points = points.assign(run_index=points["path"] if "path" in points else points["label"])
    splits = (
        ("clean_select", "robust_select")
        if {"clean_select", "robust_select"} <= {*points}
        else ("clean", "robust")
    )
    chosen = np.zeros(len(points), dtype=bool)
    for rows in points.groupby(["task", "attack", "epsilon", "label", "seed"]).indices.values():
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
    stairs = pd.concat([_stairs(rows, str(label)) for label, rows in chosen.groupby("label", sort=True)])
    table = pd.DataFrame(
        {
            "strategy": points["label"],
            "seed": points["seed"],
            "step": points["step"],
            "run": points["label"] + "/" + points["seed"].astype(str) + "/" + points["run_index"].astype(str),
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
    labels = _place_labels(stairs, table[inside], clean, robust, size)
    return Drawing(table, stairs, labels, clean, robust)


def _thin(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    count = min(count, len(rows))
    return rows.iloc[np.arange(count) * len(rows) // max(count, 1)]


def _range(values: "pd.Series[Any]") -> Range:
    low, high = float(values.min()), float(values.max())
    pad = max(0.07 * (high - low), 0.01, 0.02 - (high - low) / 2)  # at least 4 points from end to end
    return max(0.0, low - pad), min(1.0, high + pad)


def _stairs(chosen: pd.DataFrame, label: str) -> pd.DataFrame:
    """Corners from the bottom right to the left edge; averaging over seeds keeps the area under them."""
    cleans = np.sort(chosen["clean"].unique())[::-1]
    best = np.mean([_best_robust(rows, cleans) for _, rows in chosen.groupby("seed")], axis=0)
    corners = [(cleans[0], 0.0)]
    for clean, robust in zip(cleans, best, strict=True):
        corners += [(clean, corners[-1][1]), (clean, float(robust))]
    corners.append((0.0, corners[-1][1]))
    table = pd.DataFrame(corners, columns=["clean", "robust"]).drop_duplicates()
    return table.assign(strategy=label, order=np.arange(len(table)))


def _best_robust(rows: pd.DataFrame, cleans: NDArray[np.float64]) -> NDArray[np.float64]:
    """max {robust : clean >= c} for each c of ``cleans``."""
    front = frontier(rows[["clean", "robust"]].to_numpy())
    position = np.searchsorted(-front[:, 0], -cleans, side="right")  # points at least that clean
    return np.concatenate(([0.0], front[:, 1]))[position]


def _place_labels(
    stairs: pd.DataFrame, points: pd.DataFrame, clean: Range, robust: Range, size: tuple[int, int]
) -> pd.DataFrame:
    """Put each name at a corner of its staircase, where it hides least; greedily, in order of the names."""
    width, height = size

    def pixels(table: pd.DataFrame) -> NDArray[np.float64]:
        x = (table["clean"].to_numpy() - clean[0]) / (clean[1] - clean[0]) * width
        y = (robust[1] - table["robust"].to_numpy()) / (robust[1] - robust[0]) * height
        return np.column_stack([x, y])

    dots = pixels(points)
    corners = {str(label): pixels(rows) for label, rows in stairs.groupby("strategy", sort=True)}
    segments = np.concatenate([np.concatenate([c[:-1], c[1:]], axis=1) for c in corners.values()])
    taken: list[Box] = []
    placed = []
    for label, own in corners.items():
        text = shorten(label)
        best: tuple[float, Any] = (np.inf, None)
        inside = np.flatnonzero(((own >= 0) & (own <= [width, height])).all(axis=1))
        for corner in inside[:: max(1, len(inside) // 24)]:
            x, y = own[corner]
            for side in ("right", "left"):  # above right of the corner, or below left of it
                box = _box(x, y, side, 7.0 * len(text))
                cost = (
                    3 * _crossed(box, segments)
                    + _hit(box, dots)
                    + 40 * sum(overlap(box, other) for other in taken)
                )
                off = box[0] < 2 or box[1] < 2 or box[2] > width - 2 or box[3] > height - 2
                cost += 100 * off + (side == "left") + abs(corner / len(own) - 0.5)  # rather near the middle
                if cost < best[0]:
                    best = (cost, (corner, side, box))
        if best[0] < 12:
            corner, side, box = best[1]
            taken.append(box)
            row = stairs[stairs["strategy"] == label].iloc[corner]
            placed.append((label, text, row["clean"], row["robust"], side))
    return pd.DataFrame(placed, columns=["strategy", "text", "clean", "robust", "side"])


def _box(x: float, y: float, side: str, width: float) -> Box:
    """Left, top, right, bottom of a label 8 pixels off its corner, 14 pixels high."""
    if side == "right":
        return x + 7, y - 21, x + 9 + width, y - 5
    return x - 9 - width, y + 5, x - 7, y + 21


def _crossed(box: Box, segments: NDArray[np.float64]) -> int:
    """How many of the axis-parallel segments touch the box."""
    x, y = np.sort(segments[:, [0, 2]], axis=1), np.sort(segments[:, [1, 3]], axis=1)
    return int(((x[:, 0] < box[2]) & (x[:, 1] > box[0]) & (y[:, 0] < box[3]) & (y[:, 1] > box[1])).sum())


def _hit(box: Box, dots: NDArray[np.float64]) -> int:
    """How many points, 4 pixels wide, touch the box."""
    x, y = dots[:, 0], dots[:, 1]
    return int(((x > box[0] - 4) & (x < box[2] + 4) & (y > box[1] - 4) & (y < box[3] + 4)).sum())


def shorten(label: str) -> str:
    """Long names without their middle: configurations begin alike and differ towards the end."""
    return label if len(label) <= 26 else f"{label[:12]}…{label[-13:]}"


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share some area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

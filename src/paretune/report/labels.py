"""Where the names of strategies stand in a plot: at their staircase, where they hide least."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Range = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def place_labels(
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
    segments = np.concatenate([_segments(c) for c in corners.values()])
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


def _segments(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lines of a staircase, ``(x, y, x, y)``: up or down at the left corner, then across to the right one."""
    left, right = corners[:-1], corners[1:]
    turn = np.column_stack([left[:, 0], right[:, 1]])
    return np.concatenate([np.hstack([left, turn]), np.hstack([turn, right])])


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

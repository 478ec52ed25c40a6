"""Where the names of strategies stand in a plot: beside their marks, and never on any mark or other name."""

import unicodedata
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Range = tuple[float, float]
# Where it is, as a fraction of the width, and left, top, right, bottom in pixels: from there, and from the top.
Box = tuple[float, float, float, float, float]
# Alignment of a name at each side of its place, and the pixels right and down to its end and its middle.
SIDES: dict[str, tuple[str, int, int]] = {
    "upper right": ("left", 8, -13),
    "lower left": ("right", -8, 13),
    "lower right": ("left", 8, 13),
    "upper left": ("right", -8, -13),
    "left": ("right", -11, 0),
    "right": ("left", 11, 0),
}
CHOSEN, VISITED = 7.0, 4.0  # pixels from the middle of a mark to its edge
_HALF = 8.0  # of the height of a name
_TRIED = 40  # marks of a strategy


def place_labels(
    stairs: pd.DataFrame, points: pd.DataFrame, clean: Range, robust: Range, widths: Range, height: int
) -> pd.DataFrame:
    """Put each name at a mark on its staircases where it crosses the fewest lines; greedily, in order of the names.

    Args:
        stairs: columns ``strategy``, ``line``, ``clean``, ``robust``.
        points: the marks in view, columns ``clean``, ``robust``, ``chosen``.
        clean: range of the horizontal axis.
        robust: range of the vertical axis.
        widths: of the plot in pixels, from the least to the most; names are clear of marks at all of them.
        height: of the plot in pixels.

    Returns:
        Columns ``strategy``, ``text``, ``room`` (pixels), ``clean``, ``robust``, ``side``; a strategy without a free
        place has no row.
    """

    def places(table: pd.DataFrame) -> NDArray[np.float64]:
        x = (table["clean"].to_numpy() - clean[0]) / (clean[1] - clean[0])
        y = (robust[1] - table["robust"].to_numpy()) / (robust[1] - robust[0]) * height
        return np.column_stack([x, y])

    half = np.where(points["chosen"], CHOSEN, VISITED)
    x, y = places(points).T
    taken = [*np.column_stack([x, -half, y - half, half, y + half])]
    middle = np.array([sum(widths) / 2, 1.0])
    segments = np.concatenate([_segments(places(rows) * middle) for _, rows in stairs.groupby("line")])
    placed = []
    for label, rows in stairs.groupby("strategy", sort=True):
        text = shorten(str(label))
        room = text_width(text)
        turns = rows[rows.duplicated("line") & rows.duplicated("line", keep="last")]  # the ends are no marks
        corners = places(turns)
        free = [
            (_crossed(box, segments, middle[0]), abs(corner / len(corners) - 0.5), order, corner, side, box)
            for corner in range(0, len(corners), -(-len(corners) // _TRIED))
            for order, (side, box) in enumerate(
                free_sides(corners[corner, 0], corners[corner, 1], room, taken, widths, height)
            )
        ]
        if free:
            *_, corner, side, box = min(free, key=lambda place: place[:4])
            taken.append(np.array(box))
            row = turns.iloc[corner]
            placed.append((label, text, room, row["clean"], row["robust"], side))
    return pd.DataFrame(placed, columns=["strategy", "text", "room", "clean", "robust", "side"])


def free_sides(
    x: float, y: float, room: float, taken: Iterable[Box | NDArray[np.float64]], widths: Range, height: float
) -> list[tuple[str, Box]]:
    """The sides of a place on which a name of ``room`` pixels lies in the plot and on nothing, at all ``widths``.

    Args:
        x: of the place, as a fraction of the width.
        y: of the place, in pixels from the top.
        room: pixels that the name takes.
        taken: boxes of marks and other names.
        widths: of the plot in pixels, from the least to the most.
        height: of the plot in pixels.
    """
    others = np.array([*taken]).reshape(-1, 5)
    free = []
    for side, (align, dx, dy) in SIDES.items():
        left = dx if align == "left" else dx - room
        box = (x, left, y + dy - _HALF, left + room, y + dy + _HALF)
        within = box[2] >= 1 and box[4] <= height - 1
        within &= all(x * width + left >= 1 and x * width + left + room <= width - 1 for width in widths)
        if within and not _overlapped(box, others, widths).any():
            free.append((side, box))
    return free


def text_width(text: str, size: float = 13) -> float:
    """Pixels that are enough for bold ``text`` in any usual font: letters differ, and fonts do."""
    narrow, wide = "iljtfr.,:;'|!()[] ", "mwMW@%—…"
    letters = (
        1.1
        if letter in wide or unicodedata.east_asian_width(letter) in "WF"
        else 0.48
        if letter in narrow
        else 0.84
        if letter.isupper()
        else 0.74
        for letter in text
    )
    return size * sum(letters)


def shorten(label: str) -> str:
    """Long names without their middle: configurations begin alike and differ towards the end."""
    return label if len(label) <= 26 else f"{label[:12]}…{label[-13:]}"


def area_text(area: float, low: float | None, high: float | None) -> str:
    """``0.469 (0.357 to 0.574)``: an area and its interval, where there is one."""
    return f"{area:.3f}" if low is None or high is None else f"{area:.3f} ({low:.3f} to {high:.3f})"


def origin_text(origin: tuple[float, float], clean: Range, robust: Range) -> str:
    """Where areas start: ``clean 0%, robust 0%``, and where that is in a plot with these ranges."""
    sides = [
        side
        for value, (low, high), sides in (
            (origin[0], clean, ("to the left", "to the right")),
            (origin[1], robust, ("below", "above")),
        )
        for side, out in zip(sides, (value < low, value > high), strict=True)
        if out
    ]
    where = f"outside this view, {' and '.join(sides)}" if sides else "the ring"
    return f"clean {100 * origin[0]:g}%, robust {100 * origin[1]:g}% ({where})"


def _segments(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lines of a staircase, ``(x, y, x, y)``: up or down at the left corner, then across to the right one."""
    left, right = corners[:-1], corners[1:]
    turn = np.column_stack([left[:, 0], right[:, 1]])
    return np.concatenate([np.hstack([left, turn]), np.hstack([turn, right])])


def _crossed(box: Box, segments: NDArray[np.float64], width: float) -> int:
    """How many of the axis-parallel segments touch the box."""
    x, y = np.sort(segments[:, [0, 2]], axis=1) - box[0] * width, np.sort(segments[:, [1, 3]], axis=1)
    return int(((x[:, 0] < box[3]) & (x[:, 1] > box[1]) & (y[:, 0] < box[4]) & (y[:, 1] > box[2])).sum())


def _overlapped(box: Box, others: NDArray[np.float64], widths: Range) -> NDArray[np.bool_]:
    """Which of the boxes share some area with this one at one of the widths, or between."""
    apart = np.sort(np.outer(others[:, 0] - box[0], widths), axis=1)  # pixels, at least and at most
    across = (apart[:, 1] + others[:, 3] > box[1]) & (apart[:, 0] + others[:, 1] < box[3])
    return across & (others[:, 2] < box[4]) & (others[:, 4] > box[2])

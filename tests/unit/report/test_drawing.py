"""What plots show follows from the points: stairs through them alone, names clear of marks, honest ranges."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.frontiers.pareto import area
from paretune.report.drawing import Drawing, as_points, draw, styles
from paretune.report.labels import CHOSEN, SIDES, VISITED, free_sides, origin_text, shorten, text_width
from paretune.runs.store import load_points, load_runs

ACCURACY = st.integers(0, 20).map(lambda n: n / 20)
TABLE = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 2), ACCURACY, ACCURACY), min_size=1, max_size=25
)
WIDTHS, HEIGHT = (600, 1000), 430  # pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@pytest.mark.slow
@given(TABLE)
def test_staircases_are_those_of_single_seeds_and_turn_only_at_their_points(
    rows: list[tuple[str, int, float, float]],
) -> None:
    points = as_points(pd.DataFrame(rows, columns=["strategy", "seed", "clean", "robust"]))
    drawing = draw(points, widths=WIDTHS)
    assert drawing.stairs["line"].nunique() == len({(label, seed) for label, seed, *_ in rows})
    for _, stairs in drawing.stairs.groupby("line"):
        label, seed = stairs.iloc[0][["strategy", "seed"]]
        own = points[(points["label"] == label) & (points["seed"] == seed)]
        corners = [*stairs[["clean", "robust"]].itertuples(index=False, name=None)]
        assert {*corners[1:-1]} <= {*own[["clean", "robust"]].itertuples(index=False, name=None)}
        clean, robust = stairs["clean"].to_numpy(), stairs["robust"].to_numpy()
        assert (np.diff(clean) >= 0).all()
        assert (np.diff(robust) <= 0).all()
        under = np.sum(np.diff(clean) * robust[1:])
        assert under == pytest.approx(area(own["clean"], own["robust"]), abs=1e-12)


@pytest.mark.slow
@given(TABLE)
def test_chosen_points_are_in_the_ranges_and_the_others_are_counted(
    rows: list[tuple[str, int, float, float]],
) -> None:
    points = as_points(pd.DataFrame(rows, columns=["strategy", "seed", "clean", "robust"]))
    drawing = draw(points, widths=WIDTHS)
    chosen = drawing.points[drawing.points["chosen"]]
    assert chosen["inside"].all()
    assert drawing.outside == (~drawing.points["inside"]).sum()
    for low, high in (drawing.clean, drawing.robust):
        assert 0 <= low < high <= 1


def boxes(drawing: Drawing, width: float) -> tuple[list[Box], list[Box]]:
    """Names and marks in pixels, in a plot of this width; bold letters of 13 pixels in a wide font."""

    def pixels(row: "pd.Series[Any]") -> tuple[float, float]:
        (left, right), (bottom, top) = drawing.clean, drawing.robust
        return (row["clean"] - left) / (right - left) * width, (top - row["robust"]) / (top - bottom) * HEIGHT

    names, marks = [], []
    for _, row in drawing.labels.iterrows():
        x, y = pixels(row)
        align, dx, dy = SIDES[row["side"]]
        left = x + dx - (align == "right") * row["room"]
        names.append((left, y + dy - 7, left + row["room"], y + dy + 7))
    for _, row in drawing.points[drawing.points["inside"]].iterrows():
        x, y = pixels(row)
        half = CHOSEN if row["chosen"] else VISITED
        marks.append((x - half, y - half, x + half, y + half))
    return names, marks


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def crowd(strategies: int, name: str) -> pd.DataFrame:
    """Strategies that lie almost on one staircase."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{name} {n}", clean, 1.2 - clean + 0.01 * rng.random())
        for n in range(strategies)
        for clean in np.linspace(0.5, 0.9, 5)
    ]
    return as_points(pd.DataFrame(rows, columns=["strategy", "clean", "robust"]))


def check_names(drawing: Drawing) -> None:
    for width in (WIDTHS[0], 777.7, WIDTHS[1]):
        names, marks = boxes(drawing, width)
        for left, top, right, bottom in names:
            assert left > 0
            assert right < width
            assert top > 0
            assert bottom < HEIGHT
        assert not any(overlap(a, b) for i, a in enumerate(names) for b in names[:i])
        assert not any(overlap(name, mark) for name in names for mark in marks)


@pytest.mark.parametrize("name", ["A", "A strategy with a long name"])
@pytest.mark.parametrize("strategies", [1, 4, 12])
def test_names_lie_in_the_plot_and_neither_on_marks_nor_on_each_other(strategies: int, name: str) -> None:
    drawing = draw(crowd(strategies, name), widths=WIDTHS)
    assert len(drawing.labels) >= 1
    check_names(drawing)


@given(TABLE)
def test_no_name_lies_on_a_mark_wherever_points_are(rows: list[tuple[str, int, float, float]]) -> None:
    check_names(
        draw(as_points(pd.DataFrame(rows, columns=["strategy", "seed", "clean", "robust"])), widths=WIDTHS)
    )


def test_a_name_without_a_free_place_is_left_out() -> None:
    """Marks everywhere, none further from the next than a name is high."""
    grid = [("A", clean, robust) for clean in np.linspace(0, 1, 101) for robust in np.linspace(0, 1, 41)]
    points = as_points(pd.DataFrame(grid, columns=["strategy", "clean", "robust"])).assign(chosen=True)
    assert draw(points, widths=WIDTHS, limit=5000).labels.empty


def test_wide_letters_have_room() -> None:
    """The advance widths of DejaVu Sans Bold, wider than most, are 1.04 em for m and 0.69 em for n."""
    assert text_width("mmmm") > 13 * 4 * 1.04
    assert text_width("nnnn") > 13 * 4 * 0.69
    assert text_width("模型") > 2 * 13


def test_where_areas_start_is_said_and_found() -> None:
    clean, robust = (0.3, 0.9), (0.0, 0.5)
    assert origin_text((0.0, 0.0), clean, robust) == "clean 0%, robust 0% (outside this view, to the left)"
    assert origin_text((0.0, 0.0), clean, (0.1, 0.5)).endswith("(outside this view, to the left and below)")
    assert origin_text((0.4, 0.125), clean, robust) == "clean 40%, robust 12.5% (the ring)"
    assert origin_text((0.95, 0.6), clean, robust).endswith("(outside this view, to the right and above)")


def test_long_names_keep_what_tells_them_apart() -> None:
    names = [f"Adapter(placement='both', reduction={n})" for n in (8, 16)]
    assert [shorten(name) for name in names] == [
        "Adapter(plac… reduction=8)",
        "Adapter(plac…reduction=16)",
    ]
    assert shorten("BitFit") == "BitFit"


def test_every_name_finds_room_where_there_is_room(runs: Path) -> None:
    points = as_points(runs)
    drawing = draw(points[points["threat"] == "L2"], widths=WIDTHS)
    assert {*drawing.labels["strategy"]} == {"LoRA", "Compacter", "BitFit", "FullFineTune"}


def test_points_beyond_the_limit_are_thinned_evenly_and_frontiers_last(runs: Path) -> None:
    points = as_points(runs)
    points = points[points["threat"] == "L2"]
    chosen = int(points["chosen"].sum())
    whole, thin = draw(points, widths=WIDTHS), draw(points, widths=WIDTHS, limit=chosen + 5)
    assert len(thin.points) == chosen + 5 < len(whole.points) == 64
    assert int(thin.points["chosen"].sum()) == chosen
    assert thin.stairs.equals(whole.stairs)
    assert len(draw(points, widths=WIDTHS, limit=5).points) == 5


def test_every_strategy_looks_different_and_the_same_in_every_plot() -> None:
    looks = styles(f"s{n:02}" for n in range(64))
    assert len({(style.colour, style.shape) for style in looks.values()}) == 64
    assert len({(style.colour, style.dash) for style in [*looks.values()][:32]}) == 32
    assert styles(["b", "a"]) == styles(["a", "b", "b"])
    first = [*looks.values()][:8]
    assert len({style.colour for style in first}) == len({style.shape for style in first}) == 8


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_names_can_be_read_on_white() -> None:
    for style in styles("abcdefgh").values():
        assert 1.05 / (luminance(style.text) + 0.05) >= 4.5
        assert 1.05 / (luminance(style.colour) + 0.05) >= 2


def test_points_come_from_runs_or_tables(runs: Path) -> None:
    from_runs, from_table = as_points(load_runs(runs)), as_points(load_points(runs))
    assert [*from_runs["chosen"]] == [*from_table["chosen"]]
    assert [*from_runs["label"]] == [*from_table["label"]]
    table = pd.DataFrame({"strategy": ["x", "x"], "clean": [0.9, 0.8], "robust": [0.2, 0.1]}, index=[7, 7])
    assert [*as_points(table)["chosen"]] == [True, False]
    with pytest.raises(ValueError, match=r"lacks the columns \['robust', 'strategy'\]"):
        as_points(table[["clean"]])
    with pytest.raises(ValueError, match=r"row 1: robust .*percentages"):
        as_points(table.assign(robust=[0.2, 20]))


def test_a_side_is_free_only_if_it_is_at_every_width() -> None:
    """A name of 100 pixels to the right reaches over the next mark in the narrower plot."""
    mark = (0.65, -CHOSEN, 200 - CHOSEN, CHOSEN, 200 + CHOSEN)
    for widths, free in (((1000, 1000), True), ((600, 600), False), ((600, 1000), False)):
        assert ("right" in dict(free_sides(0.5, 200.0, 100.0, [mark], widths, HEIGHT))) == free

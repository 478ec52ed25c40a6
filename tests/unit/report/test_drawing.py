"""What plots show follows from the points: stairs with the right area, names without collisions, honest ranges."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.frontiers.indicators import attainment_surface
from paretune.frontiers.pareto import area
from paretune.report.drawing import Drawing, as_points, draw, styles
from paretune.report.labels import overlap, shorten
from paretune.runs.store import load_points, load_runs

ACCURACY = st.integers(0, 20).map(lambda n: n / 20)
TABLE = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 2), ACCURACY, ACCURACY), min_size=1, max_size=25
)
SIZE = (600, 400)


@given(TABLE)
def test_the_area_under_the_stairs_is_the_average_over_seeds(
    rows: list[tuple[str, int, float, float]],
) -> None:
    points = as_points(pd.DataFrame(rows, columns=["strategy", "seed", "clean", "robust"]))
    drawing = draw(points, size=SIZE)
    for label, stairs in drawing.stairs.groupby("strategy"):
        of_label = points[points["label"] == label]
        expected = np.mean([area(seed["clean"], seed["robust"]) for _, seed in of_label.groupby("seed")])
        clean = stairs["clean"].to_numpy()
        assert (np.diff(clean) >= 0).all()
        for height in ("robust", "low", "high"):
            assert (np.diff(stairs[height]) <= 0).all()
        assert np.sum(np.diff(clean) * stairs["robust"][1:]) == pytest.approx(expected, abs=1e-12)


@given(TABLE)
def test_the_shade_reaches_from_what_every_seed_attains_to_what_any_does(
    rows: list[tuple[str, int, float, float]],
) -> None:
    points = as_points(pd.DataFrame(rows, columns=["strategy", "seed", "clean", "robust"]))
    for label, stairs in draw(points, size=SIZE).stairs.groupby("strategy"):
        of_label = points[points["label"] == label]
        sets = [(seed["clean"], seed["robust"]) for _, seed in of_label.groupby("seed")]
        for name, share in (("low", 1.0), ("high", 1 / len(sets))):
            surface = attainment_surface(sets, share)
            expected = area(surface[:, 0], surface[:, 1]) if len(surface) else 0.0
            assert np.sum(np.diff(stairs["clean"]) * stairs[name][1:]) == pytest.approx(expected, abs=1e-12)


@given(TABLE)
def test_chosen_points_are_in_the_ranges_and_the_others_are_counted(
    rows: list[tuple[str, int, float, float]],
) -> None:
    points = as_points(pd.DataFrame(rows, columns=["strategy", "seed", "clean", "robust"]))
    drawing = draw(points, size=SIZE)
    chosen = drawing.points[drawing.points["chosen"]]
    assert chosen["inside"].all()
    assert drawing.outside == (~drawing.points["inside"]).sum()
    for low, high in (drawing.clean, drawing.robust):
        assert 0 <= low < high <= 1


def label_boxes(drawing: Drawing) -> list[tuple[float, float, float, float]]:
    """Where names are printed, in pixels; 13-pixel letters are about 6.5 wide."""
    boxes = []
    for _, row in drawing.labels.iterrows():
        x = (row["clean"] - drawing.clean[0]) / (drawing.clean[1] - drawing.clean[0]) * SIZE[0]
        y = (drawing.robust[1] - row["robust"]) / (drawing.robust[1] - drawing.robust[0]) * SIZE[1]
        width = 6.5 * len(row["text"])
        left, top = (x + 8, y - 17) if row["side"] == "right" else (x - 8 - width, y + 6)
        boxes.append((left, top, left + width, top + 12))
    return boxes


def crowd(strategies: int, name: str) -> pd.DataFrame:
    """Strategies that lie almost on one staircase."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{name} {n}", clean, 1.2 - clean + 0.01 * rng.random())
        for n in range(strategies)
        for clean in np.linspace(0.5, 0.9, 5)
    ]
    return as_points(pd.DataFrame(rows, columns=["strategy", "clean", "robust"]))


@pytest.mark.parametrize("name", ["A", "A strategy with a long name"])
@pytest.mark.parametrize("strategies", [1, 4, 12])
def test_names_lie_in_the_plot_and_not_on_each_other(strategies: int, name: str) -> None:
    drawing = draw(crowd(strategies, name), size=SIZE)
    boxes = label_boxes(drawing)
    assert len(boxes) >= min(strategies, 2)
    for left, top, right, bottom in boxes:
        assert left > 0
        assert right < SIZE[0]
        assert top > 0
        assert bottom < SIZE[1]
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_long_names_keep_what_tells_them_apart() -> None:
    names = [f"Adapter(placement='both', reduction={n})" for n in (8, 16)]
    assert [shorten(name) for name in names] == [
        "Adapter(plac… reduction=8)",
        "Adapter(plac…reduction=16)",
    ]
    assert shorten("BitFit") == "BitFit"


def test_every_name_finds_room_where_there_is_room(runs: Path) -> None:
    points = as_points(runs)
    drawing = draw(points[points["threat"] == "L2"], size=SIZE)
    assert {*drawing.labels["strategy"]} == {"LoRA", "Compacter", "BitFit", "FullFineTune"}


def test_points_beyond_the_limit_are_thinned_evenly_and_frontiers_last(runs: Path) -> None:
    points = as_points(runs)
    points = points[points["threat"] == "L2"]
    chosen = int(points["chosen"].sum())
    whole, thin = draw(points, size=SIZE), draw(points, size=SIZE, limit=chosen + 5)
    assert len(thin.points) == chosen + 5 < len(whole.points) == 64
    assert int(thin.points["chosen"].sum()) == chosen
    assert thin.stairs.equals(whole.stairs)
    assert len(draw(points, size=SIZE, limit=5).points) == 5


def test_every_strategy_looks_different_and_the_same_in_every_plot() -> None:
    looks = styles(f"s{n:02}" for n in range(56))
    assert len({(style.colour, style.shape) for style in looks.values()}) == 56
    assert styles(["b", "a"]) == styles(["a", "b", "b"])
    first = [*looks.values()][:7]
    assert len({style.colour for style in first}) == len({style.shape for style in first}) == 7


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_names_can_be_read_on_white() -> None:
    for style in styles("abcdefg").values():
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

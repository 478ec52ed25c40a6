"""The plots show the numbers of the comparison, and nothing else."""

import dataclasses
from pathlib import Path

import pytest

from paretune.frontiers.budget import budget_curves
from paretune.frontiers.comparing import compare
from paretune.frontiers.verdict import Condition
from paretune.report.drawing import as_points, draw, styles
from paretune.report.specs.areas import Quantity, forest_spec
from paretune.report.specs.costs import cost_spec
from paretune.report.specs.curves import budget_spec
from paretune.report.specs.frontier import ON_PAGE, ON_WHITE, matrix
from paretune.report.specs.overview import overview_spec
from paretune.report.specs.pairs import matrix_spec

pytest.importorskip("vl_convert")
LOOKS = styles(["BitFit", "Compacter", "FullFineTune", "LoRA"])


@pytest.fixture(scope="module")
def condition(runs: Path) -> Condition:
    return compare(runs).conditions[0]


def test_areas_and_seeds(condition: Condition) -> None:
    data = forest_spec(condition.areas, LOOKS, ON_PAGE)["datasets"]
    assert [(row["strategy"], row["area"], row["low"], row["high"]) for row in data["areas"]] == [
        (each.strategy, round(each.area, 4), round(each.low, 4), round(each.high, 4))
        for each in condition.areas
    ]
    assert [row["area"] for row in data["seeds"]] == [
        round(area, 4) for each in condition.areas for area in each.per_seed
    ]


def test_changes_may_be_below_zero_and_have_a_line_there(condition: Condition) -> None:
    areas = [
        dataclasses.replace(area, area=area.area - 1, low=area.low - 1, high=area.high - 1)
        for area in condition.areas
    ]
    spec = forest_spec(areas, LOOKS, ON_PAGE, Quantity("Change", "change", "Changes", change=True))
    low, high = spec["encoding"]["x"]["scale"]["domain"]
    assert low < min(area.low for area in areas) < 0 < high
    assert spec["datasets"]["areas"][0]["text"].endswith(f"{areas[0].area:+.3f}")
    assert spec["description"].startswith("Changes: ")
    assert "zero" in str(spec["layer"][0])
    assert "zero" not in str(forest_spec(condition.areas, LOOKS, ON_PAGE)["layer"][0]["data"])


def test_each_pair_stands_in_the_matrix_twice_and_turned_round(condition: Condition) -> None:
    cells = {
        (cell["strategy"], cell["other"]): cell
        for cell in matrix_spec(condition, LOOKS, ON_PAGE)["datasets"]["cells"]
    }
    assert len(cells) == len(condition.areas) * (len(condition.areas) - 1)
    for d in condition.differences:
        cell, turned = cells[d.strategy_a, d.strategy_b], cells[d.strategy_b, d.strategy_a]
        assert (cell["ahead"], cell["behind"]) == (turned["behind"], turned["ahead"])
        assert (cell["ahead"], cell["equivalent"]) == pytest.approx((d.ahead, d.equivalent), abs=1e-4)
        assert cell["difference"] == -turned["difference"] == round(d.difference, 4)
        assert (cell["low"], cell["high"]) == (-turned["high"], -turned["low"])
        assert cell["p"] == turned["p"] == round(d.p_value, 4)
        if d.p_value < 0.05:
            assert (cell["sign"], turned["sign"]) == ("▲", "▼")
        else:
            assert cell["sign"] == turned["sign"] == ("≈" if d.practically == "equivalent" else "")


@pytest.mark.parametrize("cost", ["trainable_parameters", "train_seconds"])
def test_costs(condition: Condition, cost: str) -> None:
    rows = cost_spec(condition, LOOKS, ON_PAGE, cost)["datasets"]["costs"]  # type: ignore[arg-type]
    assert [(row["strategy"], row["cost"], row["area"]) for row in rows] == [
        (each.strategy, getattr(each, cost), round(each.area, 4)) for each in condition.areas
    ]


def test_budget_curves_end_at_what_was_evaluated(runs: Path, condition: Condition) -> None:
    curves = [curve for curve in budget_curves(runs) if curve.attack == condition.attack]
    rows = budget_spec(curves, LOOKS, ON_PAGE)["datasets"]["rows"]
    assert {row["strategy"] for row in rows} == {*LOOKS}
    for curve in curves:
        own = [(row["points"], row["area"]) for row in rows if row["strategy"] == curve.strategy]
        assert own == [(k, round(area, 4)) for k, area in zip(curve.points, curve.areas, strict=True)]
    assert max(row["points"] for row in rows) == 8


def test_small_frontiers_have_the_large_ones_stairs(runs: Path) -> None:
    points = as_points(runs)
    drawing = draw(points[points["threat"] == "L2"], widths=(600, 1000))
    data = overview_spec(drawing, LOOKS, ON_PAGE, description="")["datasets"]
    assert len({row["line"] for row in data["stairs"]}) == 8
    assert [row["robust"] for row in data["stairs"]] == [
        round(height, 4) for height in drawing.stairs["robust"]
    ]
    assert len(data["chosen"]) == drawing.points["chosen"].sum()


def test_pictures_on_white_have_no_parameters_and_no_colours_of_the_page(condition: Condition) -> None:
    for spec in (
        forest_spec(condition.areas, LOOKS, ON_WHITE),
        matrix_spec(condition, LOOKS, ON_WHITE),
        cost_spec(condition, LOOKS, ON_WHITE),
    ):
        assert not spec["params"]
        assert "var(--" not in str(spec)
        assert "isolated" not in str(spec)


def test_costs_of_nothing_have_a_place(condition: Condition) -> None:
    """A strategy that trains nothing, in no time."""
    free = [dataclasses.replace(each, trainable_parameters=0, train_seconds=0.0) for each in condition.areas]
    for cost in ("trainable_parameters", "train_seconds"):
        spec = cost_spec(dataclasses.replace(condition, areas=tuple(free)), LOOKS, ON_PAGE, cost)  # type: ignore[arg-type]
        assert spec["encoding"]["x"]["scale"]["type"] == "symlog"


def test_a_matrix_has_its_columns_and_rows_in_the_order_that_is_given() -> None:
    """Vega-Lite would sort them by name."""
    places = matrix(["b", "a"], ["2", "1"], {"title": None})
    assert (places["x"]["field"], places["x"]["sort"]) == ("column", ["b", "a"])
    assert (places["y"]["field"], places["y"]["sort"]) == ("row", ["2", "1"])
    assert places["x"]["axis"]["orient"] == "top"

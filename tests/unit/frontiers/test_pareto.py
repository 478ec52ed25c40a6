"""Frontiers and areas on points whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from paretune.frontiers.pareto import area, frontier, frontier_mask, ordered_area


@pytest.mark.parametrize(
    ("clean", "robust", "reference", "expected"),
    [
        ([], [], (0, 0), 0.0),
        ([0.5], [0.4], (0, 0), 0.2),
        ([0.9, 0.8, 0.7], [0.1, 0.4, 0.3], (0, 0), 0.9 * 0.1 + 0.8 * 0.3),
        ([0.9, 0.8, 0.7], [0.1, 0.4, 0.3], (0.5, 0.2), 0.3 * 0.2 / (0.5 * 0.8)),
        ([1.0, 0.2], [1.0, 0.9], (0, 0), 1.0),
        ([1.0, 0.0], [0.0, 1.0], (0, 0), 0.0),
        ([0.1, 0.9], [0.9, 0.0], (0.1, 0.0), 0.0),  # on the reference's axes: nothing
        ([0.5, 0.5, 0.5], [0.4, 0.4, 0.3], (0, 0), 0.2),
    ],
)
def test_areas_with_a_closed_form(
    clean: list[float], robust: list[float], reference: tuple[float, float], expected: float
) -> None:
    assert area(clean, robust, reference) == pytest.approx(expected, abs=1e-15)


def test_a_dominating_front_has_the_larger_area_where_the_trapezoid_rule_says_otherwise() -> None:
    a, b = ([0.90], [0.30]), ([0.50, 0.85], [0.28, 0.10])
    assert area(*a) == pytest.approx(0.27)
    assert area(*b) == pytest.approx(0.175)


def test_the_order_given_is_kept_by_the_signed_area() -> None:
    clean, robust = np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.4, 0.3])
    assert ordered_area(clean[:2], robust[:2]) == pytest.approx(area(clean, robust))
    assert ordered_area(clean, robust) == pytest.approx(0.33 - 0.7 * 0.1)  # the last point takes area away
    assert ordered_area(clean[:0], robust[:0]) == 0
    batch = ordered_area(np.stack([clean, clean]), np.stack([robust, robust[::-1]]), (0.1, 0.05))
    assert batch.shape == (2,)
    assert batch[0] == pytest.approx(ordered_area(clean, robust, (0.1, 0.05)))


def test_equal_points_are_on_the_frontier_once() -> None:
    clean, robust = [0.5, 0.9, 0.5, 0.9, 0.4], [0.5, 0.1, 0.5, 0.1, 0.5]
    assert [*frontier_mask(clean, robust)] == [True, True, False, False, False]
    assert frontier_mask([], []).shape == (0,)


def test_frontier_keeps_the_type_and_sorts_by_falling_clean_accuracy() -> None:
    points = pd.DataFrame({"clean": [0.7, 0.9, 0.8, 0.6], "robust": [0.5, 0.1, 0.3, 0.4], "name": [*"abcd"]})
    assert [*frontier(points)["name"]] == [*"bca"]
    assert frontier(points[["clean", "robust"]].to_numpy()).tolist() == [[0.9, 0.1], [0.8, 0.3], [0.7, 0.5]]
    assert frontier([]).shape == (0, 2)
    assert frontier(points.iloc[:0]).empty
    with pytest.raises(ValueError, match=r"lacks the columns \['robust'\]"):
        frontier(points[["clean"]])
    with pytest.raises(ValueError, match=r"shape \(points, 2\)"):
        frontier([0.1, 0.2])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "row 1: robust must be a finite accuracy"),
        (np.inf, "row 1: robust must be"),
        (-0.01, "row 1: robust must be"),
        (35.0, "row 1: robust .* percentages: divide by 100"),
    ],
)
def test_what_is_no_accuracy_is_named_and_never_dropped(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        area([0.9, 0.8], [0.1, value])
    with pytest.raises(ValueError, match=message):
        frontier_mask([0.9, 0.8], [0.1, value])
    with pytest.raises(ValueError, match="clean"):
        area([value], [0.5])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="one length"):
        area([0.9], [0.1, 0.2])
    for reference in [(1.0, 0.0), (0.0, -0.1), (np.nan, 0.0)]:
        with pytest.raises(ValueError, match="reference must be two accuracies"):
            area([0.9], [0.1], reference)


def test_floors_leave_the_part_of_the_plane_above_them() -> None:
    clean, robust = [0.9, 0.8, 0.7], [0.1, 0.4, 0.3]
    assert area(clean, robust, min_clean=0.75) == pytest.approx((0.15 * 0.1 + 0.05 * 0.3) / 0.25)
    assert area(clean, robust, min_robust=0.2) == pytest.approx(0.8 * 0.2 / 0.8)
    assert area(clean, robust, (0.1, 0.05), min_clean=0.05, min_robust=0.2) == area(clean, robust, (0.1, 0.2))
    assert area(clean, robust, min_clean=0.9) == 0
    for floors in ({"min_clean": 1.0}, {"min_robust": -0.1}, {"min_clean": np.nan}):
        with pytest.raises(ValueError, match=rf"{next(iter(floors))} must be an accuracy in \[0, 1\)"):
            area(clean, robust, **floors)


@pytest.mark.parametrize(
    ("column", "other"), [("epsilon", 8 / 255), ("attack", "AutoAttack()"), ("task", "b")]
)
def test_points_that_no_frontier_can_hold_together_are_named(column: str, other: object) -> None:
    points = pd.DataFrame({"clean": [0.9, 0.8, 0.7], "robust": [0.1, 0.2, 0.3], "task": "a"})
    points["attack"], points["epsilon"] = "PGD()", 4 / 255
    assert len(frontier(points)) == 3
    points[column] = [points[column].iloc[0]] * 2 + [other]
    with pytest.raises(ValueError, match=f"row 2: {column} is .* one frontier holds points of one {column}"):
        frontier(points)

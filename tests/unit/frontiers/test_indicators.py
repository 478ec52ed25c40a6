"""Indicators beside the area, on points whose answer is known."""

import numpy as np
import pytest

from paretune.frontiers.indicators import (
    attainment_surface,
    epsilon_indicator,
    hull_area,
    trapezoid_area,
)
from paretune.frontiers.pareto import area


def test_the_hull_adds_the_triangles_between_the_corners() -> None:
    assert hull_area([0.5], [0.4]) == pytest.approx(0.2)
    assert hull_area([0.8, 0.4], [0.2, 0.6]) == pytest.approx(0.8 * 0.2 + 0.4 * 0.4 + 0.4 * 0.4 / 2)
    # (0.6, 0.3) lies below the line from (0.8, 0.2) to (0.4, 0.6): a mixture beats it.
    assert hull_area([0.8, 0.6, 0.4], [0.2, 0.3, 0.6]) == pytest.approx(hull_area([0.8, 0.4], [0.2, 0.6]))
    assert hull_area([0.9], [0.5], (0.5, 0.25)) == pytest.approx(0.4 * 0.25 / (0.5 * 0.75))
    assert hull_area([], []) == hull_area([0.4], [0.9], (0.5, 0.0)) == 0


def test_the_trapezoid_ranks_a_dominated_front_first_as_its_caveat_says() -> None:
    assert trapezoid_area([0.9], [0.3]) == 0
    assert trapezoid_area([0.5, 0.85], [0.28, 0.1]) == pytest.approx(0.35 * 0.19)
    assert area([0.9], [0.3]) > area([0.5, 0.85], [0.28, 0.1])
    assert trapezoid_area([], []) == 0


def test_the_epsilon_indicator_says_who_lacks_what() -> None:
    ahead, behind = ([0.9, 0.6], [0.3, 0.5]), ([0.8, 0.5], [0.2, 0.4])
    assert epsilon_indicator(ahead, behind) == pytest.approx((-0.1, 0.1))
    assert epsilon_indicator(behind, ahead) == pytest.approx((0.1, -0.1))
    assert epsilon_indicator(ahead, ahead) == (0, 0)
    crossing = ([0.9], [0.1]), ([0.5], [0.6])
    assert epsilon_indicator(*crossing) == pytest.approx((0.5, 0.4))
    assert epsilon_indicator(*crossing, kind="multiplicative") == pytest.approx((6, 1.8))
    with pytest.raises(ValueError, match="other is empty"):
        epsilon_indicator(ahead, ([], []))
    with pytest.raises(ValueError, match="points has an accuracy of 0"):
        epsilon_indicator(([0.9], [0.0]), ahead, kind="multiplicative")
    with pytest.raises(ValueError, match="kind must be"):
        epsilon_indicator(ahead, behind, kind="ratio")  # type: ignore[arg-type]


def test_the_surface_of_all_sets_lies_under_that_of_half_and_under_that_of_any() -> None:
    sets = [([0.9, 0.5], [0.1, 0.5]), ([0.75], [0.25]), ([0.6], [0.6])]
    assert attainment_surface(sets, 1.0).tolist() == [[0.6, 0.1], [0.5, 0.25]]
    assert attainment_surface(sets, 2 / 3).tolist() == [[0.75, 0.1], [0.6, 0.25], [0.5, 0.5]]
    assert attainment_surface(sets, 1 / 3).tolist() == [[0.9, 0.1], [0.75, 0.25], [0.6, 0.6]]
    assert attainment_surface([([], []), *sets], 1.0).shape == (0, 2)
    for level in (0, 1.1, np.nan):
        with pytest.raises(ValueError, match="level must be a share"):
            attainment_surface(sets, level)
    with pytest.raises(ValueError, match="at least one set"):
        attainment_surface([], 0.5)

"""What must hold of indicators for every set of points; moocore as a witness."""

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paretune.frontiers.indicators import (
    attainment_surface,
    epsilon_indicator,
    hull_area,
)
from paretune.frontiers.pareto import area, frontier

# A grid with few values makes ties; floats make the rest.
ACCURACY = st.one_of(st.integers(0, 8).map(lambda n: n / 8), st.floats(0, 1))
POSITIVE = st.one_of(st.integers(1, 8).map(lambda n: n / 8), st.floats(0.01, 1))
FLOOR = st.floats(0, 0.9)
Points = NDArray[np.float64]


def points(accuracy: st.SearchStrategy[float] = ACCURACY) -> st.SearchStrategy[Points]:
    return st.lists(st.tuples(accuracy, accuracy), min_size=1, max_size=30).map(np.array)


@given(points(), ACCURACY, st.integers(0, 1))
def test_a_better_point_never_lowers_area_or_hull(two: Points, value: float, column: int) -> None:
    better = two.copy()
    better[0, column] = max(better[0, column], value)
    assert area(*better.T) >= area(*two.T) - 1e-12
    assert hull_area(*better.T) >= hull_area(*two.T) - 1e-12


@given(points(), st.tuples(FLOOR, FLOOR))
def test_the_hull_lies_between_the_staircase_and_the_box_around_it(
    two: Points, reference: tuple[float, float]
) -> None:
    staircase, hull = area(*two.T, reference), hull_area(*two.T, reference)
    beyond = two[(two > reference).all(axis=1)]
    box = float(np.prod((beyond.max(axis=0) - reference) / np.subtract(1, reference))) if len(beyond) else 0.0
    assert staircase - 1e-12 <= hull <= box + 1e-12
    assert hull_area(*frontier(two).T, reference) == pytest.approx(hull, abs=1e-12)


@given(points(POSITIVE), points(POSITIVE))
def test_the_epsilon_indicator_is_that_of_moocore(two: Points, other: Points) -> None:
    lacks = epsilon_indicator((two[:, 0], two[:, 1]), (other[:, 0], other[:, 1]))
    expected = [moocore.epsilon_additive(a, ref=b, maximise=True) for a, b in ((two, other), (other, two))]
    assert lacks == pytest.approx(expected, abs=1e-12)
    factors = epsilon_indicator((two[:, 0], two[:, 1]), (other[:, 0], other[:, 1]), kind="multiplicative")
    expected = [moocore.epsilon_mult(a, ref=b, maximise=True) for a, b in ((two, other), (other, two))]
    assert factors == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50)
@given(st.lists(points(), min_size=1, max_size=5), st.integers(1, 5))
def test_the_attainment_surface_is_that_of_moocore(sets: list[Points], count: int) -> None:
    count = min(count, len(sets))
    rows = np.concatenate(sets)
    labels = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
    # moocore minimises, gives the surface of a percentage of the sets, and orders by the first accuracy.
    expected = moocore.eaf(-rows, labels, percentiles=[100 * count / len(sets)])
    surface = attainment_surface([(each[:, 0], each[:, 1]) for each in sets], count / len(sets))
    expected = -expected[np.argsort(expected[:, 0]), :2]  # by falling first accuracy
    assert surface.tolist() == (expected + 0.0).tolist()


@given(st.lists(points(), min_size=1, max_size=5), points())
def test_the_surface_holds_what_its_share_of_sets_attains(sets: list[Points], targets: Points) -> None:
    pairs = [(each[:, 0], each[:, 1]) for each in sets]
    share = [np.mean([(each >= target).all(axis=1).any() for each in sets]) for target in targets]
    surface = attainment_surface(pairs, 0.5)
    inside = [(surface >= target).all(axis=1).any() for target in targets]
    assert np.array_equal(inside, np.array(share) >= 0.5)

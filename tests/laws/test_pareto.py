"""What must hold for every set of points."""

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paretune.frontiers.pareto import area, frontier, frontier_mask, ordered_area

# A grid with few values makes ties; floats make the rest.
ACCURACY = st.one_of(st.integers(0, 8).map(lambda n: n / 8), st.floats(0, 1))
POINTS = st.lists(st.tuples(ACCURACY, ACCURACY), min_size=1, max_size=30).map(np.array)
REFERENCE = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9))
Points = NDArray[np.float64]
Reference = tuple[float, float]


@given(POINTS, REFERENCE)
def test_the_area_is_the_hypervolume(points: Points, reference: Reference) -> None:
    a0, r0 = reference
    volume = moocore.hypervolume(points, ref=np.array(reference), maximise=True)
    assert area(*points.T, reference) == pytest.approx(volume / ((1 - a0) * (1 - r0)), abs=1e-12)


@given(POINTS)
def test_the_frontier_is_what_nothing_dominates(points: Points) -> None:
    assert np.array_equal(
        frontier_mask(*points.T), moocore.is_nondominated(points, maximise=True, keep_weakly=False)
    )
    front = frontier(points)
    assert (np.diff(front[:, 0]) < 0).all()
    assert (np.diff(front[:, 1]) > 0).all()


@given(POINTS, REFERENCE, st.randoms(use_true_random=False))
def test_order_repetition_and_dominated_points_do_not_matter(
    points: Points, reference: Reference, random
) -> None:  # type: ignore[no-untyped-def]
    expected = area(*points.T, reference)
    rows = [*points, *points[: random.randint(0, len(points))]]  # repetitions
    rows += [row * random.random() for row in points[:3]]  # dominated
    random.shuffle(rows)
    assert area(*np.array(rows).T, reference) == pytest.approx(expected, abs=1e-12)
    assert area(*frontier(points).T, reference) == pytest.approx(expected, abs=1e-12)
    assert 0 <= expected <= 1 + 1e-12


@given(POINTS, REFERENCE, st.tuples(ACCURACY, ACCURACY))
def test_a_further_point_never_lowers_the_area(
    points: Points, reference: Reference, point: tuple[float, float]
) -> None:
    assert area(*np.vstack([points, point]).T, reference) >= area(*points.T, reference) - 1e-12


@given(POINTS)
def test_the_signed_area_of_the_frontier_in_its_order_is_the_area(points: Points) -> None:
    assert ordered_area(*frontier(points).T) == pytest.approx(area(*points.T), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_monte_carlo_agrees(seed: int) -> None:
    """Independent of any formula: the share of random targets that some point meets."""
    rng = np.random.default_rng(seed)
    points = rng.random((12, 2)) * 0.9
    reference = (0.1, 0.05)
    targets = np.array(reference) + rng.random((200_000, 2)) * (1 - np.array(reference))
    met = (points[None] >= targets[:, None]).all(axis=2).any(axis=1).mean()
    assert area(*points.T, reference) == pytest.approx(met, abs=5 * np.sqrt(met * (1 - met) / 200_000))

"""Squared distances, pairs of samples, and kinds as values."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from paretune._values import parse
from paretune.shifts.distances import DISTANCES, MMD, OTDD, Frechet, Kind
from paretune.shifts.distances.base import squared_distances
from tests.unit.shifts.distances.samples import pair


def test_squared_distances_are_those_of_scipy_and_keep_their_rules() -> None:
    points = 1e4 + np.random.default_rng(0).standard_normal((30, 50))
    points[3] = points[4]
    found = squared_distances(points)
    np.testing.assert_allclose(found, cdist(points, points, "sqeuclidean"), rtol=1e-9, atol=1e-8)
    assert (found == found.T).all()
    assert (found >= 0).all()
    assert (found.diagonal() == 0).all()


def test_a_pair_has_blocks_sides_and_classes() -> None:
    both = pair(np.array([[0.0], [1.0]]), np.array([[3.0], [5.0], [6.0]]), [1, 0], [2, 1, 2])
    np.testing.assert_allclose(both.between, [[9, 25, 36], [4, 16, 25]], atol=1e-12)
    first, second = both.sides
    np.testing.assert_allclose(first.between, [[0, 1], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(second.between, [[0, 4, 9], [4, 0, 1], [9, 1, 0]], atol=1e-12)
    assert [each.tolist() for each in both.classes(both.second)] == [[1], [0, 2]]


@pytest.mark.parametrize(
    "kind",
    [OTDD(), OTDD(inner="gaussian", entropy=0.05, debiased=True, on="pixels"), MMD(bandwidth=2.0), Frechet()],
    ids=repr,
)
def test_a_kind_is_read_from_the_call_that_it_prints_as(kind: Kind) -> None:
    assert parse(repr(kind), DISTANCES) == kind


def test_names_are_those_of_the_classes() -> None:
    assert [kind.__name__ for kind in DISTANCES.values()] == list(DISTANCES)
    assert parse("otdd", DISTANCES) == OTDD()

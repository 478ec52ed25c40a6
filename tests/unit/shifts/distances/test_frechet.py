"""Fréchet distances in closed form."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from paretune.shifts.distances import Frechet
from paretune.shifts.distances.frechet import gaussian_distance
from tests.unit.shifts.distances.samples import pair


def published(a: np.ndarray, b: np.ndarray) -> float:
    """As FID is usually computed: a square root of the product of covariances."""
    first, second = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = np.real(sqrtm(first @ second))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


@pytest.mark.parametrize("dimensions", [1, 4])
def test_it_is_the_formula_of_the_papers(dimensions: int) -> None:
    generator = np.random.default_rng(0)
    a = generator.standard_normal((40, dimensions)) @ generator.standard_normal((dimensions, dimensions))
    b = 2 + generator.standard_normal((25, dimensions))
    assert Frechet().of(pair(a, b)) == pytest.approx(published(a, b), rel=1e-9)


def test_covariances_of_fewer_examples_than_dimensions_are_exact_too() -> None:
    """Two points each, in the plane: both covariances have rank one, and the root is known."""
    a = np.array([[0.0, 0.0], [2.0, 0.0]])  # variance 2 along the first axis
    b = np.array([[1.0, 1.0], [1.0, 5.0]])  # variance 8 along the second
    assert Frechet().of(pair(a, b)) == pytest.approx(9 + 2 + 8)
    turned = np.array([[-1.0, 3.0], [3.0, 3.0]])  # variance 8 along the first, the same mean as b
    assert Frechet().of(pair(a, turned)) == pytest.approx(9 + 2 + 8 - 2 * 4)


def test_gaussians_of_large_samples_are_at_their_distance() -> None:
    """N(0, 1) and N(1, 4): 1 + (2 − 1)² = 2, and as much for the other direction of both."""
    generator = np.random.default_rng(1)
    values = []
    for _ in range(50):
        a, b = generator.standard_normal((100, 1)), 1 + 2 * generator.standard_normal((100, 1))
        values.append(Frechet().of(pair(a, b)))
        assert Frechet().of(pair(b, a)) == pytest.approx(values[-1])
    assert np.mean(values) == pytest.approx(2, abs=0.25)


def test_the_same_sample_is_at_zero_and_a_moved_one_at_the_square_of_the_way() -> None:
    a = np.random.default_rng(2).standard_normal((10, 30))
    assert Frechet().of(pair(a, a)) == pytest.approx(0, abs=1e-9)
    assert Frechet().of(pair(a, a + 3)) == pytest.approx(9 * 30)
    assert Frechet().of(pair(a, a[::-1] + 3)) == pytest.approx(9 * 30)


def test_large_numbers_do_not_hide_small_differences() -> None:
    a = np.random.default_rng(3).standard_normal((20, 5))
    assert Frechet().of(pair(a + 1e6, a + 1e6 + 1)) == pytest.approx(5, rel=1e-6)


def test_distances_within_and_between_are_all_that_it_takes() -> None:
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [5.0]])
    blocks = [((x - y.T) ** 2) for x, y in ((a, a), (a, b), (b, b))]
    assert gaussian_distance(*blocks) == pytest.approx(16 + 2)

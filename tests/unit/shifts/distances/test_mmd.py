"""Maximum mean discrepancies, against sums written out."""

import math

import numpy as np
import pytest

from paretune.shifts.distances import MMD
from tests.unit.shifts.distances.samples import pair


def test_it_is_equation_3_with_the_median_heuristic() -> None:
    a, b = np.array([[0.0], [1.0], [3.0]]), np.array([[7.0], [8.0]])
    pooled = [0.0, 1.0, 3.0, 7.0, 8.0]
    ways = sorted(abs(x - y) for i, x in enumerate(pooled) for y in pooled[:i])
    assert len(ways) == 10
    median = math.sqrt((ways[4] ** 2 + ways[5] ** 2) / 2)  # of the squares, which differ little

    def k(x: float, y: float) -> float:
        return math.exp(-((x - y) ** 2) / (2 * median**2))

    first, second = a.ravel(), b.ravel()
    within = sum(k(x, y) for i, x in enumerate(first) for j, y in enumerate(first) if i != j) / 6
    other = sum(k(x, y) for i, x in enumerate(second) for j, y in enumerate(second) if i != j) / 2
    between = sum(k(x, y) for x in first for y in second) / 6
    assert MMD().of(pair(a, b)) == pytest.approx(within + other - 2 * between)
    assert MMD(bandwidth=median).of(pair(a, b)) == pytest.approx(MMD().of(pair(a, b)))
    assert MMD(bandwidth=0.5).of(pair(a, b)) != pytest.approx(MMD().of(pair(a, b)), rel=0.1)


@pytest.mark.parametrize("way", [0, 1])
def test_its_mean_over_samples_is_the_distance_between_gaussians(way: float) -> None:
    """Of N(0, 1) and N(way, 1) with σ = 1: 2 (1 − exp(−way² / 6)) / √3. A V-statistic of 20 would be 0.04 above."""
    generator = np.random.default_rng(0)
    samples = generator.standard_normal((500, 2, 20, 1))
    samples[:, 1] += way
    values = [MMD(bandwidth=1).of(pair(*sample)) for sample in samples]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - 2 * (1 - math.exp(-(way**2) / 6)) / math.sqrt(3)) < 4 * error < 0.03
    assert min(values) < 0


def test_sides_have_no_effect() -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 9, 2))
    assert MMD().of(pair(b, a + 1)) == pytest.approx(MMD().of(pair(a + 1, b)))


def test_examples_that_are_mostly_the_same_need_a_bandwidth() -> None:
    same = np.zeros((9, 2))
    with pytest.raises(ValueError, match="median distance is 0; give a bandwidth"):
        MMD().of(pair(same, same))
    assert MMD(bandwidth=1).of(pair(same, same + 1)) == pytest.approx(2 - 2 * math.exp(-1))


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_a_bandwidth_that_means_nothing_is_refused(bandwidth: float) -> None:
    with pytest.raises(ValueError, match="bandwidth must be finite and above 0"):
        MMD(bandwidth=bandwidth)

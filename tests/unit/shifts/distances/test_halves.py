"""Intervals hold what they are about as often as they say."""

import numpy as np
import pytest
from scipy.stats import binom

from paretune.shifts.distances import MMD, OTDD, Frechet, Kind
from paretune.shifts.distances.halves import interval, spread
from tests.unit.shifts.distances.samples import labelled, pair

EXAMPLES, RESAMPLES = 32, 20
KINDS = [OTDD(), OTDD(inner="gaussian"), MMD(bandwidth=2.0), MMD(), Frechet()]


def drawn(seed: int, shift: float) -> object:
    (a, labels_a), (b, labels_b) = labelled(EXAMPLES, 2 * seed), labelled(EXAMPLES, 2 * seed + 1, shift)
    return pair(a, b, labels_a, labels_b)


@pytest.mark.slow
@pytest.mark.some(3)
@pytest.mark.parametrize("shift", [1.0, 0.0])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_intervals_hold_the_mean_value_of_samples_of_this_size(kind: Kind, shift: float) -> None:
    """Of 95 % intervals; fewer than the lower 1 in 10,000 quantile allows are a fault, and so are wide ones."""
    values = np.array([kind.of(drawn(1000 + seed, shift)) for seed in range(300)])
    truth, error = values.mean(), values.std(ddof=1)
    held, errors = 0, []
    for seed in range(60):
        both = drawn(seed, shift)
        told = spread(kind, both, paired=False, resamples=RESAMPLES, seed=seed)
        low, high = interval(kind.of(both), told.error, resamples=RESAMPLES, level=0.95)
        held += low <= truth <= high
        errors.append(told.error)
    assert held >= binom.ppf(1e-4, 60, 0.95)
    # Without a difference, MMD and the like vary less than by their halves: up to √3 too wide then.
    assert 0.8 * error < np.mean(errors) < (1.35 if shift else 2) * error


def test_halving_in_pairs_is_right_for_samples_that_have_nothing_to_do_with_each_other() -> None:
    kind = OTDD()
    apart, together = (
        np.mean(
            [spread(kind, drawn(seed, 1.0), paired=each, resamples=20, seed=seed).error for seed in range(20)]
        )
        for each in (False, True)
    )
    assert together == pytest.approx(apart, rel=0.2)


@pytest.mark.parametrize("kind", [OTDD(), Frechet()], ids=repr)
def test_a_bootstrap_with_replacement_lies_above(kind: Kind) -> None:
    """Why there is none: nearly all of its values are above the one that they are meant to scatter about."""
    both = drawn(0, 0.5)
    value, generator = kind.of(both), np.random.default_rng(0)
    again = []
    for _ in range(50):
        rows = [generator.choice(side, len(side)) for side in (both.first, both.second)]
        again.append(kind.of(type(both)(both.squared, both.labels, *rows)))
    assert np.mean(np.array(again) > value) > 0.8


def test_the_floor_is_the_distance_between_halves_of_one_set() -> None:
    both = drawn(0, 5.0)
    told = spread(OTDD(), both, paired=False, resamples=50, seed=0)
    halves = []
    for seed in range(50):
        (a, labels_a), (b, labels_b) = (
            labelled(EXAMPLES // 2, 5000 + 2 * seed + side, shift=0) for side in (0, 1)
        )
        halves.append(OTDD().of(pair(a, b, labels_a, labels_b)))
    assert told.floor == pytest.approx(np.mean(halves), rel=0.25)
    assert told.floor < OTDD().of(both) / 10


def test_classes_are_halved_one_by_one_and_pairs_stay_together() -> None:
    seen = []

    class Looking(OTDD):
        def of(self, both):
            seen.append(both)
            return 0.0

    (a, labels_a) = labelled(13, 0, classes=3)  # 5, 4, 4
    both = pair(a, a + 1, labels_a, labels_a)
    spread(Looking(), both, paired=True, resamples=30, seed=0)
    sizes = set()
    for values in seen[::3]:
        assert (values.second == values.first + 13).all()
        sizes.add(tuple(np.bincount(both.labels[values.first]).tolist()))
    assert sizes == {(2, 2, 2), (3, 2, 2)}  # of an odd class, half is either one
    for floor in (*seen[1::3], *seen[2::3]):
        assert not set(floor.first) & set(floor.second)
        assert len({*floor.first, *floor.second}) == 13


def test_seeds_decide() -> None:
    first, second, other = (
        spread(MMD(), drawn(0, 1.0), paired=False, resamples=10, seed=seed) for seed in (0, 0, 1)
    )
    assert first == second != other


def test_an_interval_is_wider_where_its_error_is_less_sure() -> None:
    low, high = interval(3.0, 1.0, resamples=1000, level=0.95)
    assert (low + high) / 2 == 3
    assert high - 3 == pytest.approx(1.96, abs=0.01)
    assert interval(3.0, 1.0, resamples=10, level=0.95)[1] - 3 == pytest.approx(2.26, abs=0.01)

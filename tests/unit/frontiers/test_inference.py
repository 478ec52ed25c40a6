"""Holm, the tests of all pairs and practical equivalence: worked examples, definitions, rates."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from paretune.frontiers.deciding import decide
from paretune.frontiers.inference import holm, shares_around, tell_apart


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_two_candidates_are_one_two_sided_test() -> None:
    rng = np.random.default_rng(0)
    errors = rng.standard_normal((2, 20_000))
    adjusted, alone, half = tell_apart(np.array([0.0, 3.0]), np.array([[0.0], [3.0]]) + errors, level=0.95)
    assert adjusted == alone == pytest.approx(2 * norm.sf(3 / np.sqrt(2)), rel=0.1)
    assert half == pytest.approx(norm.isf(0.025) * np.sqrt(2), rel=0.02)


def test_what_never_differs_is_told_apart_only_if_it_is_not_the_same() -> None:
    for areas, expected in (
        ([0.3], []),
        ([0.3, 0.3], [1.0]),
        ([0.3, 0.2], [0.01]),
        ([0.3, 0.3 - 1e-15], [1.0]),
    ):
        constant = np.repeat(np.array(areas)[:, None], 99, axis=1)
        assert tell_apart(np.array(areas), constant, level=0.95)[0].tolist() == expected


def test_the_interval_of_a_pair_holds_zero_unless_the_pair_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    apart = 0
    for resamples in (19, 20, 99, 100, 399, 500):
        for level in (0.2, 0.5, 0.9, 0.95, 0.99):
            areas = 0.02 * rng.standard_normal(4)
            errors = 0.01 * rng.exponential(size=(4, resamples))
            adjusted, alone, half = tell_apart(areas, areas[:, None] + errors, level=level)
            gaps = np.abs(areas[:, None] - areas[None, :])[np.triu_indices(4, 1)]
            assert ((alone < 1 - level) == (gaps > half)).all() or resamples < 1 / (1 - level)
            assert (gaps > half)[adjusted < 1 - level].all()
            assert (adjusted >= alone).all()
            apart += (adjusted < 1 - level).sum()
    assert apart > 30


def draw(number: int, skewed: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    """Errors of four candidates, of variance one."""
    return rng.gamma(4, size=(4, number)) / 2 - 2 if skewed else rng.standard_normal((4, number))


def test_any_of_several_equals_is_told_apart_as_seldom_as_promised_and_the_set_holds_the_best() -> None:
    """Also with skewed errors: any false difference in at most 10 %, give or take three standard errors."""
    bound = 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400)
    for true in ([0.0] * 4, [0.0, 0.0, -0.5, -3.0]):
        for skewed in (False, True):
            rng = np.random.default_rng(0)
            false, lost, sizes = 0, 0, []
            for _ in range(400):
                estimates = np.array(true) + draw(1, skewed, rng)[:, 0]
                order = np.argsort(-estimates)
                p = np.full((4, 4), np.nan)
                p[np.triu_indices(4, 1)] = tell_apart(
                    estimates[order], (estimates[:, None] + draw(300, skewed, rng))[order], level=0.9
                )[0]
                decision = decide(estimates[order], p, level=0.9, margin=0.0)
                gaps = np.array(true)[order]
                false += (decision.told & (gaps[:, None] <= gaps[None, :])).any()
                lost += not decision.tied[gaps == 0].all()
                sizes.append(decision.tied.sum())
            assert false / 400 <= bound
            assert lost / 400 <= bound
            if true[-1] < 0:
                assert np.mean(sizes) < 3.5  # and it leaves out what is plainly worse


def test_the_shares_around_equivalence_are_those_of_the_turned_errors() -> None:
    resampled = np.array([0.1, 0.2, 0.3, 0.4, 0.5])  # turned around 0.25: 0.4, 0.3, 0.2, 0.1, 0.0
    assert shares_around(0.25, resampled, 0.15) == pytest.approx((0.0, 0.4, 0.6))
    assert shares_around(-0.25, -resampled, 0.15) == pytest.approx((0.6, 0.4, 0.0))

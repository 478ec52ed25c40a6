"""Holm, the confidence set and practical equivalence: worked examples, definitions, rates."""

import numpy as np
import pytest
from scipy.stats import norm

from paretune.inference import confidence_set, holm, shares_around


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_confidence_set_agrees_with_its_definition_step_by_step() -> None:
    rng = np.random.default_rng(0)
    estimates = np.array([0.50, 0.49, 0.47, 0.44, 0.40])
    mixing = rng.standard_normal((5, 5)) * 0.01 + 0.01
    resampled = estimates[:, None] + mixing @ rng.standard_normal((5, 800))
    left, expected, reached = [0, 1, 2, 3, 4], dict.fromkeys(range(5), 1.0), 0.0
    while len(left) > 1:
        t, null = {}, []
        for i in left:
            for j in left:
                if i != j:
                    error = (resampled[i] - resampled[j]) - (estimates[i] - estimates[j])
                    t[i, j] = (estimates[j] - estimates[i]) / np.sqrt((error**2).mean())
                    null.append(np.abs(error) / np.sqrt((error**2).mean()))
        largest = max(t.values())
        share = ((np.max(null, axis=0) >= largest).sum() + 1) / 801
        reached = max(reached, share)
        worst = max(left, key=lambda i: max(t[i, j] for j in left if j != i))
        expected[worst] = reached
        left.remove(worst)
    assert confidence_set(estimates, resampled) == pytest.approx([expected[i] for i in range(5)])


def test_two_candidates_are_one_two_sided_test() -> None:
    rng = np.random.default_rng(0)
    errors = rng.standard_normal((2, 20_000))
    p = confidence_set(np.array([0.0, 3.0]), np.array([[0.0], [3.0]]) + errors)
    assert p[1] == 1
    assert p[0] == pytest.approx(2 * norm.sf(3 / np.sqrt(2)), rel=0.1)
    assert confidence_set(np.array([0.3]), np.full((1, 10), 0.3)).tolist() == [1]
    assert confidence_set(np.array([0.3, 0.3]), np.full((2, 10), 0.3)).tolist() == [1, 1]
    assert confidence_set(np.array([0.3, 0.2]), np.array([[0.3], [0.2]]).repeat(99, axis=1))[1] == 0.01


def test_the_confidence_set_holds_the_best_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    true = np.array([0.0, 0.0, -0.5, -3.0])
    held, sizes = 0, []
    for _ in range(400):
        estimates = true + rng.standard_normal(4)
        p = confidence_set(estimates, estimates[:, None] + rng.standard_normal((4, 300)))
        held += (p[:2] >= 0.1).all()
        sizes.append((p >= 0.1).sum())
    assert held / 400 >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / 400)  # both of the best, at 90 %
    assert np.mean(sizes) < 3.5  # and it leaves out what is plainly worse


def test_the_shares_around_equivalence_are_those_of_the_turned_errors() -> None:
    resampled = np.array([0.1, 0.2, 0.3, 0.4, 0.5])  # turned around 0.25: 0.4, 0.3, 0.2, 0.1, 0.0
    assert shares_around(0.25, resampled, 0.15) == pytest.approx((0.0, 0.4, 0.6))
    assert shares_around(-0.25, -resampled, 0.15) == pytest.approx((0.6, 0.4, 0.0))

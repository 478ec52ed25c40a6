"""Numbers of examples and seeds against simulations and closed forms."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind

from paretune.frontiers.power import needed_examples, needed_seeds


def test_examples_grow_with_the_square_of_precision() -> None:
    one = needed_examples(0.02, examples=1000, v_examples=1e-4, v_seeds=0.0, alpha=0.05)
    half = needed_examples(0.01, examples=1000, v_examples=1e-4, v_seeds=0.0, alpha=0.05)
    assert one is not None
    assert half == pytest.approx(4 * one, abs=4)
    assert one == pytest.approx(1000 * 1e-4 * ((1.95996 + 0.84162) / 0.02) ** 2, abs=1)


def test_no_number_of_examples_outweighs_the_luck_of_training() -> None:
    assert needed_examples(0.02, examples=1000, v_examples=1e-4, v_seeds=1e-3, alpha=0.05) is None
    with_luck = needed_examples(0.02, examples=1000, v_examples=1e-4, v_seeds=2e-5, alpha=0.05)
    without = needed_examples(0.02, examples=1000, v_examples=1e-4, v_seeds=0.0, alpha=0.05)
    assert with_luck is not None
    assert without is not None
    assert with_luck > without
    assert needed_seeds(0.02, seeds=5, v_examples=1e-3, v_seeds=1e-5, alpha=0.05) is None


def test_the_examples_have_the_power_they_promise() -> None:
    spread, effect = 0.4, 0.03  # standard deviation of one example's difference, and its true mean
    number = needed_examples(effect, examples=500, v_examples=spread**2 / 500, v_seeds=0.0, alpha=0.05)
    assert number is not None
    means = effect + spread / np.sqrt(number) * np.random.default_rng(0).standard_normal(20_000)
    found = (np.abs(means) / (spread / np.sqrt(number)) > norm.isf(0.025)).mean()
    assert found == pytest.approx(0.8, abs=0.01)


def test_the_seeds_have_the_power_they_promise() -> None:
    spread, effect = 0.02, 0.02
    number = needed_seeds(effect, seeds=5, v_examples=0.0, v_seeds=2 * spread**2 / 5, alpha=0.05)
    assert number is not None
    rng = np.random.default_rng(0)

    def power(seeds: int) -> float:
        a, b = rng.normal(effect, spread, (4000, seeds)), rng.normal(0, spread, (4000, seeds))
        return float((ttest_ind(a, b, axis=1).pvalue < 0.05).mean())

    assert power(number) > 0.8 - 0.02
    assert power(number - 2) < 0.8 + 0.02
    assert needed_seeds(5.0, seeds=5, v_examples=0.0, v_seeds=1e-8, alpha=0.05) == 2


def test_wrong_arguments_are_named() -> None:
    options = {"v_examples": 1e-4, "v_seeds": 0.0, "alpha": 0.05}
    with pytest.raises(ValueError, match="effect must be above 0; got 0"):
        needed_examples(0, examples=100, **options)
    with pytest.raises(ValueError, match="alpha must be above 0 and below 1; got 1"):
        needed_seeds(0.1, seeds=5, **options | {"alpha": 1})
    with pytest.raises(ValueError, match="power must be"):
        needed_examples(0.1, examples=100, power=0.0, **options)

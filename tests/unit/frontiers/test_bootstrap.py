"""Resamples, intervals and p-values against definitions and closed forms."""

import numpy as np
import pytest
from scipy.stats import bootstrap, kstest, norm, t

from paretune.frontiers import bootstrap as bootstrap_module
from paretune.frontiers.bootstrap import (
    Units,
    acceleration,
    basic_interval,
    bca_interval,
    expanded,
    resample_counts,
    seed_error,
    seed_luck,
)
from paretune.frontiers.cells import Cell, Samples, choice_errors, choose_and_measure, chosen_front
from paretune.frontiers.pareto import ordered_area


def test_counts_are_multinomial_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.concatenate([*resample_counts(50, 4000, 0)])
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.08)
    assert counts.var(axis=0).mean() == pytest.approx(1 - 1 / 50, abs=0.02)
    monkeypatch.setattr(bootstrap_module, "_BLOCK", 50 * 8)
    blocks = [*resample_counts(50, 4000, 0)]
    assert max(len(block) for block in blocks) == 8
    assert np.array_equal(np.concatenate(blocks), counts)


def test_weighted_means_are_means_of_the_drawn_examples() -> None:
    bits = np.random.default_rng(0).random((3, 50)) < 0.5
    counts = np.concatenate([*resample_counts(50, 5, 0)])
    expected = [[np.repeat(b, c.astype(int)).mean() for b in bits] for c in counts]
    assert Units.of(50).means(counts, bits) == pytest.approx(np.array(expected))


def test_groups_are_drawn_whole() -> None:
    labels = np.array([*"babcbac"])
    units = Units.of(7, labels)
    assert (len(units), units.sizes.tolist()) == (3, [2, 3, 2])
    bits = np.random.default_rng(1).random((4, 7)) < 0.5
    counts = np.array([[1, 1, 1], [0, 3, 0], [2, 0, 1]], dtype=np.float32)
    for weights, means in zip(counts, units.means(counts, bits), strict=True):
        drawn = np.concatenate(
            [np.repeat(bits[:, labels == g], int(w), axis=1) for g, w in zip("abc", weights, strict=True)],
            axis=1,
        )
        assert means == pytest.approx(drawn.mean(axis=1))


def test_the_interval_turns_the_errors_round() -> None:
    resampled = np.linspace(0.5, 0.7, 1001)  # biased upwards by 0.1 around an estimate of 0.5
    assert basic_interval(0.5, resampled, 0.9) == pytest.approx((0.31, 0.49))


def test_bca_is_that_of_scipy_on_a_mean() -> None:
    data = np.random.default_rng(3).exponential(size=40)
    counts = np.concatenate([*resample_counts(40, 20_000, 0)])
    resampled = counts @ data / 40
    reference = bootstrap((data,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    found = bca_interval(data.mean(), resampled, 0.95, acceleration(data - data.mean()))
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert found == pytest.approx(tuple(reference.confidence_interval), abs=0.02 * width)
    # And differs from the plain one, as the data are skewed.
    assert found[1] - basic_interval(data.mean(), resampled, 0.95)[1] > 0.05 * width


def test_without_bias_and_skewness_bca_is_the_percentile_interval() -> None:
    resampled = norm.ppf((np.arange(9999) + 0.5) / 9999)
    assert bca_interval(0.0, resampled, 0.95, 0.0) == pytest.approx(norm.interval(0.95), abs=0.01)
    assert acceleration(np.array([-1.0, 1.0, -2.0, 2.0])) == acceleration(np.zeros(3)) == 0


def test_the_influence_is_the_derivative_of_the_area() -> None:
    rng = np.random.default_rng(0)
    samples = Samples.of(Units.of(60, np.arange(60) // 3), Units.of(40), 0)
    bits = {}
    for split, size in (("select", 40), ("report", 60)):
        bits[f"{split}/clean"] = rng.random((6, size)) < np.linspace(0.9, 0.6, 6)[:, None]
        bits[f"{split}/robust"] = rng.random((6, size)) < np.linspace(0.2, 0.6, 6)[:, None]
    cell = Cell.of(bits, [np.array([0, 2, 4]), np.array([1, 3, 5])], (0.1, 0.05), samples)
    influence = cell.influence(samples, (0.1, 0.05))
    assert influence.sum() == pytest.approx(0, abs=1e-6)
    step = 1e-5
    for unit in (0, 7, 19):
        weights = np.ones((2, 20)) - step * np.array([[0.0], [1.0]])
        weights[1, unit] += 20 * step  # towards all weight on one unit
        areas = []
        for row in weights:  # in double precision: single would drown a derivative
            of_group = np.repeat(row, 3)
            means = [(bits @ of_group) / of_group.sum() for bits in (cell.clean, cell.robust)]
            areas.append(float(cell.area(means[0], means[1], (0.1, 0.05))))
        assert influence[unit] == pytest.approx((areas[1] - areas[0]) / step, rel=1e-3, abs=1e-4)


def test_many_choices_at_once_are_single_choices() -> None:
    rng = np.random.default_rng(0)
    choosing = tuple(rng.integers(0, 6, (2, 40, 9)) / 5)  # few values: ties in one or both
    measuring = tuple(rng.random((2, 3, 9)))
    for reference in ((0.0, 0.0), (0.3, 0.1)):
        found = choose_and_measure(choosing, measuring, reference)
        for column, select in enumerate(np.stack(choosing, axis=-1)):
            front = chosen_front(select, reference)
            expected = [ordered_area(c[front], r[front], reference) for c, r in zip(*measuring, strict=True)]
            assert found[:, column] == pytest.approx(expected)


def test_errors_of_the_choice_are_what_both_halves_see() -> None:
    rng = np.random.default_rng(0)
    true = 0.02 * rng.standard_normal(5000)
    noise = 0.05 * rng.standard_normal((2, 5000))
    chosen = np.stack([0.5 + true + noise.mean(axis=0), 0.5 + true + noise[0], 0.5 + true + noise[1]])
    assert choice_errors(chosen).std() == pytest.approx(0.02, rel=0.1)
    assert choice_errors(chosen).mean() == pytest.approx(0, abs=1e-12)
    assert not choice_errors(np.full((3, 10), 0.4)).any()


def test_few_units_give_the_interval_of_student() -> None:
    """For the mean of normal data, the expanded bootstrap interval is the t interval."""
    data = norm.ppf((np.arange(8) + 0.5) / 8)
    counts = np.concatenate([*resample_counts(8, 200_000, 0)])
    low, high = basic_interval(data.mean(), expanded(counts @ data / 8, 8, 0.95), 0.95)
    exact = t.interval(0.95, 7, data.mean(), data.std(ddof=1) / np.sqrt(8))
    assert (low, high) == pytest.approx(exact, rel=0.03)


def test_the_luck_of_seeds_is_a_t_of_their_spread() -> None:
    areas = np.array([0.1, 0.2, 0.4, 0.5, 0.9])
    assert seed_error(areas) == pytest.approx(np.std(areas, ddof=1) / np.sqrt(5))
    luck = seed_luck(0.3, 5, 5000, 0, "a")
    assert kstest(luck / 0.3, "t", args=(4,)).pvalue > 0.01
    assert not np.array_equal(luck, seed_luck(0.3, 5, 5000, 0, "b"))

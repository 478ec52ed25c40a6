"""Slopes of shifted accuracy along training: by hand, without the noise of examples, and refused where nothing moves."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import paretune as pt
from paretune.frontiers.bootstrap import Units, basic_interval, expanded, resample_counts
from paretune.frontiers.cells import Samples
from paretune.frontiers.settings import Settings
from paretune.frontiers.solids import Course, Share
from paretune.frontiers.tracking import Slope, slope_numbers, slopes
from tests.synthetic import STRATEGIES, There, write_run

Floats = NDArray[np.float64]
CLEAN = np.linspace(0.6, 0.9, 6)


def drawn(accuracies: Floats, hard: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Bits whose hard examples are hard at every point."""
    latent = np.sqrt(0.6) * hard + np.sqrt(0.4) * rng.standard_normal((len(accuracies), len(hard)))
    return np.asarray(latent < stats.norm.ppf(accuracies)[:, None])


def course(
    examples: int, seed: int, *, slope: float = 0.8, apart: int = 0, clean: Floats = CLEAN, runs: int = 1
) -> tuple[Course, Samples, dict[str, NDArray[np.bool_]]]:
    """Points whose shifted accuracy falls off in proportion; copies of the report images, or a domain besides."""
    rng = np.random.default_rng(seed)
    hard = rng.standard_normal(examples)
    units = Units.of(examples)
    samples = Samples.of(units, Units.of(20), seed).with_apart({"art": apart} if apart else {}, seed)
    bits = {
        "clean": drawn(clean, hard, rng),
        "robust": drawn(clean - 0.5, hard, rng),
        "copies": drawn(0.4 + slope * (clean - 0.6), hard, rng),
    }
    share = examples / (examples + apart)
    shifted = [Share(units.right(bits["copies"]), units.sizes, 0, share)]
    if apart:
        bits["art"] = drawn(0.4 + slope * (clean - 0.6), rng.standard_normal(apart), rng)
        of_art = Units.of(apart)
        shifted.append(Share(of_art.right(bits["art"]), of_art.sizes, 1, 1 - share))
    on_report = ((Share(units.right(bits[name]), units.sizes),) for name in ("clean", "robust"))
    made_by = np.arange(len(clean)) % runs
    return Course(seed, made_by, {}, *on_report, tuple(shifted)), samples, bits


def by_hand(bits: dict[str, NDArray[np.bool_]], report: Floats, art: Floats | None = None) -> Floats:
    """Sums of squares and products of weighted accuracies around their means: clean, product, shifted."""
    x = bits["clean"] @ report / report.sum()
    y = bits["copies"] @ report / report.sum()
    if art is not None:
        share = len(report) / (len(report) + len(art))
        y = share * y + (1 - share) * (bits["art"] @ art) / art.sum()
    x, y = x - x.mean(), y - y.mean()
    return np.array([x @ x, x @ y, y @ y])


def noise_by_hand(bits: dict[str, NDArray[np.bool_]]) -> Floats:
    """The variance of a mean and the covariance of two, summed over points around their mean."""
    examples = bits["clean"].shape[1]
    x, y = (bits[name] - bits[name].mean(axis=0) for name in ("clean", "copies"))
    pairs = ((x, x), (x, y), (y, y))
    return np.array(
        [sum(np.cov(a, b)[0, 1] / examples for a, b in zip(*pair, strict=True)) for pair in pairs]
    )


def test_a_slope_and_its_interval_agree_with_a_plain_loop() -> None:
    points, samples, bits = course(400, 3)
    on_clean, _ = slopes({"LoRA": [points]}, samples, Settings(resamples=300, seed=5))
    whole, noise = by_hand(bits, np.ones(400)), noise_by_hand(bits)
    slope = (whole[1] - noise[1]) / (whole[0] - noise[0])
    assert on_clean.slope == pytest.approx(slope)
    assert on_clean.correlation == pytest.approx(
        min(1.0, (whole[1] - noise[1]) / np.sqrt((whole[0] - noise[0]) * (whole[2] - noise[2])))
    )
    assert on_clean.moves == pytest.approx(np.sqrt((whole[0] - noise[0]) / 5))
    counts = np.concatenate([*resample_counts(400, 300, 5)]).astype(float)
    again = np.array([by_hand(bits, row) for row in counts]) - 2 * noise
    ends = basic_interval(slope, expanded(again[:, 1] / again[:, 0], 400, 0.95), 0.95)
    assert (on_clean.low, on_clean.high) == pytest.approx(ends)
    assert (on_clean.strategy, on_clean.accuracy, on_clean.points) == ("LoRA", "clean", 6)
    assert on_clean.per_seed == (on_clean.slope,)


def test_domains_are_drawn_by_themselves() -> None:
    points, samples, bits = course(400, 3, apart=300)
    on_clean, _ = slopes({"LoRA": [points]}, samples, Settings(resamples=300, seed=5))
    counts = np.concatenate([*resample_counts(400, 300, 5)]).astype(float)
    art = np.concatenate([*resample_counts(300, 300, (5, zlib.crc32(b"art")))]).astype(float)
    noise = noise_by_hand(bits)
    noise[1] *= 400 / 700  # the part of the copies
    whole = by_hand(bits, np.ones(400), np.ones(300))
    slope = (whole[1] - noise[1]) / (whole[0] - noise[0])
    again = np.array([by_hand(bits, *row) for row in zip(counts, art, strict=True)]) - 2 * noise
    ends = basic_interval(slope, expanded(again[:, 1] / again[:, 0], 300, 0.95), 0.95)
    assert on_clean.slope == pytest.approx(slope)
    assert (on_clean.low, on_clean.high) == pytest.approx(ends)


def test_the_noise_of_few_examples_does_not_flatten_the_slope() -> None:
    """On average over data sets, it is the true one; without the correction it is not."""
    clean, settings = np.linspace(0.7, 0.85, 12), Settings(resamples=100)
    told, plain = [], []
    for seed in range(150):
        points, samples, bits = course(300, seed, slope=1.6, clean=clean)
        on_clean, _ = slopes({"LoRA": [points]}, samples, settings)
        sums = by_hand(bits, np.ones(300))
        plain.append(sums[1] / sums[0])
        told.append(on_clean.slope or np.nan)
    told_mean, error = np.nanmean(told), np.nanstd(told) / np.sqrt(len(told))
    assert told_mean == pytest.approx(1.6, abs=3 * error + 0.03)
    assert np.mean(plain) < 1.6 - 3 * error


def test_what_hardly_moves_has_no_slope() -> None:
    points, samples, _ = course(300, 0, clean=np.linspace(0.8, 0.805, 6))
    on_clean, on_robust = slopes({"LoRA": [points]}, samples, Settings(resamples=100))
    for slope in (on_clean, on_robust):
        assert (slope.slope, slope.low, slope.high, slope.correlation) == (None, None, None, None)
        assert slope.moves < 0.02
    few, samples, _ = course(300, 0, clean=np.array([0.6, 0.9]))
    assert slopes({"LoRA": [few]}, samples, Settings(resamples=100))[0].slope is None
    _, (row,) = slope_numbers([on_clean, on_robust])
    assert "6 points that move by " in row[1]
    assert row[2] == "–"


def test_runs_share_a_slope_and_have_levels_of_their_own(tmp_path: Path) -> None:
    """Two runs of opposite levels: within each the slope is the same, across them it would be none."""
    points, samples, _ = course(2000, 1, clean=np.repeat(CLEAN, 2), runs=2)
    shifted = points.shifted[0]
    lower = np.where(points.runs[:, None] == 1, 0.5 * shifted.right, shifted.right)
    levels = Course(0, points.runs, {}, points.clean, points.robust, (Share(lower, shifted.sizes),))
    (on_clean, _) = slopes({"LoRA": [levels]}, samples, Settings(resamples=100))
    assert on_clean.slope == pytest.approx(0.75 * 0.8, abs=0.1)  # of 0.8 and of half of that, weighted alike


def test_five_seeds_that_disagree_widen_the_interval() -> None:
    settings = Settings(resamples=400)
    alike = [course(2000, seed) for seed in range(5)]
    unlike = [course(2000, seed, slope=slope) for seed, slope in enumerate((0.2, 0.5, 0.8, 1.1, 1.3))]
    samples = alike[0][1]
    ends = []
    for courses in (alike, unlike, unlike[:4]):
        (on_clean, _) = slopes({"LoRA": [points for points, *_ in courses]}, samples, settings)
        assert on_clean.low is not None
        assert on_clean.high is not None
        ends.append(on_clean.high - on_clean.low)
        assert len(on_clean.per_seed) == len(courses)
    assert ends[1] > 4 * ends[0]
    assert ends[2] < 2 * ends[0]  # of fewer than five, these trained models are what it is about


def test_a_comparison_has_slopes_on_clean_and_on_robust_accuracy(tmp_path: Path) -> None:
    for number, strategy in enumerate(STRATEGIES[:2]):
        there = {"fog 1": There(0.8, "Corruption('fog', severity=1)")}
        write_run(tmp_path / f"{number}", strategy, examples=1500, elsewhere=there)
    (condition,) = pt.compare(tmp_path, resamples=200).conditions
    assert [(slope.strategy, slope.accuracy) for slope in condition.slopes] == [
        (area.strategy, name) for area in condition.areas for name in ("clean", "robust")
    ]
    for slope in condition.slopes[::2]:
        assert slope.low is not None
        assert slope.high is not None
        assert slope.low < 0.8 < slope.high
    head, rows = slope_numbers(condition.slopes)
    assert [row[0] for row in rows] == [area.strategy for area in condition.areas]
    assert len({len(row) for row in (head, *rows)}) == 1
    small = condition.within(max_trainable=100_000)
    assert {slope.strategy for slope in small.slopes} == {"Compacter"}


def test_numbers_read_as_people_write_them() -> None:
    told = [
        Slope("LoRA", name, slope, slope - 0.1, slope + 0.1, slope, 0.1, 9, ())
        for name, slope in (("clean", 0.5), ("robust", -0.25))
    ]
    _, rows = slope_numbers(told)
    assert rows == [["LoRA", "0.50 (0.40 to 0.60)", "0.50", "−0.25 (−0.35 to −0.15)", "−0.25", "9"]]

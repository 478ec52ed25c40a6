"""Intervals of volumes and slopes hold the truth as often as they say, on simulated training with a known one."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from paretune.frontiers.bootstrap import Units, basic_interval
from paretune.frontiers.cells import Samples, chosen_front
from paretune.frontiers.resampling import resample_strategies
from paretune.frontiers.settings import Settings
from paretune.frontiers.solids import Course, Share, Solid
from paretune.frontiers.tracking import slopes
from paretune.frontiers.volumes import ordered_volume

Floats = NDArray[np.float64]
CORNER = (0.0, 0.0, 0.0)
EXAMPLES, OF_DOMAIN, REPEATS = 250, 100, 80
KEEPS = (0.9, 0.75, 0.55)  # share of clean accuracy that three corruptions leave
PROGRESS = np.arange(1, 11) / 10
CLEAN = 0.93 - 0.15 * PROGRESS**2 - 0.3 * np.exp(-8 * PROGRESS)
ROBUST = np.minimum(0.06 + 0.45 * (1 - np.exp(-3 * PROGRESS)), CLEAN - 0.02)
WIGGLE = 0.01 * np.random.default_rng(9).standard_normal(10)
SHIFTED = [CLEAN * keeps + WIGGLE for keeps in (*KEEPS, 0.7)]
SIZES = np.array([EXAMPLES] * len(KEEPS) + [OF_DOMAIN])
TRUE = np.average(SHIFTED, axis=0, weights=SIZES)


def drawn(accuracies: Floats, hard: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    noise = rng.standard_normal((len(accuracies), len(hard)), dtype=np.float32)
    return np.asarray(0.8 * hard + 0.6 * noise < ndtri(accuracies)[:, None])


def course(seed: int) -> tuple[Course, Samples]:
    rng = np.random.default_rng(seed)
    report, art = Units.of(EXAMPLES), Units.of(OF_DOMAIN)
    samples = Samples.of(report, Units.of(EXAMPLES), seed).with_apart({"art": OF_DOMAIN}, seed)
    hard, select, there = (
        rng.standard_normal(size, dtype=np.float32) for size in (EXAMPLES, EXAMPLES, OF_DOMAIN)
    )
    copies = sum(drawn(accuracies, hard, rng).astype(np.float32) for accuracies in SHIFTED[:-1])
    weight = float(SIZES[:-1].sum() / SIZES.sum())
    shifted = (
        Share(copies, len(KEEPS) * report.sizes, 0, weight),
        Share(art.right(drawn(SHIFTED[-1], there, rng)), art.sizes, 1, 1 - weight),
    )
    clean, robust = ((Share(report.right(drawn(each, hard, rng)), report.sizes),) for each in (CLEAN, ROBUST))
    choosing = {
        "select/clean": drawn(CLEAN, select, rng),
        "select/robust": drawn(ROBUST, select, rng),
    }
    return Course(0, np.zeros(10, dtype=int), choosing, clean, robust, shifted), samples


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 of 100 times, give or take what 80 repeats allow; and volumes are hardly too large."""
    settings = Settings(resamples=300)
    centred = CLEAN - CLEAN.mean()
    slope = float(centred @ TRUE / (centred @ centred))
    volumes, truths, ends, held = [], [], [], []
    for seed in range(REPEATS):
        points, samples = course(seed)
        solid = Solid.of(points, [np.arange(10)], CORNER, samples)
        resampled = resample_strategies({"a": [solid]}, samples, CORNER, 300, seed, 0.95)[0]["a"]
        volumes.append(resampled.area)
        ends.append(basic_interval(resampled.area, resampled.all, 0.95))
        select = np.column_stack(
            [points.select[f"select/{name}"].mean(axis=1) for name in ("clean", "robust")]
        )
        front = chosen_front(select, CORNER[:2])
        truths.append(float(ordered_volume(CLEAN[front], ROBUST[front], TRUE[front])))
        on_clean = slopes({"a": [points]}, samples, settings)[0]
        if on_clean.low is not None and on_clean.high is not None:
            held.append(on_clean.low <= slope <= on_clean.high)
    low, high = np.array(ends).T
    truth = float(np.mean(truths))
    least = 0.95 - 3 * np.sqrt(0.95 * 0.05 / REPEATS)
    assert ((low <= truth) & (truth <= high)).mean() >= least
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(held))
    assert len(held) > 0.7 * REPEATS
    width = float((high - low).mean())
    assert abs(np.mean(volumes) - truth) < 0.05 * width + 3 * np.std(volumes) / np.sqrt(REPEATS)
    assert width < 6 * np.std(volumes)  # and not by being wide

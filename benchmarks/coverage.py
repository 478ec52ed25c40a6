"""How often intervals of areas hold the truth, and how often equal strategies are told apart.

    python benchmarks/coverage.py          # writes benchmarks/coverage.csv

Simulated training curves: clean and robust accuracies of K checkpoints along training, with a wiggle, as known
numbers. Each example has a difficulty that all checkpoints share (``correlation``), and groups of examples may
share one. Two or more strategies have *the same* true curve, so every "they differ" is false; with ``lead`` the first
is ahead of the others, which are the same. Rows, one for a setting and a method:

basic, bca
    what :func:`paretune.compare` does, through the same code: chosen on select, measured on report, paired
    resamples, equal budgets, seeds as t, groups as units. The interval is about the mean, over select splits, of
    the true area of the chosen frontier.
naive
    the usual: all examples of both splits choose *and* measure, every checkpoint there is (``checkpoints_b`` of
    the second strategy), percentile interval. The interval is about the true area of all checkpoints.
no choice
    ``basic`` without the part of the choice: the front taken as given.
no groups
    ``basic`` with examples resampled one by one although they come in groups.

``coverage`` is the share of nominal 95 % intervals of areas that hold their truth. ``false_positives`` is the share of
comparisons in which any two strategies that are the same are told apart, or one is told to be ahead of the first where
this leads, at 5 %: by the naive interval of the difference, else by the adjusted tests of :func:`paretune.compare`.
``set_coverage`` is the share in which the first strategy, which is as good as any, is in the set that may be best, and
``set_size`` how many are. The standard errors of shares follow from ``repetitions``.
"""

import csv
import datetime
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from paretune.frontiers.bootstrap import (
    Units,
    acceleration,
    basic_interval,
    bca_interval,
    resample_counts,
)
from paretune.frontiers.cells import Cell, Samples, chosen_front, spaced_subsets
from paretune.frontiers.deciding import decide
from paretune.frontiers.inference import tell_apart
from paretune.frontiers.pareto import area, ordered_area
from paretune.frontiers.resampling import Resampled, resample_strategies

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]

LEVEL, RESAMPLES = 0.95, 400
WIGGLE = 0.015  # standard deviation of the true accuracies of checkpoints around a smooth curve
SEED_SPREAD = 0.01  # standard deviation of the robust accuracy of a training seed
GROUP_SHARE = 0.7  # of an example's difficulty that is its group's
REFERENCE = (0.0, 0.0)


@dataclass(frozen=True)
class Setting:
    """One cell of the grid."""

    checkpoints: int  # of the first strategy, and used of all
    checkpoints_b: int  # that the other strategies have
    examples: int  # report split
    examples_select: int
    correlation: float  # of the correctness of two checkpoints on one example, on the latent scale
    seeds: int = 1
    groups: int = 0  # of each split; 0: independent examples
    repetitions: int = 500
    strategies: int = 2
    lead: float = 0.0  # of the first strategy, in robust accuracy


def grid() -> Iterator[Setting]:
    """What is measured."""
    for points in (10, 50):
        for examples in (250, 1000):
            for correlation in (0.3, 0.64, 0.9):
                for factor in (1, 5):
                    yield Setting(points, factor * points, examples, examples, correlation)
    for examples in (250, 1000):
        yield Setting(200, 200, examples, examples, 0.64, repetitions=300)
    yield Setting(10, 10, 4000, 4000, 0.64, repetitions=300)
    yield Setting(50, 50, 4000, 4000, 0.64, repetitions=200)
    for examples in (60, 120):
        yield Setting(10, 10, examples, examples, 0.64)
    yield Setting(50, 50, 1000, 250, 0.64)
    yield Setting(50, 50, 1000, 100, 0.64)
    for seeds in (2, 5, 10):
        yield Setting(10, 10, 1000, 1000, 0.64, seeds=seeds, repetitions=300)
    for groups in (10, 20, 50, 100, 200):
        yield Setting(10, 10, 1000, 1000, 0.64, groups=groups)
    for strategies, examples, seeds in ((4, 250, 1), (4, 1000, 1), (12, 250, 1), (4, 1000, 5)):
        yield Setting(10, 10, examples, examples, 0.64, seeds=seeds, strategies=strategies)
    for lead in (0.01, 0.03):
        yield Setting(10, 10, 1000, 1000, 0.64, strategies=4, lead=lead)


def curve(points: int) -> tuple[Floats, Floats]:
    """True clean accuracies, and robust ones given that the clean image is right; the same at K and 5 K."""
    progress = np.arange(1, points + 1) / points
    rng = np.random.default_rng(5)
    knots = np.linspace(0, 1, 201)
    wiggle = WIGGLE * rng.standard_normal((2, 201))
    clean = 0.93 - 0.15 * progress**2 - 0.3 * np.exp(-8 * progress) + np.interp(progress, knots, wiggle[0])
    robust = 0.06 + 0.45 * (1 - np.exp(-3 * progress)) + np.interp(progress, knots, wiggle[1])
    return clean, np.minimum(robust, clean - 0.02) / clean


def robust_accuracy(clean: Floats, given: Floats, correlation: float) -> Floats:
    """True robust accuracies: both bits share the difficulty, over which this integrates."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)

    def at_difficulty(accuracy: Floats) -> Floats:
        inner = (ndtri(accuracy)[:, None] - np.sqrt(correlation) * nodes) / np.sqrt(1 - correlation)
        return np.asarray(ndtr(inner))

    return np.asarray((at_difficulty(clean) * at_difficulty(given)) @ (weights / weights.sum()))


def difficulties(examples: int, groups: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One standard normal an example; those of one group are alike."""
    own = rng.standard_normal(examples, dtype=np.float32)
    if not groups:
        return own
    shared = rng.standard_normal(groups, dtype=np.float32)[np.arange(examples) % groups]
    return np.float32(np.sqrt(GROUP_SHARE)) * shared + np.float32(np.sqrt(1 - GROUP_SHARE)) * own


def draw(
    clean: Floats,
    given: Floats,
    difficulty: NDArray[np.float32],
    correlation: float,
    rng: np.random.Generator,
) -> tuple[Bits, Bits]:
    """Clean and robust correctness, shape ``(checkpoints, examples)`` each."""
    right = []
    for accuracy in (clean, given):
        noise = rng.standard_normal((len(accuracy), len(difficulty)), dtype=np.float32)
        noise *= np.float32(np.sqrt(1 - correlation))
        noise += np.float32(np.sqrt(correlation)) * difficulty
        right.append(noise < ndtri(accuracy)[:, None].astype(np.float32))
    return right[0], right[0] & right[1]


class Tally:
    """Outcomes of one method."""

    def __init__(self) -> None:
        self.areas: list[float] = []
        self.truths: list[float] = []  # where each repetition has its own
        self.intervals: list[tuple[float, float]] = []
        self.told_apart: list[bool] = []
        self.sets: list[tuple[bool, int]] = []  # whether the first is in it, size

    def row(self, chosen: float) -> dict[str, object]:
        """Rates over the repetitions; ``chosen`` is the mean true area of the chosen fronts."""
        truth = np.array(self.truths or [chosen])
        low, high = np.array(self.intervals).T
        return {
            "truth": round(float(truth.mean()), 4),
            "bias": round(float(np.mean(self.areas) - truth.mean()), 5),
            "width": round(float(np.mean(high - low)), 4),
            "coverage": round(float(np.mean((low <= truth) & (truth <= high))), 4),
            "false_positives": round(float(np.mean(self.told_apart)), 4),
            "set_coverage": round(float(np.mean([held for held, _ in self.sets])), 4) if self.sets else "",
            "set_size": round(float(np.mean([size for _, size in self.sets])), 3) if self.sets else "",
        }


def naive(bits: list[tuple[Bits, Bits]], seed: int) -> tuple[list[float], list[Floats]]:
    """Area and resampled areas of each strategy: choice and measurement on the same examples."""
    counts = np.concatenate([*resample_counts(bits[0][0].shape[1], RESAMPLES, seed)])
    whole = np.ones((1, counts.shape[1]), dtype=np.float32)
    units = Units.of(counts.shape[1])
    areas: list[float] = []
    drawn: list[Floats] = []
    for clean_bits, robust_bits in bits:
        clean, robust = (units.means(np.vstack([whole, counts]), each) for each in (clean_bits, robust_bits))
        order = np.argsort(-clean, axis=1)
        best = np.maximum.accumulate(np.take_along_axis(robust, order, axis=1), axis=1)
        resampled = ordered_area(np.take_along_axis(clean, order, axis=1), best)
        areas.append(float(resampled[0]))
        drawn.append(resampled[1:])
    return areas, drawn


def repeat(setting: Setting, seed: int, tallies: dict[str, Tally], chosen: list[float]) -> None:
    """One data set and strategies that are the same in truth, or all but the first."""
    rng = np.random.default_rng((seed, setting.checkpoints, setting.examples))
    splits = {"select": setting.examples_select, "report": setting.examples}
    difficulty = {split: difficulties(size, setting.groups, rng) for split, size in splits.items()}
    labels = [np.arange(size) % setting.groups if setting.groups else None for size in splits.values()]
    select_units, units = (Units.of(size, label) for size, label in zip(splits.values(), labels, strict=True))
    samples = Samples.of(units, select_units, seed)
    ungrouped = Samples.of(Units.of(setting.examples), Units.of(setting.examples_select), seed)
    labels_of = "abcdefghijklmnop"[: setting.strategies]
    cells: dict[str, list[Cell]] = {label: [] for label in labels_of}
    loose: dict[str, list[Cell]] = {label: [] for label in labels_of}
    pooled: list[tuple[Bits, Bits]] = []
    for label in labels_of:
        points = setting.checkpoints if label == "a" else setting.checkpoints_b
        used = spaced_subsets(np.zeros(points), setting.checkpoints, 1, 0)
        for index in range(setting.seeds):
            clean, given = curve(points)
            if label == "a":
                given = given + setting.lead / clean
            if setting.seeds > 1:
                given = given + SEED_SPREAD * rng.standard_normal() / clean
            bits = {}
            for split in splits:
                bits[f"{split}/clean"], bits[f"{split}/robust"] = draw(
                    clean, given, difficulty[split], setting.correlation, rng
                )
            cells[label].append(Cell.of(bits, used, REFERENCE, samples))
            if setting.groups:
                loose[label].append(Cell.of(bits, used, REFERENCE, ungrouped))
            if index == 0:
                pooled.append(
                    (
                        np.hstack([bits["select/clean"], bits["report/clean"]]),
                        np.hstack([bits["select/robust"], bits["report/robust"]]),
                    )
                )
            if label != "a" or not setting.lead:
                chosen.append(true_area(bits, used[0], clean, given, setting.correlation))
    made, _ = resample_strategies(cells, samples, REFERENCE, RESAMPLES, seed, LEVEL)
    for label, each in made.items():
        if label != "a" or not setting.lead:
            note(tallies["basic"], each, basic_interval(each.area, each.all, LEVEL))
            note(tallies["bca"], each, bca_interval(each.area, each.all, LEVEL, acceleration(each.influence)))
            note(tallies["no choice"], each, basic_interval(each.area, each.report + each.luck, LEVEL))
    for method in ("basic", "bca"):  # the test is the same
        judge(tallies[method], made, [each.all for each in made.values()], setting)
    judge(tallies["no choice"], made, [each.report + each.luck for each in made.values()], setting)
    if setting.groups:
        made, _ = resample_strategies(loose, ungrouped, REFERENCE, RESAMPLES, seed, LEVEL)
        for each in made.values():
            note(tallies["no groups"], each, basic_interval(each.area, each.all, LEVEL))
        judge(tallies["no groups"], made, [each.all for each in made.values()], setting)
    if setting.seeds == 1 and setting.strategies == 2:
        areas, drawn = naive(pooled, seed)
        every = (setting.checkpoints, setting.checkpoints_b)
        everything = [true_frontier(points, setting.correlation) for points in every]
        for value, resampled, truth in zip(areas, drawn, everything, strict=True):
            low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            tallies["naive"].areas.append(value)
            tallies["naive"].truths.append(truth)
            tallies["naive"].intervals.append((float(low), float(high)))
        low, high = np.quantile(drawn[0] - drawn[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        tallies["naive"].told_apart.append(not low <= 0 <= high)


def note(tally: Tally, made: Resampled, interval: tuple[float, float]) -> None:
    """Remember one strategy's area and interval."""
    tally.areas.append(made.area)
    tally.intervals.append(interval)


def judge(tally: Tally, made: dict[str, Resampled], resampled: list[Floats], setting: Setting) -> None:
    """Remember what is told apart falsely, and the set that may be best, as :func:`paretune.compare` decides it."""
    areas = np.array([each.area for each in made.values()])
    order = np.argsort(-areas, kind="stable")
    adjusted, _, _ = tell_apart(areas[order], np.stack(resampled)[order], LEVEL)
    p_values = np.full((len(areas), len(areas)), np.nan)
    p_values[np.triu_indices(len(areas), 1)] = adjusted
    decision = decide(areas[order], p_values, level=LEVEL, margin=0.0)
    first = int(np.flatnonzero(order == 0)[0])
    false = decision.told.copy()
    if setting.lead:
        false[first] = False  # it is ahead
    tally.told_apart.append(bool(false.any()))
    tally.sets.append((bool(decision.tied[first]), int(decision.tied.sum())))


def true_area(
    bits: dict[str, Bits], used: NDArray[np.intp], clean: Floats, given: Floats, correlation: float
) -> float:
    """The true area of the front that the select bits choose."""
    select = np.column_stack([bits[f"select/{name}"][used].mean(axis=1) for name in ("clean", "robust")])
    front = used[chosen_front(select, REFERENCE)]
    return float(ordered_area(clean[front], robust_accuracy(clean, given, correlation)[front]))


@functools.cache
def true_frontier(points: int, correlation: float) -> float:
    """The true area of all checkpoints."""
    clean, given = curve(points)
    return area(clean, robust_accuracy(clean, given, correlation))


def measure(setting: Setting) -> list[dict[str, object]]:
    """The rows of one setting."""
    started = time.process_time()
    tallies = {name: Tally() for name in ("basic", "bca", "naive", "no choice", "no groups")}
    chosen: list[float] = []
    for seed in range(setting.repetitions):
        repeat(setting, seed, tallies, chosen)
    rows: list[dict[str, object]] = []
    for method, tally in tallies.items():
        if tally.areas:
            rows.append({"method": method, **asdict(setting), **tally.row(float(np.mean(chosen)))})
            print(rows[-1], f"{time.process_time() - started:.0f} s")
    return rows


def main() -> None:
    """Measure the grid, rewrite the rows."""
    rows = [row for setting in grid() for row in measure(shortened(setting))]
    stamp = {
        "date": datetime.date.today().isoformat(),
        "paretune": version("paretune"),
        "numpy": version("numpy"),
    }
    with (Path(__file__).parent / "coverage.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*stamp, *rows[0]])
        writer.writeheader()
        writer.writerows(stamp | row for row in rows)


def shortened(setting: Setting) -> Setting:
    """With ``REPETITIONS`` in the environment, no more than that: to try the script."""
    most = int(os.environ.get("REPETITIONS", setting.repetitions))
    return replace(setting, repetitions=min(most, setting.repetitions))


if __name__ == "__main__":
    main()

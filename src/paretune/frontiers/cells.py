"""One strategy and seed under one condition: its fronts, and how sure they are.

Two samples make an area uncertain. The *report* examples measure the front; their part is the bootstrap of
:mod:`paretune.frontiers.bootstrap`. The *select* examples choose it: with others, another front would have been chosen,
as good in truth but for the difference that makes two equal strategies differ. That part is resampled here.
Each resample of the select examples chooses its own front, and all are measured on the same report examples.
Their spread is too wide, as it holds the noise of measuring different checkpoints. What two halves of the
report examples agree on does not: the covariance of the areas that they give to the resampled fronts is the
variance of the choice alone, and the spread is scaled down to it. In ``benchmarks/coverage.csv`` the
rows "no choice" show what happens without this part: equal strategies are told apart in up to a quarter of the
cases at a level of 5 %.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.frontiers.bootstrap import Bits, Units, resample_counts
from paretune.frontiers.deciding import Floats
from paretune.frontiers.pareto import Reference, area, frontier_mask, ordered_area
from paretune.runs.store import Run

CHOICES = 64  # of R runs, at most; averaging over more would change areas by less than the examples do
SELECTIONS = 200  # resamples of the select examples: a standard deviation to within 5 %
_NAMES = ("clean", "robust")
_COLUMNS = (
    *(
        "label",
        "seed",
        "run_index",
        "step",
        "clean",
        "robust",
        "clean_select",
        "robust_select",
        "train_seconds",
    ),
    *("examples", "examples_select", "report_id", "select_id", "bits", "bits_key", "elsewhere"),
)
_KEYS = [(split, name) for split in ("select", "report") for name in _NAMES]
HALVINGS = 4  # of the report examples; more make the variance of the choice less noisy, at their own cost

Counts = tuple[
    NDArray[np.float32], ...
]  # (block, units): of the report examples, then of those that are apart


@dataclass(frozen=True, eq=False)
class Apart:
    """Examples that are drawn by themselves: those of another domain."""

    name: str
    units: Units
    halves: NDArray[np.float32]  # as in Samples


@dataclass(frozen=True, eq=False)
class Samples:
    """What the cells of a condition share: the units drawn, and the resamples that choose fronts."""

    report: Units
    select: Units
    choosing: NDArray[np.float32]  # (SELECTIONS, select units), counts
    halves: NDArray[np.float32]  # (2 * HALVINGS, report units), 0 or 1; each row and its next make a whole
    apart: tuple[Apart, ...] = ()

    @classmethod
    def of(cls, report: Units, select: Units, seed: int) -> "Samples":
        """The same seed gives the same samples, whatever is compared."""
        choosing = np.concatenate([*resample_counts(len(select), SELECTIONS, seed + 1)])
        return cls(report, select, choosing, _halves(len(report), np.random.default_rng((seed, 2))))

    def with_apart(self, sizes: Mapping[str, int], seed: int) -> "Samples":
        """These, and examples elsewhere: their number by name."""
        apart = (
            Apart(name, Units.of(size), _halves(size, np.random.default_rng((seed, 2, _number(name)))))
            for name, size in sizes.items()
        )
        return dataclasses.replace(self, apart=tuple(apart))

    @property
    def parts(self) -> Counts:
        """Weights that measure on all examples, and on each half of them: ``(1 + 2 * HALVINGS, units)``."""
        halves = [self.halves, *(sample.halves for sample in self.apart)]
        return tuple(np.vstack([np.ones((1, half.shape[1]), dtype=np.float32), half]) for half in halves)

    @property
    def fewest(self) -> int:
        """Units of what has the fewest: the report split, or one that is apart."""
        return min([len(self.report), *(len(sample.units) for sample in self.apart)])

    def drawn(self, resamples: int, seed: int) -> Iterator[Counts]:
        """Counts of resamples, block by block; those of the report examples do not depend on what is apart."""
        total = len(self.report) + sum(len(sample.units) for sample in self.apart)
        blocks = [resample_counts(len(self.report), resamples, seed, total - len(self.report))]
        for sample in self.apart:
            beside = total - len(sample.units)
            blocks.append(resample_counts(len(sample.units), resamples, (seed, _number(sample.name)), beside))
        yield from zip(*blocks, strict=True)


@dataclass(frozen=True, eq=False)
class Cell:
    """One strategy and seed: its fronts, and the bits of the points on them."""

    fronts: list[NDArray[np.intp]]  # positions among the kept points, in order of the choice; one a subset
    clean: Bits  # (kept points, report examples)
    robust: Bits
    chosen: Floats  # (1 + 2 * HALVINGS, SELECTIONS): resampled fronts, on all and on half the examples

    @classmethod
    def of(
        cls,
        bits: Mapping[str, Bits],
        subsets: list[NDArray[np.intp]],
        reference: Reference,
        samples: Samples,
    ) -> "Cell":
        """Choose on the select bits, keep what measures the choice.

        Args:
            bits: ``select/clean``, ``select/robust``, ``report/clean`` and ``report/robust``, each of shape
                ``(points, examples of the split)``.
            subsets: positions of the points that are used together.
            reference: where areas start.
            samples: those of the condition.
        """
        choosing = [samples.select.means(samples.choosing, bits[f"select/{name}"]) for name in _NAMES]
        (whole_and_halves, *_) = samples.parts
        measuring = [samples.report.means(whole_and_halves, bits[f"report/{name}"]) for name in _NAMES]
        chosen = []
        for subset in subsets:
            on_select, on_report = ([means[:, subset] for means in pair] for pair in (choosing, measuring))
            choice = choose_and_measure((on_select[0], on_select[1]), (on_report[0], on_report[1]), reference)
            chosen.append(choice)
        fronts, kept = fronts_among(bits, subsets, reference)
        return cls(
            fronts=fronts,
            clean=bits["report/clean"][kept],
            robust=bits["report/robust"][kept],
            chosen=np.mean(chosen, axis=0),
        )

    def area(self, clean: Floats, robust: Floats, reference: Reference) -> Floats:
        """The area from accuracies of shape ``(..., kept points)``, averaged over the subsets."""
        areas = [ordered_area(clean[..., front], robust[..., front], reference) for front in self.fronts]
        return np.asarray(np.mean(areas, axis=0))

    def estimate(self, reference: Reference) -> float:
        """The area on the report examples."""
        return float(self.area(self.clean.mean(axis=1), self.robust.mean(axis=1), reference))

    def resampled(self, counts: Counts, samples: Samples, reference: Reference) -> Floats:
        """The area on resampled report examples, shape ``(block,)``."""
        clean, robust = (samples.report.means(counts[0], bits) for bits in (self.clean, self.robust))
        return self.area(clean, robust, reference)

    def influence(self, samples: Samples, reference: Reference) -> Floats:
        """How much each unit moves the area, see :func:`front_influence`."""
        return front_influence(self.fronts, self.clean, self.robust, samples.report, reference)


C = TypeVar("C", covariant=True)


@dataclass(frozen=True, eq=False)
class Trained(Generic[C]):
    """A cell, and what else is told about its runs."""

    cell: C
    seed: int
    optimistic: float
    best_clean: float
    best_robust: float
    train_seconds: float


def narrow(points: pd.DataFrame) -> pd.DataFrame:
    """The columns that a cell is made of: taking a few rows of a table takes as long as it has columns."""
    return points[[name for name in _COLUMNS if name in points]]


def load_cell(
    rows: pd.DataFrame,
    runs: list[Run],
    budget: tuple[int, int],
    reference: Reference,
    samples: Samples,
    seed: int,
) -> Trained[Cell]:
    """The cell of the points of one strategy and seed; ``budget`` is (points, runs) used."""
    rows = rows.sort_values(["run_index", "step"])
    select = rows[["clean_select", "robust_select"]].to_numpy(dtype=float)
    report = rows[["clean", "robust"]].to_numpy(dtype=float)
    subsets = spaced_subsets(rows["run_index"].to_numpy(), *budget, seed)
    used = np.unique(np.concatenate(subsets))
    records = rows.to_dict("records")
    loaded = [runs[records[i]["run_index"]].bits(records[i]) for i in used]
    bits = {f"{split}/{name}": np.stack([run[f"{split}/{name}"] for run in loaded]) for split, name in _KEYS}
    return Trained(
        Cell.of(bits, [np.searchsorted(used, subset) for subset in subsets], reference, samples),
        seed=int(rows["seed"].iloc[0]),
        optimistic=float(np.mean([area(report[s, 0], report[s, 1], reference) for s in subsets])),
        best_clean=float(report[np.argmax(select[:, 0]), 0]),
        best_robust=float(report[np.argmax(select[:, 1]), 1]),
        train_seconds=float(rows.groupby("run_index")["train_seconds"].max().sum()),
    )


def front_influence(
    fronts: list[NDArray[np.intp]], clean: Bits, robust: Bits, units: Units, reference: Reference
) -> Floats:
    """How much each unit moves the area, to first order, in units of its share: shape ``(units,)``.

    The derivative of the staircase with respect to the accuracies, times what the unit adds to them.

    Args:
        fronts: positions among the points, in order of the choice; the area is the mean over them.
        clean: shape ``(points, examples)``.
        robust: shape ``(points, examples)``.
        units: of these examples.
        reference: where areas start.
    """
    clean_means, robust_means = clean.mean(axis=1), robust.mean(axis=1)
    total = np.zeros(len(units))
    scale = (1 - reference[0]) * (1 - reference[1]) * len(fronts)
    by_clean, by_robust = np.zeros(len(clean)), np.zeros(len(clean))
    for front in fronts:
        across = clean_means[front] - reference[0]
        by_clean[front] += np.diff(robust_means[front], prepend=reference[1]) / scale
        by_robust[front] += (across - np.append(across[1:], 0.0)) / scale
    for weights, bits, means in ((by_clean, clean, clean_means), (by_robust, robust, robust_means)):
        total += weights @ units.right(bits) - (weights @ means) * units.sizes
    influence: Floats = total * len(units) / float(units.sizes.sum())
    return influence


def spaced_subsets(run_index: NDArray[Any], points: int, runs: int, seed: int) -> list[NDArray[np.intp]]:
    """Positions of ``points`` evenly spaced points, the last included, from each of ``runs`` runs."""
    by_run = [np.flatnonzero(run_index == run) for run in np.unique(run_index)]
    spaced = [rows[np.arange(1, points + 1) * len(rows) // points - 1] for rows in by_run]
    if math.comb(len(spaced), runs) <= CHOICES:
        return [np.concatenate(chosen) for chosen in combinations(spaced, runs)]
    rng = np.random.default_rng((seed, len(spaced), runs))
    choices = [np.sort(rng.choice(len(spaced), size=runs, replace=False)) for _ in range(CHOICES)]
    return [np.concatenate([spaced[i] for i in choice]) for choice in choices]


def fronts_among(
    bits: Mapping[str, Bits], subsets: list[NDArray[np.intp]], reference: Reference
) -> tuple[list[NDArray[np.intp]], NDArray[np.intp]]:
    """The front that the select bits choose from each subset, as positions among the kept points, and which are kept."""
    select = np.column_stack([bits[f"select/{name}"].mean(axis=1) for name in _NAMES])
    fronts = [subset[chosen_front(select[subset], reference)] for subset in subsets]
    kept, positions = np.unique(np.concatenate(fronts), return_inverse=True)
    return np.split(positions, np.cumsum([len(front) for front in fronts])[:-1]), kept


def chosen_front(select: Floats, reference: Reference) -> NDArray[np.intp]:
    """Positions of the points on the frontier and beyond the reference, by falling clean accuracy."""
    on_front = frontier_mask(select[:, 0], select[:, 1]) & (select > reference).all(axis=1)
    positions = np.flatnonzero(on_front)
    return positions[np.argsort(-select[positions, 0])]


def choose_and_measure(
    choosing: tuple[Floats, Floats], measuring: tuple[Floats, Floats], reference: Reference
) -> Floats:
    """The area of many choices of a front on many measurements: :func:`chosen_front`, many at once.

    Args:
        choosing: clean and robust accuracies that choose, each of shape ``(choices, points)``.
        measuring: clean and robust accuracies that measure, each of shape ``(measurements, points)``.
        reference: where areas start.

    Returns:
        Shape ``(measurements, choices)``.
    """
    (a0, r0), (clean, robust) = reference, measuring
    order, on_front = many_fronts(choosing, reference)
    none = np.full((len(order), 1), -1.0)
    place = np.where(on_front, np.arange(order.shape[1]), -1)
    last = np.maximum.accumulate(np.hstack([none.astype(int), place]), axis=1)[:, :-1]  # on the front, before
    previous = np.where(last >= 0, np.take_along_axis(order, np.maximum(last, 0), axis=1), -1)
    areas = np.empty((len(clean), len(order)))
    for row in range(len(clean)):
        rises = robust[row][order] - np.append(robust[row], r0)[previous]
        areas[row] = np.where(on_front, (clean[row][order] - a0) * rises, 0.0).sum(axis=1)
    normalised: Floats = areas / ((1 - a0) * (1 - r0))
    return normalised


def many_fronts(
    choosing: tuple[Floats, Floats], reference: Reference
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For many choices, all points by falling clean accuracy, and which of them, so ordered, are on the front.

    Args:
        choosing: clean and robust accuracies that choose, each of shape ``(choices, points)``.
        reference: which points on a front are beyond.
    """
    (a0, r0), (clean, robust) = reference, choosing
    height = np.where((clean > a0) & (robust > r0), robust, -1.0)  # -1 is never on a front
    order = np.lexsort((-height, -clean), axis=-1)
    height = np.take_along_axis(height, order, axis=1)
    before = np.maximum.accumulate(np.hstack([np.full((len(order), 1), -1.0), height]), axis=1)[:, :-1]
    return order, height > before


def choice_errors(chosen: Floats) -> Floats:
    """How the area errs through the choice of the front, from :attr:`Cell.chosen`; shape ``(SELECTIONS,)``."""
    whole: Floats = chosen[0] - chosen[0].mean()
    spread = float((whole**2).mean())
    if spread == 0:
        return whole
    halves = chosen[1:] - chosen[1:].mean(axis=1, keepdims=True)
    agreed = float((halves[0::2] * halves[1::2]).mean())
    scaled: Floats = whole * np.sqrt(max(0.0, agreed) / spread)
    return scaled


def _halves(units: int, rng: np.random.Generator) -> NDArray[np.float32]:
    halves = []
    for _ in range(HALVINGS):
        half = np.zeros(units, dtype=np.float32)
        half[rng.permutation(units)[: units // 2]] = 1
        halves += [half, 1 - half]
    return np.stack(halves)


def _number(name: str) -> int:
    return zlib.crc32(name.encode())

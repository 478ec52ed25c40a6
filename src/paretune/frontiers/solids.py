"""One strategy and seed with its shifted accuracies: the volume of its front, and how sure that is.

What is shifted chooses nothing: the points are those that clean and robust accuracy choose on the select split, as for
areas (:mod:`paretune.frontiers.cells`). Their clean and robust accuracies are measured on the report split, their shifted
ones on all shifted images together, each image once.

Shifted images that are made of the images of the report split, such as corrupted ones, come in their order, and are drawn
together with the image that they are made of; other images, such as those of another domain, by themselves. The slabs of a
volume stand on the largest of several measured accuracies, which is a maximum over noise: volumes are too large by
little, as the points share their images. Intervals turn the same error of the resamples round.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune.frontiers.bootstrap import Bits, Units
from paretune.frontiers.cells import Counts, Samples, fronts_among, many_fronts
from paretune.frontiers.deciding import Floats
from paretune.frontiers.volumes import Corner, ordered_volume
from paretune.runs.rows import elsewhere_of
from paretune.runs.store import Run

_STEP = 1e-6  # of accuracies, for derivatives


@dataclass(frozen=True)
class Places:
    """What strategies were measured on elsewhere.

    Args:
        paired: by name, examples that are made of the first so many of the report split.
        apart: by name, the number of other examples.
    """

    paired: dict[str, int]
    apart: dict[str, int]

    @property
    def examples(self) -> int:
        """All together."""
        return sum((self.paired | self.apart).values())


def places_of(rows: pd.DataFrame, labels: Sequence[str]) -> tuple[Places, list[str]] | None:
    """What is elsewhere, and which strategies were measured on that at every point; None if there is nothing.

    Args:
        rows: the points of a condition.
        labels: the strategies in their order; the first that was measured elsewhere at every point says on what.
    """
    said = {label: _same_everywhere(rows[rows["label"] == label]) for label in labels}
    first = next((ids for ids in said.values() if ids), None)
    if first is None:
        return None
    same = [label for label, ids in said.items() if ids == first]
    row = rows[rows["label"] == same[0]].iloc[0]
    there = elsewhere_of(row)
    sizes = {name: (int(said["examples"]), bool(said.get("paired"))) for name, said in there.items()}
    paired, apart = (
        {name: size for name, (size, made_of_report) in sizes.items() if made_of_report == wanted}
        for wanted in (True, False)
    )
    return Places(paired, apart), same


def _same_everywhere(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Names and fingerprints of what is elsewhere, if all of the rows have the same."""
    ids = [[(name, said["id"]) for name, said in elsewhere_of(row).items()] for _, row in rows.iterrows()]
    return ids[0] if all(of_point == ids[0] for of_point in ids) else []


@dataclass(frozen=True, eq=False)
class Share:
    """Answers on units that are drawn together: all of an accuracy, or a part of it.

    Args:
        right: how many are right, shape ``(points, units)``.
        sizes: how many there are, shape ``(units,)``.
        drawn: which of the counts are those of the units.
        weight: of these answers among all that the accuracy is the mean of.
    """

    right: NDArray[np.float32]
    sizes: NDArray[np.float32]
    drawn: int = 0
    weight: float = 1.0

    def means(self, counts: Counts) -> Floats:
        """The part of the accuracies, shape ``(block, points)``."""
        of_units = counts[self.drawn]
        right = (of_units @ self.right.T).astype(np.float64)
        return np.asarray(self.weight * right / (of_units @ self.sizes).astype(np.float64)[:, None])

    @property
    def mean(self) -> Floats:
        """The part of the accuracies on all units, shape ``(points,)``."""
        return np.asarray(self.weight * self.right.sum(axis=1, dtype=np.float64) / float(self.sizes.sum()))

    @property
    def errors(self) -> Floats:
        """What each unit adds to the error of the part of each accuracy, to first order: ``(points, units)``."""
        right = self.weight * self.right.astype(np.float64)
        return np.asarray((right - self.mean[:, None] * self.sizes) / float(self.sizes.sum()))

    def of(self, points: NDArray[np.intp]) -> "Share":
        """Of some of the points."""
        return Share(self.right[points], self.sizes, self.drawn, self.weight)


Accuracy = tuple[Share, ...]


def means_of(accuracy: Accuracy, counts: Counts) -> Floats:
    """Resampled accuracies, shape ``(block, points)``."""
    return np.asarray(sum(share.means(counts) for share in accuracy))


def mean_of(accuracy: Accuracy) -> Floats:
    """Accuracies on all examples, shape ``(points,)``."""
    return np.asarray(sum(share.mean for share in accuracy))


@dataclass(frozen=True, eq=False)
class Course:
    """All points of one strategy and seed, by run and step."""

    seed: int
    runs: NDArray[Any]  # which run each point is of
    select: dict[str, Bits]  # ``select/clean`` and ``select/robust``, which choose
    clean: Accuracy
    robust: Accuracy
    shifted: Accuracy

    @property
    def accuracies(self) -> tuple[Accuracy, Accuracy, Accuracy]:
        """Clean, robust, shifted."""
        return self.clean, self.robust, self.shifted


def load_course(rows: pd.DataFrame, runs: list[Run], places: Places, samples: Samples) -> Course:
    """The course of the points of one strategy and seed."""
    rows = rows.sort_values(["run_index", "step"])
    bits: dict[str, list[Bits]] = {}
    paired = []
    for _, row in rows.iterrows():
        of_point = runs[row["run_index"]].bits(row)
        for key in ("select/clean", "select/robust", "report/clean", "report/robust"):
            bits.setdefault(key, []).append(of_point[key])
        for name in places.apart:
            bits.setdefault(name, []).append(of_point[f"elsewhere/{name}/clean"])
        together = np.zeros(int(row["examples"]), dtype=np.float32)
        for name, size in places.paired.items():
            together[:size] += of_point[f"elsewhere/{name}/clean"]
        paired.append(together)
    stacked = {key: np.stack(of_points) for key, of_points in bits.items()}
    report = samples.report
    shifted = []
    if places.paired:
        copies = np.zeros((1, len(paired[0])), dtype=np.float32)
        for size in places.paired.values():
            copies[:, :size] += 1
        weight = sum(places.paired.values()) / places.examples
        shifted.append(Share(report.right(np.stack(paired)), report.right(copies)[0], 0, weight))
    for number, sample in enumerate(samples.apart, start=1):
        weight = places.apart[sample.name] / places.examples
        shifted.append(Share(sample.units.right(stacked[sample.name]), sample.units.sizes, number, weight))
    return Course(
        seed=int(rows["seed"].iloc[0]),
        runs=rows["run_index"].to_numpy(),
        select={key: stacked[key] for key in ("select/clean", "select/robust")},
        clean=_on_report(stacked["report/clean"], report),
        robust=_on_report(stacked["report/robust"], report),
        shifted=tuple(shifted),
    )


def _on_report(bits: Bits, report: Units) -> Accuracy:
    return (Share(report.right(bits), report.sizes),)


@dataclass(frozen=True, eq=False)
class Solid:
    """One strategy and seed: its fronts, and the accuracies of the points on them."""

    fronts: list[NDArray[np.intp]]  # positions among the kept points, in order of the choice; one a subset
    clean: Accuracy  # of the kept points
    robust: Accuracy
    shifted: Accuracy
    chosen: Floats  # (1 + 2 * HALVINGS, SELECTIONS): resampled fronts, on all and on half the examples

    @classmethod
    def of(
        cls, course: Course, subsets: list[NDArray[np.intp]], reference: Corner, samples: Samples
    ) -> "Solid":
        """Choose on the select bits, keep what measures the choice.

        Args:
            course: all points.
            subsets: positions of the points that are used together.
            reference: where volumes start.
            samples: those of the condition.
        """
        names = ("select/clean", "select/robust")
        choosing = [samples.select.means(samples.choosing, course.select[name]) for name in names]
        measuring = [means_of(accuracy, samples.parts) for accuracy in course.accuracies]
        chosen = []
        for subset in subsets:
            on_select = choosing[0][:, subset], choosing[1][:, subset]
            clean, robust, shifted = (means[:, subset] for means in measuring)
            chosen.append(choose_and_measure(on_select, (clean, robust, shifted), reference))
        fronts, kept = fronts_among(course.select, subsets, (reference[0], reference[1]))
        clean_kept, robust_kept, shifted_kept = (
            tuple(share.of(kept) for share in accuracy) for accuracy in course.accuracies
        )
        return cls(fronts, clean_kept, robust_kept, shifted_kept, np.mean(chosen, axis=0))

    def volume(self, clean: Floats, robust: Floats, shifted: Floats, reference: Corner) -> Floats:
        """The volume from accuracies of shape ``(..., kept points)``, averaged over the subsets."""
        volumes = [
            ordered_volume(clean[..., front], robust[..., front], shifted[..., front], reference)
            for front in self.fronts
        ]
        return np.asarray(np.mean(volumes, axis=0))

    def estimate(self, reference: Corner) -> float:
        """The volume on all examples."""
        clean, robust, shifted = self._measured()
        return float(self.volume(clean, robust, shifted, reference))

    def resampled(self, counts: Counts, samples: Samples, reference: Corner) -> Floats:
        """The volume on resampled examples, shape ``(block,)``."""
        clean, robust, shifted = (
            means_of(accuracy, counts) for accuracy in (self.clean, self.robust, self.shifted)
        )
        return self.volume(clean, robust, shifted, reference)

    def influence(self, samples: Samples, reference: Corner) -> Floats:
        """How much each unit moves the volume, to first order, up to one factor: those of the report, then those apart.

        The volume is linear in each accuracy alone, so a small step gives its derivative.
        """
        accuracies = np.stack(self._measured())
        size = accuracies.size
        steps = _STEP * np.concatenate([-np.eye(size), np.eye(size)]).reshape(2 * size, *accuracies.shape)
        clean, robust, shifted = np.moveaxis(accuracies + steps, 1, 0)
        below, above = self.volume(clean, robust, shifted, reference).reshape(2, *accuracies.shape)
        slopes = (above - below) / (2 * _STEP)
        by_unit = [np.zeros(len(units)) for units in _units(samples)]
        for slope, accuracy in zip(slopes, (self.clean, self.robust, self.shifted), strict=True):
            for share in accuracy:
                by_unit[share.drawn] += slope @ share.errors
        return np.concatenate(by_unit)

    def _measured(self) -> tuple[Floats, Floats, Floats]:
        """Clean, robust and shifted accuracies on all examples, shape ``(kept points,)`` each."""
        return mean_of(self.clean), mean_of(self.robust), mean_of(self.shifted)


def choose_and_measure(
    choosing: tuple[Floats, Floats], measuring: tuple[Floats, Floats, Floats], reference: Corner
) -> Floats:
    """The volume of many choices of a front on many measurements.

    Args:
        choosing: clean and robust accuracies that choose, each of shape ``(choices, points)``.
        measuring: clean, robust and shifted accuracies that measure, each of shape ``(measurements, points)``.
        reference: where volumes start.

    Returns:
        Shape ``(measurements, choices)``.
    """
    order, on_front = many_fronts(choosing, (reference[0], reference[1]))
    volumes = np.empty((len(measuring[0]), len(order)))
    for row, (clean, robust, shifted) in enumerate(zip(*measuring, strict=True)):
        height = np.where(on_front, shifted[order], 0.0)  # in no slab
        volumes[row] = ordered_volume(clean[order], robust[order], height, reference)
    return volumes


def _units(samples: Samples) -> Iterator[Units]:
    yield samples.report
    yield from (sample.units for sample in samples.apart)

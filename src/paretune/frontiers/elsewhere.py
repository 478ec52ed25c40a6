"""Accuracy on the report split beside that elsewhere: on domains that were not trained on, or on shifted images.

Of each seed one checkpoint counts: for clean accuracy the one with the best clean accuracy on the select split, for robust
accuracy the one with the best robust accuracy there. What is elsewhere chooses nothing. Intervals are those of
:mod:`paretune.frontiers.classes`, with the places for classes; copies of one image of the report split stand or fall
together. The interval of a drop combines those of its two sides as for independent samples, on either side of the estimate
(Zou, Huang and Zhang, https://doi.org/10.1016/j.csda.2008.09.033), which is too wide where one side is made of the other,
and from five seeds on the luck of training, which both sides share.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from paretune.frontiers.bootstrap import Bits
from paretune.frontiers.classes import alike, by_class, luck, wilson
from paretune.runs.rows import elsewhere_of
from paretune.runs.store import Run

Interval = tuple[float, float, float]  # estimate, low, high
_CORRUPTION = re.compile(r"Corruption\('(\w+)'")


@dataclass(frozen=True)
class Elsewhere:
    """Accuracies of one strategy, averaged over seeds, each with the ends of its interval.

    Args:
        strategy: its label.
        accuracy: which one, ``clean`` or ``robust``.
        report: on the report split, of what was trained on.
        pooled: on all examples elsewhere, taken together.
        drop: ``report`` minus ``pooled``.
        places: on the examples of each name elsewhere.
        examples: how many these are.
        corruptions: of the names that are of a corruption, which and how severe.
        corrupted: on the examples of these taken together, if there are any.
    """

    strategy: str
    accuracy: str
    report: Interval
    pooled: Interval
    drop: Interval
    places: dict[str, Interval]
    examples: dict[str, int]
    corruptions: dict[str, tuple[str, int]]
    corrupted: Interval | None

    @property
    def others(self) -> list[str]:
        """The names that are of no corruption."""
        return [name for name in self.places if name not in self.corruptions]


def measured_elsewhere(
    rows: pd.DataFrame, runs: list[Run], labels: Sequence[str], level: float, groups: ArrayLike | None
) -> Iterator[Elsewhere]:
    """What there is elsewhere of each strategy, clean and then robust; one that was not measured on the same is left out.

    Args:
        rows: the points of a condition.
        runs: that they index.
        labels: the strategies in their order; the first that was measured elsewhere says on what.
        level: of the intervals.
        groups: a label for each report example where some stand or fall together.
    """
    same: list[tuple[str, str]] = []
    for accuracy in ("clean", "robust"):
        for label in labels:
            points = rows[rows["label"] == label].sort_values(["run_index", "step"])
            chosen = [seed.iloc[np.argmax(seed[f"{accuracy}_select"])] for _, seed in points.groupby("seed")]
            places = [elsewhere_of(row) for row in chosen]
            ids = [[(name, place["id"]) for name, place in of_seed.items()] for of_seed in places]
            same = same or ids[0]
            complete = all(accuracy in place for of_seed in places for place in of_seed.values())
            if not same or not complete or any(of_seed != same for of_seed in ids):
                continue
            examples = {name: int(place["examples"]) for name, place in places[0].items()}
            bits = [runs[row["run_index"]].bits(row) for row in chosen]
            here = np.stack([of_seed[f"report/{accuracy}"] for of_seed in bits])
            by_name = {
                name: np.stack([of_seed[f"elsewhere/{name}/{accuracy}"] for of_seed in bits])
                for name in examples
            }
            paired = [name for name, place in places[0].items() if place.get("paired")]
            units = _units(examples, paired, here.shape[1], groups)
            there, of_unit = _joined(by_name, units, examples)
            names = np.repeat(np.arange(len(examples)), [*examples.values()])
            by_place = by_class(names, there, level=level, groups=of_unit)
            on_report = by_class(np.zeros(here.shape[1], dtype=np.int64), here, level=level, groups=groups)
            ends = zip(by_place.accuracy.tolist(), by_place.low.tolist(), by_place.high.tolist(), strict=True)
            corruptions = {
                name: severity
                for name, place in places[0].items()
                if (severity := corruption_of(name, place.get("shift", "")))
            }
            yield Elsewhere(
                label,
                accuracy,
                report=on_report.plain,
                pooled=by_place.plain,
                drop=_drop(here, there, level, groups, of_unit),
                places=dict(zip(examples, ends, strict=True)),
                examples=examples,
                corruptions=corruptions,
                corrupted=_together(by_name, units, [*corruptions], level),
            )


def corruption_of(name: str, call: str) -> tuple[str, int] | None:
    """Which corruption images are of, and how severe, from their name and the call that made them; None if of another shift.

    >>> corruption_of("fog 3", "Corruption('fog')")
    ('fog', 3)
    """
    match = _CORRUPTION.match(call)
    kind, _, severity = name.rpartition(" ")
    return (kind, int(severity)) if match and match[1] == kind and severity.isdecimal() else None


def _units(
    examples: dict[str, int], paired: Sequence[str], report: int, groups: ArrayLike | None
) -> dict[str, NDArray[np.intp]]:
    """By name, which unit each example is of: those of the report split, then others that are alone."""
    of_report = np.arange(report) if groups is None else np.unique(groups, return_inverse=True)[1]
    units, following = {}, report
    for name, size in examples.items():
        if name in paired:
            units[name] = of_report[:size]
        else:
            units[name] = np.arange(following, following + size)
            following += size
    return units


def _joined(
    bits: dict[str, Bits], units: dict[str, NDArray[np.intp]], names: Iterable[str]
) -> tuple[Bits, NDArray[np.intp]]:
    """The bits of several names, and the unit of each."""
    chosen = [*names]
    return np.concatenate([bits[name] for name in chosen], axis=1), np.concatenate(
        [units[name] for name in chosen]
    )


def _together(
    bits: dict[str, Bits], units: dict[str, NDArray[np.intp]], names: Sequence[str], level: float
) -> Interval | None:
    if not names:
        return None
    right, of_unit = _joined(bits, units, names)
    return by_class(np.zeros(right.shape[1], dtype=np.int64), right, level=level, groups=of_unit).plain


def _drop(
    here: Bits,
    there: Bits,
    level: float,
    groups: ArrayLike | None,
    units: ArrayLike | None = None,
) -> Interval:
    per_seed = here.mean(axis=1) - there.mean(axis=1)
    p, q = float(here.mean()), float(there.mean())
    (p_low, p_high), (q_low, q_high) = (
        wilson(p, alike(here.shape[1], groups), level),
        wilson(q, alike(there.shape[1], units), level),
    )
    trained = float(luck(per_seed[:, None], level)[0])
    below = float(np.hypot(np.hypot(p - p_low, q_high - q), trained))
    above = float(np.hypot(np.hypot(p_high - p, q - q_low), trained))
    gap = float(per_seed.mean())
    return gap, max(-1.0, gap - below), min(1.0, gap + above)


def numbers(results: Sequence[Elsewhere]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a table, of one accuracy: strategy, report, elsewhere, drop, corruptions, and each other place."""
    first = results[0]
    corrupted = [f"{len(first.corruptions)} corruptions"] if first.corruptions else []
    places = [f"{name} ({first.examples[name]:,})" for name in first.others]
    rows = []
    for result in results:
        together = [] if result.corrupted is None else [result.corrupted]
        others = [result.places[name] for name in result.others]
        intervals = (result.report, result.pooled, result.drop, *together, *others)
        rows.append([result.strategy, *map(_text, intervals)])
    return ["strategy", "trained on", "elsewhere", "drop", *corrupted, *places], rows


def _text(interval: Interval) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval)

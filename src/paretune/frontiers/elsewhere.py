"""Accuracy on the report split beside that elsewhere: on domains that were not trained on, or other named examples.

Of each seed one checkpoint counts: for clean accuracy the one with the best clean accuracy on the select split, for robust
accuracy the one with the best robust accuracy there. What is elsewhere chooses nothing. Intervals are those of
:mod:`paretune.frontiers.classes`, with the places for classes. The interval of a drop combines those of its two sides as for
independent samples, on either side of the estimate (Zou, Huang and Zhang, https://doi.org/10.1016/j.csda.2008.09.033), and
from five seeds on the luck of training, which both sides share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from paretune.frontiers.bootstrap import Bits
from paretune.frontiers.classes import alike, by_class, luck, wilson
from paretune.runs.rows import elsewhere_of
from paretune.runs.store import Run

Interval = tuple[float, float, float]  # estimate, low, high


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
    """

    strategy: str
    accuracy: str
    report: Interval
    pooled: Interval
    drop: Interval
    places: dict[str, Interval]
    examples: dict[str, int]


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
            there = np.concatenate([*by_name.values()], axis=1)
            by_place = by_class(np.repeat(np.arange(len(examples)), [*examples.values()]), there, level=level)
            on_report = by_class(np.zeros(here.shape[1], dtype=np.int64), here, level=level, groups=groups)
            ends = zip(by_place.accuracy.tolist(), by_place.low.tolist(), by_place.high.tolist(), strict=True)
            yield Elsewhere(
                label,
                accuracy,
                report=on_report.plain,
                pooled=by_place.plain,
                drop=_drop(here, there, level, groups),
                places=dict(zip(examples, ends, strict=True)),
                examples=examples,
            )


def _drop(here: Bits, there: Bits, level: float, groups: ArrayLike | None) -> Interval:
    per_seed = here.mean(axis=1) - there.mean(axis=1)
    p, q = float(here.mean()), float(there.mean())
    (p_low, p_high), (q_low, q_high) = (
        wilson(p, alike(here.shape[1], groups), level),
        wilson(q, there.shape[1], level),
    )
    trained = float(luck(per_seed[:, None], level)[0])
    below = float(np.hypot(np.hypot(p - p_low, q_high - q), trained))
    above = float(np.hypot(np.hypot(p_high - p, q - q_low), trained))
    gap = float(per_seed.mean())
    return gap, max(-1.0, gap - below), min(1.0, gap + above)


def numbers(results: Sequence[Elsewhere]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a table, of one accuracy: strategy, report, elsewhere, drop, and each place."""
    places = [f"{name} ({count:,})" for name, count in results[0].examples.items()] if results else []
    head = ["strategy", "trained on", "elsewhere", "drop", *places]
    return head, [
        [result.strategy, *map(_text, (result.report, result.pooled, result.drop, *result.places.values()))]
        for result in results
    ]


def _text(interval: Interval) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*interval)

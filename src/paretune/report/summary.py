"""What a page shows of more runs than it can hold: of each condition the largest areas, and the conditions in doubt first.

A page of 5,000 runs is no longer than one of fifty: sections are of so many conditions, strategies and seeds as one can look
at, and every count of what is left out is told. Nothing is judged anew: areas, tests and sentences are those of all runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import pandas as pd

from paretune.frontiers.verdict import Condition
from paretune.report.sections import Part

CELLS = 120  # strategies of all sections together; 12 conditions of 10 strategies make about a megabyte
STRATEGIES = 40  # of a condition
SEEDS = 12  # of a strategy, whose points and staircases are drawn; of few strategies more
LISTED = 200  # conditions in the overview
FILES = "<code>areas.csv</code>, <code>pairs.csv</code> and <code>points.csv</code>"
_IN_DOUBT = ("cannot tell", "tie", "equivalent", "clear", "alone", "unknown")  # the first is looked at first


@dataclass(frozen=True, eq=False)
class Shown:
    """What has sections, of all conditions.

    Args:
        conditions: with the strategies that are shown, as they come.
        rows: the points of each that are drawn.
        numbers: where each condition is among all.
        left_out: what is not shown, in words; empty where all is.
    """

    conditions: tuple[Condition, ...]
    rows: tuple[pd.DataFrame, ...]
    numbers: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return not self.left_out


def shown(conditions: Sequence[Condition], rows: Sequence[pd.DataFrame]) -> Shown:
    """Choose what a page shows; all of it if that is not too much.

    Args:
        conditions: all of them.
        rows: the points of each, as :func:`paretune.report.drawing.as_points` gives them.
    """
    by_doubt = sorted(
        range(len(conditions)), key=lambda number: _IN_DOUBT.index(conditions[number].judged.certainty)
    )
    chosen: list[int] = []
    cells = 0
    for number in by_doubt:
        cells += min(STRATEGIES, len(conditions[number].areas))
        if chosen and cells > CELLS:
            break
        chosen.append(number)
    numbers = tuple(sorted(chosen))
    kept = tuple(first_strategies(conditions[number]) for number in numbers)
    first = max(SEEDS, SEEDS * CELLS // sum(len(condition.areas) for condition in kept))
    drawn = tuple(
        _drawn(rows[number], condition, first) for number, condition in zip(numbers, kept, strict=True)
    )
    left_out = []
    if len(numbers) < len(conditions):
        left_out.append(
            f"{len(conditions) - len(numbers)} of {len(conditions)} conditions have no section: those that the data decide "
            "least come first."
        )
    fewer = [
        (len(conditions[number].areas), condition)
        for number, condition in zip(numbers, kept, strict=True)
        if len(conditions[number].areas) > STRATEGIES
    ]
    if fewer:
        most = max(count for count, _ in fewer)
        left_out.append(
            f"Sections show the {STRATEGIES} strategies with the largest areas, of up to {most}; sentences are about all."
        )
    seeds = max(len(area.seeds) for condition in conditions for area in condition.areas)
    if seeds > first:
        left_out.append(
            f"Points and staircases are drawn of the first {first} seeds of a strategy, of up to {seeds}."
        )
    return Shown(kept, drawn, numbers, tuple(left_out))


def first_strategies(condition: Condition, most: int = STRATEGIES) -> Condition:
    """The condition with its largest areas alone. What its tests decide among these is what they decide among all."""
    if len(condition.areas) <= most:
        return condition
    areas = condition.areas[:most]
    names = {area.strategy for area in areas}
    pairs = tuple(d for d in condition.differences if d.strategy_a in names and d.strategy_b in names)
    elsewhere = tuple(result for result in condition.elsewhere if result.strategy in names)
    slopes = tuple(slope for slope in condition.slopes if slope.strategy in names)
    volumes = condition.volumes and first_strategies(condition.volumes, most)
    return replace(
        condition, areas=areas, differences=pairs, elsewhere=elsewhere, slopes=slopes, volumes=volumes
    )


def _drawn(rows: pd.DataFrame, condition: Condition, seeds: int) -> pd.DataFrame:
    """The points of the first ``seeds`` of the strategies of ``condition``."""
    kept = {(area.strategy, seed) for area in condition.areas for seed in sorted(area.seeds)[:seeds]}
    named = zip(rows["label"], rows["seed"], strict=True)
    mask = [(str(label), int(seed)) in kept for label, seed in named]
    return rows if all(mask) else rows[mask]


def left_out_card(chosen: Shown) -> Part:
    """What is not on the page, and where it is."""
    said = "".join(f"<li>{escape(text)}</li>" for text in chosen.left_out)
    return Part(
        '<section class="card" aria-labelledby="left-out"><h2 id="left-out">Not all is on this page</h2>'
        f"<p>Areas, tests and sentences are of all runs; sections and pictures are not.</p><ul>{said}</ul>"
        f"<p>All of it is in the files that <code>paretune report</code> writes beside its page: {FILES}. A report of fewer "
        'runs shows these in full, as with <code>--task NAME</code> or <code>--where "strategy=LoRA,BitFit"</code>.'
        "</p></section>",
        {},
    )

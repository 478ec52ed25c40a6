"""Which strategies cannot be best any more, from the runs so far: one look of a race.

A race looks at its runs several times and may put out a strategy each time. An area is measured on the *select* split here,
so that the report split has no part in who stays. The difference of two areas errs through two things:

- the select examples, which all runs share: the spread over them of what each moves the difference (the delta method);
- the luck of the training seeds: its variance is that within strategies, pooled over all of them, with as many degrees of
  freedom as there are runs beyond the first of each. A strategy whose own spread is wider has its own; one that has a single
  run, whose spread nobody knows, has ``UNSEEN`` times the pooled one.

The two add up with the degrees of freedom of Satterthwaite (``paretune.frontiers.repeats.combined``). Look k may err
with a probability of ``error / (k (k + 1))``, which over any number of looks adds up to ``error`` at most (Lan & DeMets,
"Discrete sequential boundaries for clinical trials", Biometrika 1983, https://doi.org/10.1093/biomet/70.3.659), and shares
it among the rivals that a strategy has (Bonferroni). So a best strategy is put out with a probability of ``error`` at most
if the spread between seeds is much the same in all strategies: ``benchmarks/racing.py`` measures how often, also where the
best one's is three times that of the others.

Seeds that would hardly tell any two apart are a waste, as they leave the luck of the examples as it is. For each pair, the
difference that all seeds would show is about normal around that of now; where the chance that it would be told is below
``HARDLY`` for all pairs, it is time to stop. That puts nobody out, and so it cannot err.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.special import ndtr, stdtrit

from paretune.frontiers.bootstrap import Bits, Units
from paretune.frontiers.cells import chosen_front, front_influence
from paretune.frontiers.deciding import SAME, Floats
from paretune.frontiers.pareto import Reference, ordered_area
from paretune.frontiers.repeats import Spread, combined

UNSEEN = 3.0  # times the pooled spread between seeds, for a strategy that has shown none of its own
HARDLY = 0.05  # chance that more seeds tell two strategies apart, below which they are not worth their cost


@dataclass(frozen=True, eq=False)
class Entrant:
    """The runs of one strategy on one task, as the select split sees them."""

    areas: Floats  # of each seed
    influence: Floats  # how much each select example moves their mean, shape (examples,)

    @classmethod
    def of(cls, runs: Iterable[tuple[Bits, Bits]], reference: Reference) -> "Entrant":
        """Areas of runs.

        Args:
            runs: of each seed, clean and robust correctness on the select split, each ``(points, examples)``.
            reference: where areas start.
        """
        areas, influences = [], []
        for clean, robust in runs:
            means = np.column_stack([clean.mean(axis=1), robust.mean(axis=1)])
            front = chosen_front(means, reference)
            areas.append(float(ordered_area(means[front, 0], means[front, 1], reference)))
            units = Units.of(clean.shape[1])
            order = [np.arange(len(front))]
            influences.append(front_influence(order, clean[front], robust[front], units, reference))
        return cls(np.array(areas), np.mean(influences, axis=0))

    @property
    def area(self) -> float:
        """The mean over seeds."""
        return float(self.areas.mean())


@dataclass(frozen=True)
class Lead:
    """How far ``ahead`` is before ``behind`` on the select split, and how far at least."""

    ahead: str
    behind: str
    difference: float
    low: float


@dataclass(frozen=True)
class Look:
    """What a look finds."""

    out: tuple[Lead, ...]  # of each strategy that cannot be best, the surest lead over it
    equivalent: bool  # those that stay differ by less than the margin
    futile: bool  # more seeds would hardly put out another one, nor show that those that stay are equivalent


@dataclass(frozen=True)
class Rules:
    """What is fixed before a race.

    Args:
        level: with which those that stay hold a best one, together with the tests on the report split.
        margin: areas closer than this are equal for practical purposes.
        rivals: that each strategy has.
        seeds: that each may get.
    """

    level: float
    margin: float
    rivals: int
    seeds: int

    def share(self, look: int) -> float:
        """With which probability look 1, 2, … may put out a strategy for being behind one rival if it is not.

        All together ``(1 - level) / 2`` at most; the other half is left to the tests on the report split.
        """
        return (1 - self.level) / 2 / (look * (look + 1)) / self.rivals


def look_at(entrants: Mapping[str, Entrant], alive: Sequence[str], rules: Rules, look: int) -> Look:
    """Who of those ``alive`` is behind another of them by the margin or more, for sure.

    Args:
        entrants: all that have runs; also those that are out show how far seeds spread.
        alive: names of those that may be best so far.
        rules: of the race.
        look: 1 for the first one.
    """
    pooled, freedom = seed_variance(entrants.values())
    least = max(rules.margin, SAME)
    leads, chances, ends = {}, {}, {}
    for a, b in permutations(alive, 2):
        gap = gap_of(entrants[a], entrants[b], pooled, freedom)
        if gap is not None:
            low = gap.mean - float(stdtrit(gap.freedom, 1 - rules.share(look))) * gap.error
            leads[a, b] = Lead(a, b, gap.mean, low)
            chances[a, b], ends[a, b] = _at_the_end(entrants[a], entrants[b], pooled, freedom, rules)
    out = []
    for name in alive:
        told = [
            lead
            for lead in leads.values()
            if lead.behind == name and lead.low > 0 and lead.difference >= least
        ]
        if told:
            out.append(max(told, key=lambda lead: lead.low))
    left = [name for name in alive if name not in {lead.behind for lead in out}]
    pairs = [*permutations(left, 2)]
    known = bool(pairs) and leads.keys() >= {*pairs}
    # How far at most a is behind b is how far at least b is ahead of a, the other way round.
    return Look(
        out=tuple(out),
        equivalent=known and all(leads[pair].low >= -rules.margin for pair in pairs),
        futile=known
        and all(chances[pair] < HARDLY for pair in pairs)
        and max(ends[pair] for pair in pairs) > rules.margin,
    )


def gap_of(a: Entrant, b: Entrant, pooled: float, freedom: int) -> Spread | None:
    """The difference of the areas of ``a`` and ``b``; None where nothing says how far seeds spread, or nothing errs.

    Args:
        a: one strategy.
        b: another.
        pooled: variance between seeds, see :func:`seed_variance`.
        freedom: of it.
    """
    if not freedom:
        return None
    of_seeds = math.sqrt(sum(_of_run(entrant, pooled) / len(entrant.areas) for entrant in (a, b)))
    return combined(a.area - b.area, [(_of_examples(a, b), len(a.influence) - 1), (of_seeds, freedom)])


def seed_variance(entrants: Iterable[Entrant]) -> tuple[float, int]:
    """Of the areas of one strategy between seeds, pooled over strategies, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for entrant in entrants:
        squares += float(((entrant.areas - entrant.area) ** 2).sum())
        freedom += len(entrant.areas) - 1
    return (squares / freedom if freedom else 0.0), freedom


def _at_the_end(a: Entrant, b: Entrant, pooled: float, freedom: int, rules: Rules) -> tuple[float, float]:
    """The chance that ``a`` would be told to be ahead of ``b`` with all seeds, and the half width of the difference then."""
    # What has one run now will have shown its spread then, which is like that of the others for all that is known.
    variances = [_of_run(entrant, pooled) if len(entrant.areas) > 1 else pooled for entrant in (a, b)]
    at_end = combined(
        a.area - b.area,
        [
            (_of_examples(a, b), len(a.influence) - 1),
            (
                math.sqrt(sum(variances) / rules.seeds),
                freedom + 2 * rules.seeds - len(a.areas) - len(b.areas),
            ),
        ],
    )
    if at_end is None:
        return 0.0, 0.0
    half = float(stdtrit(at_end.freedom, 1 - rules.share(rules.seeds))) * at_end.error
    moves = sum(
        variance * (1 / len(entrant.areas) - 1 / rules.seeds)
        for variance, entrant in zip(variances, (a, b), strict=True)
    )
    short = at_end.mean - max(half, rules.margin)
    return (float(ndtr(short / math.sqrt(moves))) if moves > 0 else float(short > 0)), half


def _of_examples(a: Entrant, b: Entrant) -> float:
    """The standard error of the difference through the examples."""
    moved = a.influence - b.influence
    return float(np.sqrt((moved**2).mean() / (len(moved) - 1)))


def _of_run(entrant: Entrant, pooled: float) -> float:
    """The variance of the area of a run of ``entrant`` through its seed."""
    return max(pooled, float(entrant.areas.var(ddof=1))) if len(entrant.areas) > 1 else UNSEEN**2 * pooled

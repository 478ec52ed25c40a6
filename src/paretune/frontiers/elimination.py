"""Which strategies cannot be best any more, from the runs so far: one look of a race.

A race looks at its runs several times and may put out a strategy each time. An area is measured on the *select* split here,
so that the report split has no part in who stays. The difference of two areas errs through two things:

- the select examples, which all runs share: the spread over them of what each moves the difference (the delta method);
- the luck of the training seeds: its variance is that within strategies, pooled over all of them, with as many degrees of
  freedom as there are runs beyond the first of each. A strategy whose own spread is wider has its own; one that has a single
  run, whose spread nobody knows, has :data:`UNSEEN` times the pooled one.

The two add up with the degrees of freedom of Satterthwaite (:func:`paretune.frontiers.repeats.combined`). Look k may err
with a probability of ``error / (k (k + 1))``, which over any number of looks adds up to ``error`` at most (Lan & DeMets,
"Discrete sequential boundaries for clinical trials", Biometrika 1983, https://doi.org/10.1093/biomet/70.3.659), and shares
it among the rivals that a strategy has (Bonferroni). So a best strategy is put out with a probability of ``error`` at most
if the spread between seeds is much the same in all strategies: ``benchmarks/racing.py`` measures how often, also where the
best one's is three times that of the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from paretune.frontiers.bootstrap import Bits, Units
from paretune.frontiers.cells import chosen_front, front_influence
from paretune.frontiers.deciding import SAME, Floats
from paretune.frontiers.pareto import Reference, ordered_area
from paretune.frontiers.repeats import Spread, combined

UNSEEN = 3.0  # times the pooled spread between seeds, for a strategy that has shown none of its own


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


def look_error(level: float, look: int) -> float:
    """With which probability look 1, 2, … of a race may err; all together with ``(1 - level) / 2`` at most.

    The other half is left to the tests on the report split, so that both together hold ``level``.
    """
    return (1 - level) / 2 / (look * (look + 1))


def look_at(
    entrants: Mapping[str, Entrant], alive: Sequence[str], *, error: float, rivals: int, margin: float
) -> Look:
    """Who of those ``alive`` is behind another of them by the margin or more, for sure.

    Args:
        entrants: all that have runs; also those that are out show how far seeds spread.
        alive: names of those that may be best so far.
        error: probability with which a best one may be put out.
        rivals: that each had at the start.
        margin: areas closer than this are equal for practical purposes.
    """
    share = error / rivals
    leads = [
        Lead(a, b, gap.mean, gap.mean - _quantile(gap, share) * gap.error)
        for a in alive
        for b in alive
        if a != b and (gap := gap_of(entrants, a, b)) is not None
    ]
    out = []
    for name in alive:
        told = [
            lead
            for lead in leads
            if lead.behind == name and lead.low > 0 and lead.difference >= max(margin, SAME)
        ]
        if told:
            out.append(max(told, key=lambda lead: lead.low))
    gone = {lead.behind for lead in out}
    among = [lead for lead in leads if not {lead.ahead, lead.behind} & gone]
    left = len(alive) - len(gone)
    # How far at most a is behind b is how far at least b is ahead of a, the other way round.
    equivalent = left > 1 and len(among) == left * (left - 1) and all(lead.low >= -margin for lead in among)
    return Look(tuple(out), equivalent)


def gap_of(entrants: Mapping[str, Entrant], a: str, b: str) -> Spread | None:
    """The difference of the areas of ``a`` and ``b``; None where nothing says how far seeds spread, or nothing errs."""
    variance, freedom = seed_variance(entrants.values())
    if not freedom:
        return None
    first, second = entrants[a], entrants[b]
    moved = first.influence - second.influence
    of_examples = float(np.sqrt((moved**2).mean() / (len(moved) - 1)))
    of_seeds = float(np.sqrt(_of_mean(first, variance) + _of_mean(second, variance)))
    return combined(first.area - second.area, [(of_examples, len(moved) - 1), (of_seeds, freedom)])


def seed_variance(entrants: Iterable[Entrant]) -> tuple[float, int]:
    """Of the areas of one strategy between seeds, pooled over strategies, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for entrant in entrants:
        squares += float(((entrant.areas - entrant.area) ** 2).sum())
        freedom += len(entrant.areas) - 1
    return (squares / freedom if freedom else 0.0), freedom


def _of_mean(entrant: Entrant, pooled: float) -> float:
    """The variance of the mean area of ``entrant`` through its seeds."""
    seeds = len(entrant.areas)
    variance = max(pooled, float(entrant.areas.var(ddof=1))) if seeds > 1 else UNSEEN**2 * pooled
    return variance / seeds


def _quantile(gap: Spread, share: float) -> float:
    return float(stdtrit(gap.freedom, 1 - share))

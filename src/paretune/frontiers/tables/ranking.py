"""The areas of one task of a table with their ranks, and the sentences they allow."""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from paretune.frontiers import deciding
from paretune.frontiers.deciding import Decision, decide, listed
from paretune.frontiers.repeats import Spread


@dataclass(frozen=True)
class GroupArea:
    """The area under the frontiers of one group of one task, the mean over its seeds."""

    task: str
    group: str
    area: float
    low: float | None  # None where nothing says how sure the area is
    high: float | None
    k: int  # points of each frontier that count
    points: tuple[int, int]  # fewest and most that its frontiers have
    seeds: tuple[str, ...]
    per_seed: tuple[float, ...]  # areas

    @property
    def strategy(self) -> str:
        """The group, as plots call it."""
        return self.group


@dataclass(frozen=True)
class GroupDifference:
    """area(group_a) - area(group_b)."""

    group_a: str
    group_b: str
    difference: float
    low: float | None  # the interval of this pair alone
    high: float | None
    p_value: float | None  # adjusted over the pairs of the task that can be tested
    spread: Spread | None = None  # its error, where there is an interval


Certainty = deciding.Certainty | Literal["unknown"]


@dataclass(frozen=True)
class TaskRanking:
    """All groups of one task; ``areas`` are sorted best first, ``differences`` are those of all pairs."""

    task: str
    areas: tuple[GroupArea, ...]
    differences: tuple[GroupDifference, ...]
    k: int
    equal_budgets: bool  # every frontier counts with k points
    covers: str  # a sentence: what intervals are about, or why there are none
    notes: tuple[str, ...]
    level: float
    margin: float

    @property
    def best(self) -> GroupArea:
        """The largest area."""
        return self.areas[0]

    @property
    def ranks(self) -> tuple[float, ...]:
        """Of ``areas``, 1 for the largest; equal areas share theirs."""
        return tuple(float(rank) for rank in rankdata([-round(each.area, 12) for each in self.areas]))

    @property
    def to_best(self) -> tuple[GroupDifference, ...]:
        """How far the others are behind the largest area."""
        return tuple(d for d in self.differences if d.group_a == self.best.group)

    @functools.cached_property
    def decision(self) -> Decision:
        """What the tests decide, on ``areas``; everything that is said follows from it."""
        place = {each.group: number for number, each in enumerate(self.areas)}
        p_values = np.full((len(place), len(place)), np.nan)
        for d in self.differences:
            if d.p_value is not None:
                p_values[place[d.group_a], place[d.group_b]] = d.p_value
        return decide([each.area for each in self.areas], p_values, level=self.level, margin=self.margin)

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """Of the tied, those that are tested and not told apart from the best at ``level``."""
        made = self.decision
        return self._named(made.tied & made.tested[0] & ~made.told[0])

    @property
    def tied(self) -> tuple[str, ...]:
        """The best group, and all that are not told to be behind another by ``margin`` or more.

        Of groups that could not be tested against the best, those that have less than ``margin`` to it.
        """
        made = self.decision
        return self._named(made.tied & (made.tested[0] | made.told[0] | made.close[0]))

    @property
    def untested(self) -> tuple[str, ...]:
        """The groups of which nothing says how certain it is that they are behind the best."""
        return tuple(each.group for each in self.areas[1:] if each.group not in self._decided)

    @functools.cached_property
    def _decided(self) -> set[str]:
        made = self.decision
        return {*self._named(made.tested[0] | ~made.tied)}

    def _named(self, chosen: "deciding.Flags") -> tuple[str, ...]:
        return tuple(each.group for each, one in zip(self.areas, chosen, strict=True) if one)

    @property
    def certainty(self) -> Certainty:
        """What the data decide: as for a recommendation, or ``unknown`` where they cannot say."""
        if self.untested:
            return "unknown"
        within = all(_within(d, self.margin) for d in self.to_best)
        return self.decision.certainty(equivalent=within and self.best.area > 0)

    @property
    def verdict(self) -> str:
        """What the numbers allow to say."""
        return f"{self.sentence} {self.covers}"

    @property
    def sentence(self) -> str:
        """The verdict without what intervals are about."""
        best = self.best
        among = "an area of" if len(self.areas) == 1 else "the largest area,"
        interval = (
            f"{100 * self.level:g}% interval {best.low:.3f} to {best.high:.3f}; "
            if best.low is not None and best.high is not None
            else ""
        )
        size = f"K = {self.k}" if self.equal_budgets else "all points"
        repeats = f", {len(best.seeds)} repeats" if len(best.seeds) > 1 else ""
        parts = [f"{best.group} has {among} {best.area:.3f} ({interval}{size}{repeats})"]
        names, certainty = [each.group for each in self.areas], self.certainty
        if certainty == "alone":
            parts.append("there is no other group to compare it with")
        elif certainty == "unknown":
            whom = (
                "this" if len(self.untested) == len(names) - 1 else f"its lead over {listed(self.untested)}"
            )
            parts.append(f"these data cannot say how certain {whom} is")
        parts += self.decision.clauses(names, self.margin)
        if certainty == "clear":
            parts.append("every other group is told apart from it")
        elif certainty == "equivalent" and self.margin:
            parts.append(f"all differ by less than {self.margin:g} for practical purposes")
        elif certainty == "cannot tell":
            parts.append("these data do not tell which group is best")
        parts += self.decision.behind_others(names)
        return f"{'; '.join(parts)}."


def _within(d: GroupDifference, margin: float) -> bool:
    return d.low is not None and d.high is not None and -margin <= d.low and d.high <= margin

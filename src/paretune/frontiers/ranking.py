"""The strategies of one task in the order of their areas, and the sentences that their tests allow.

Both sources of areas end here: runs (:class:`paretune.frontiers.verdict.Condition`) and tables
(:class:`paretune.frontiers.tables.ranking.TaskRanking`).
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.frontiers.deciding import (
    Certainty,
    Decision,
    Flags,
    conclusion,
    decide,
    listed,
    p_matrix,
    within,
)
from paretune.frontiers.repeats import Spread
from paretune.frontiers.settings import Settings


def ranks(areas: ArrayLike) -> NDArray[np.float64]:
    """Along the last axis, 1 for the largest of ``areas``; equal ones share theirs."""
    from scipy.stats import rankdata  # takes seconds to import, and training imports this module

    return np.asarray(rankdata(-np.asarray(areas, dtype=np.float64).round(12), axis=-1), dtype=np.float64)


@dataclass(frozen=True)
class Area:
    """The area under the frontiers of one strategy (of a table: one group) of one task, the mean over its seeds."""

    task: str
    strategy: str
    area: float
    low: float | None  # None where nothing says how sure the area is
    high: float | None
    k: int  # points of each frontier that count
    seeds: tuple[int | str, ...]
    per_seed: tuple[float, ...]  # areas


@dataclass(frozen=True)
class Gap:
    """area(strategy_a) - area(strategy_b)."""

    strategy_a: str
    strategy_b: str
    difference: float
    low: float | None  # the interval of this pair alone
    high: float | None
    p_value: float | None  # adjusted over the pairs of the task that can be tested
    spread: Spread | None  # its error, where it has one


A = TypeVar("A", bound=Area, covariant=True)
G = TypeVar("G", bound=Gap, covariant=True)


@dataclass(frozen=True)
class Ranking(Generic[A, G]):
    """``areas`` are sorted best first, ``differences`` are those of all pairs."""

    task: str
    areas: tuple[A, ...]
    differences: tuple[G, ...]
    k: int  # points of each frontier, or run, that count
    notes: tuple[str, ...]
    settings: Settings

    @property
    def quantity(self) -> str:
        """What the numbers in ``areas`` are."""
        return "area"

    @property
    def level(self) -> float:
        """Of intervals and tests."""
        return self.settings.level

    @property
    def margin(self) -> float:
        """Areas closer than this are equal for practical purposes."""
        return self.settings.margin

    @property
    def best(self) -> A:
        """The largest area."""
        return self.areas[0]

    @property
    def to_best(self) -> tuple[G, ...]:
        """How far the others are behind the largest area."""
        return tuple(d for d in self.differences if d.strategy_a == self.best.strategy)

    @functools.cached_property
    def decision(self) -> Decision:
        """What the tests decide, on ``areas``; everything that is said follows from it."""
        p_values = p_matrix(
            [area.strategy for area in self.areas],
            ((d.strategy_a, d.strategy_b, d.p_value) for d in self.differences),
        )
        return decide([area.area for area in self.areas], p_values, level=self.level, margin=self.margin)

    @property
    def tied(self) -> tuple[str, ...]:
        """The largest area, and all that are not told to be behind another by ``margin`` or more.

        Of those that could not be tested against the largest, those that have less than ``margin`` to it.
        """
        decision = self.decision
        return self._named(decision.tied & (decision.tested[0] | decision.told[0] | decision.close[0]))

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """Of the tied, those that are tested and not told apart from the largest area at ``level``."""
        decision = self.decision
        return self._named(decision.tied & decision.tested[0] & ~decision.told[0])

    @property
    def untested(self) -> tuple[str, ...]:
        """Those of which nothing says how certain it is that they are behind the largest area."""
        return self._named(self.decision.untested)

    @property
    def certainty(self) -> Certainty:
        """What the data decide; see :class:`paretune.frontiers.verdict.Recommendation`."""
        equivalent = within(((d.low, d.high) for d in self.to_best), self.margin)
        return self.decision.certainty(equivalent=equivalent and self.best.area > 0)

    def _named(self, chosen: Flags) -> tuple[str, ...]:
        return tuple(area.strategy for area, mark in zip(self.areas, chosen, strict=True) if mark)

    def _said(
        self,
        noun: str,
        budget: str,
        *,
        floors: str = "",
        remarks: Iterable[str] = (),
        advice: Iterable[str] = (),
    ) -> str:
        """The verdict without what intervals are about.

        Args:
            noun: what is compared.
            budget: of the largest area.
            floors: of the areas.
            remarks: before what is concluded.
            advice: after it.
        """
        best, certainty = self.best, self.certainty
        names = [area.strategy for area in self.areas]
        article = "an" if self.quantity == "area" else "a"
        what = (
            f"{article} {self.quantity}{floors} of"
            if certainty == "alone"
            else f"the largest {self.quantity}{floors},"
        )
        interval = (
            ""
            if best.low is None or best.high is None
            else f"{100 * self.level:g}% interval {best.low:.3f} to {best.high:.3f}; "
        )
        parts = [f"{best.strategy} has {what} {best.area:.3f} ({interval}{budget})"]
        if certainty == "unknown":
            every = len(self.untested) == len(names) - 1
            parts.append(
                f"these data cannot say how certain {'this' if every else f'its lead over {listed(self.untested)}'} is"
            )
        parts += [*self.decision.clauses(names, self.margin, quantity=self.quantity), *remarks]
        parts += conclusion(certainty, self.margin, noun)
        parts += [*advice, *self.decision.behind_others(names)]
        return f"{'; '.join(parts)}."

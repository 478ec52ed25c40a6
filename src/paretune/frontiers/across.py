"""Several tasks: does one strategy win in general, and which wins where.

Tasks are the sample now. The mean difference of two strategies over tasks has Student's t over its tasks as interval
and test, Holm-adjusted over the pairs: it is about tasks like these, and a few of them are enough where they agree. As
the areas of all tasks have one unit, a share of what a perfect model reaches, their differences can be averaged; mean
ranks stand beside them, as recommended by Demšar, "Statistical comparisons of classifiers over multiple data sets"
(JMLR 2006, https://jmlr.org/papers/v7/demsar06a.html), whose signed-rank tests cannot tell anything apart below six
tasks. Repeats, or the examples of runs, say besides how sure the mean difference is on these very tasks.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from paretune.frontiers.deciding import (
    SAME,
    Certainty,
    Decision,
    conclusion,
    decide,
    gap_text,
    p_matrix,
    within,
)
from paretune.frontiers.inference import holm
from paretune.frontiers.power import needed_seeds, needed_tasks
from paretune.frontiers.ranking import Area, Gap, Ranking, ranks
from paretune.frontiers.repeats import Spread, pooled
from paretune.frontiers.verdict import Comparison, Condition

log = logging.getLogger(__name__)

_SAID = 2  # pairs of which the verdict has the numbers
_GENERAL = " on tasks in general"
_POWER = 0.8  # chance to find a difference, with the tasks or repeats that would settle it


@dataclass(frozen=True)
class TaskWinner:
    """The best strategy of one task."""

    task: str
    strategy: str  # the largest area
    area: float
    certainty: str  # as in paretune.frontiers.verdict.Recommendation
    tied: tuple[str, ...]  # with it, itself included
    sharing: tuple[str, ...]  # those whose area is the same, itself included

    @classmethod
    def of(cls, ranking: Ranking[Area, Gap]) -> Self:
        """That of one task."""
        best = ranking.best
        sharing = tuple(area.strategy for area in ranking.areas if best.area - area.area < SAME)
        return cls(ranking.task, best.strategy, best.area, ranking.certainty, ranking.tied, sharing)


@dataclass(frozen=True)
class PairAcrossTasks:
    """Two strategies over all tasks; the first has the larger mean area."""

    strategy_a: str
    strategy_b: str
    wins: int  # tasks where a has the larger area by more than the margin
    losses: int
    mean_difference: float  # of areas, a - b
    low: float | None  # the interval of this pair alone, for tasks like these; None where they are copies
    high: float | None
    p_value: float | None  # Student's t over tasks, two-sided, Holm-adjusted
    here: tuple[float, float] | None  # the interval for these very tasks; None where a task has no interval
    tasks_needed: int | None  # to tell the two apart, with a chance of 80 %; None: unknown, or too many
    repeats_needed: int | None  # of each strategy, to tell them apart on these tasks; None if unknown


@dataclass(frozen=True)
class AcrossTasks:
    """All tasks under one attack and epsilon; ``ranked`` is sorted by mean area, the largest first."""

    attack: str  # this, the threat and the epsilon are empty for tables that do not name them
    threat: str
    epsilon: float
    tasks: tuple[str, ...]
    ranked: tuple[str, ...]  # strategies that every task has
    mean_areas: tuple[float, ...]
    mean_ranks: tuple[float, ...]  # 1 is best; ties share
    left_out: tuple[str, ...]  # strategies that some task lacks
    pairs: tuple[PairAcrossTasks, ...]
    winners: tuple[TaskWinner, ...]
    level: float
    margin: float
    quantity: str = "area"  # what the numbers are: areas, or volumes

    @functools.cached_property
    def decision(self) -> Decision:
        """What the tests over tasks decide, on ``ranked``; everything that is said follows from it."""
        p_values = p_matrix(self.ranked, ((p.strategy_a, p.strategy_b, p.p_value) for p in self.pairs))
        return decide(self.mean_areas, p_values, level=self.level, margin=self.margin)

    @property
    def tied(self) -> tuple[str, ...]:
        """The largest mean area, and all that are not told to be behind another by the margin or more."""
        return tuple(name for name, tied in zip(self.ranked, self.decision.tied, strict=True) if tied)

    @property
    def certainty(self) -> Certainty:
        """What the tasks decide: as for a recommendation, or ``unknown`` where they are copies of one another."""
        equivalent = within(((pair.low, pair.high) for pair in self._to_best()), self.margin)
        return self.decision.certainty(equivalent=equivalent and self.mean_areas[0] > 0)

    @property
    def verdict(self) -> str:
        """What the tasks allow to say."""
        count, certainty = len(self.tasks), self.certainty
        parts = [
            f"{self.ranked[0]} has the largest mean {self.quantity}, {self.mean_areas[0]:.3f} over {count} tasks "
            f"(mean rank {self.mean_ranks[0]:.2f})"
        ]
        if certainty == "alone":
            return (
                f"{self.ranked[0]} has a mean {self.quantity} of {self.mean_areas[0]:.3f} over {count} tasks; there is no "
                "other strategy that every task has."
            )
        if certainty == "unknown":
            parts.append("these tasks are too alike to say how certain this is")
        parts += self.decision.clauses(self.ranked, self.margin, _GENERAL, self.quantity)
        parts += conclusion(certainty, self.margin, "strategy", of="these tasks", where=_GENERAL)
        parts += self.decision.behind_others(self.ranked)
        winners = {name for winner in self.winners for name in winner.sharing}
        parts.append(
            f"the largest {self.quantity} is {next(iter(winners))}'s in every task"
            if len(winners) == 1
            else f"{len(winners)} strategies have the largest {self.quantity} of some task"
        )
        like = [pair for pair in self._to_best() if pair.strategy_b in self.tied] or self._to_best()[:1]
        return " ".join([f"{'; '.join(parts)}.", *(self._pair(pair) for pair in like[:_SAID])])

    def _to_best(self) -> list[PairAcrossTasks]:
        return [pair for pair in self.pairs if pair.strategy_a == self.ranked[0]]

    def _pair(self, pair: PairAcrossTasks) -> str:
        """The pooled estimate of a pair, and what more would settle it."""
        here = ""
        if pair.here is not None:
            here = f", for these tasks alone {_signed(pair.here[0])} to {_signed(pair.here[1])}"
        adjusted = f", adjusted over {len(self.pairs)} pairs" if len(self.pairs) > 1 else ""
        lead = f"{pair.strategy_a} is ahead of {pair.strategy_b} by {gap_text(pair.mean_difference)}"
        if pair.low is None or pair.high is None or pair.p_value is None:
            return f"{lead} on each of these tasks: copies of one task say nothing of others."
        text = (
            f"{pair.strategy_a} and {pair.strategy_b} have the same mean {self.quantity}"
            if pair.mean_difference < SAME
            else f"{lead} on average"
        )
        text += (
            f" ({100 * self.level:g}% interval for tasks like these {_signed(pair.low)} to {_signed(pair.high)}{here}; "
            f"p {_p_text(pair.p_value)}{adjusted})"
        )
        place = self.ranked.index(pair.strategy_b)
        effect = max(pair.mean_difference, self.margin)
        if self.decision.told[0, place] or effect < SAME:
            return f"{text}."
        if pair.tasks_needed is not None and pair.tasks_needed <= len(self.tasks):
            return (
                f"{text}; a true difference of {gap_text(effect)} would have been told by these tasks with a chance of "
                f"{_POWER:.0%}: if there is one, it is smaller."
            )
        settle = (
            "no number of such tasks would settle it"
            if pair.tasks_needed is None
            else f"about {pair.tasks_needed} such tasks would settle it in general"
        )
        if pair.here is not None and pair.here[0] <= 0 and pair.repeats_needed is not None:
            settle += f", about {pair.repeats_needed} seeds on these tasks"
        return (
            f"{text}; {settle}, with a chance of {_POWER:.0%} if the true difference is {gap_text(effect)}."
        )


def across_tasks(comparison: Comparison) -> tuple[AcrossTasks, ...]:
    """The strategies over all tasks that share an attack and an epsilon; one entry for each of these.

    Args:
        comparison: from :func:`paretune.compare`; conditions of a single task are left out, and with a warning those of
            an attack and an epsilon whose tasks share no strategy.

    Raises:
        ValueError: no attack and epsilon has two tasks that share a strategy.
    """
    grouped: dict[tuple[str, float, str], list[Condition]] = {}
    for condition in comparison.conditions:
        grouped.setdefault((condition.threat, condition.epsilon, condition.attack), []).append(
            condition.judged
        )
    several = [conditions for conditions in grouped.values() if len(conditions) > 1]
    if not several:
        raise ValueError(
            "across_tasks needs at least two tasks under one attack and epsilon; got "
            + "; ".join(f"{c.task}: {c.attack}" for c in comparison.conditions)
        )
    told, refused = [], []
    for same in several:
        first = same[0]
        try:
            told.append(
                across_rankings(same, attack=first.attack, threat=first.threat, epsilon=first.epsilon)
            )
        except ValueError as error:
            refused.append(f"{first.attack} at epsilon {first.epsilon:.4g}: {error}")
    if not told:
        raise ValueError("; ".join(refused))
    for reason in refused:
        log.warning("left out of what is said over tasks: %s", reason)
    return tuple(told)


def across_rankings(
    rankings: Sequence[Ranking[Area, Gap]],
    *,
    repeats: int | None = None,
    attack: str = "",
    threat: str = "",
    epsilon: float = 0.0,
) -> AcrossTasks:
    """The strategies over all tasks.

    Args:
        rankings: one for each task, of one level and margin.
        repeats: of each strategy, the fewest, where the spreads of differences come from these.
        attack: what the tasks share.
        threat: likewise.
        epsilon: likewise.

    Raises:
        ValueError: no strategy is in all tasks.
    """
    tables = {ranking.task: {area.strategy: area.area for area in ranking.areas} for ranking in rankings}
    everywhere = sorted(set.intersection(*(set(table) for table in tables.values())))
    if not everywhere:
        raise ValueError(
            "no strategy is in all tasks: "
            + "; ".join(f"{task} has {', '.join(table)}" for task, table in tables.items())
        )
    # Of shape (tasks, strategies).
    areas = np.array([[table[name] for name in everywhere] for table in tables.values()])
    means = areas.mean(axis=0)
    mean_ranks = ranks(areas).mean(axis=0)
    order = np.lexsort((mean_ranks, -means.round(12)))
    ranked = [everywhere[i] for i in order]
    return AcrossTasks(
        attack=attack,
        threat=threat,
        epsilon=epsilon,
        tasks=tuple(tables),
        ranked=tuple(ranked),
        mean_areas=tuple(float(means[i]) for i in order),
        mean_ranks=tuple(float(mean_ranks[i]) for i in order),
        left_out=tuple(sorted(set.union(*(set(table) for table in tables.values())) - {*everywhere})),
        pairs=_pairs(areas[:, order], ranked, rankings, repeats),
        winners=tuple(map(TaskWinner.of, rankings)),
        level=rankings[0].level,
        margin=rankings[0].margin,
        quantity=rankings[0].quantity,
    )


def _pairs(
    areas: NDArray[np.float64],
    names: Sequence[str],
    rankings: Sequence[Ranking[Area, Gap]],
    repeats: int | None,
) -> tuple[PairAcrossTasks, ...]:
    """All pairs of ``names``; areas of shape ``(tasks, names)``, by falling mean."""
    count, level, margin = len(areas), rankings[0].level, rankings[0].margin
    first, second = np.triu_indices(len(names), 1)
    gaps = areas[:, first] - areas[:, second]
    means, deviations = gaps.mean(axis=0), gaps.std(axis=0, ddof=1)
    spreads = [_spreads(ranking) for ranking in rankings]
    here = []  # how sure the mean difference is on these tasks; None if that of one task is not known
    for pair in combinations(names, 2):
        known = [of_task[pair] for of_task in spreads if pair in of_task]
        here.append(pooled(known) if len(known) == count else None)
    # Tasks that agree better than their own errors allow do so by chance.
    least = np.array([0.0 if spread is None else spread.error * np.sqrt(count) for spread in here])
    deviations = np.maximum(np.where(deviations < SAME, 0.0, deviations), least)
    errors = deviations / np.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(np.abs(means) < SAME, 0.0, np.abs(means) / errors)
    raw = np.minimum(1.0, 2 * stdtr(count - 1, -statistic))
    copies = (errors == 0) & (statistic > 0)  # no two tasks give one difference to the last digit
    adjusted = iter(holm(raw[~copies].tolist()))
    half = stdtrit(count - 1, (1 + level) / 2) * errors
    alpha = (1 - level) / max(1, len(raw))
    differences = []
    for place, (a, b) in enumerate(combinations(names, 2)):
        mean = float(means[place])
        effect = max(mean, margin, SAME)
        spread, seeds = here[place], None
        if spread is not None and repeats is not None:
            seeds = needed_seeds(
                effect, seeds=repeats, v_examples=0.0, v_seeds=spread.error**2, alpha=alpha, power=_POWER
            )
        differences.append(
            PairAcrossTasks(
                a,
                b,
                int((gaps[:, place] > margin).sum()),
                int((gaps[:, place] < -margin).sum()),
                mean,
                None if copies[place] else mean - float(half[place]),
                None if copies[place] else mean + float(half[place]),
                None if copies[place] else next(adjusted),
                None if spread is None else spread.interval(level),
                None
                if copies[place]
                else needed_tasks(effect, spread=float(deviations[place]), alpha=alpha, power=_POWER),
                seeds,
            )
        )
    return tuple(differences)


def _spreads(ranking: Ranking[Area, Gap]) -> dict[tuple[str, str], Spread]:
    """How sure the differences of one task are, either way round."""
    spreads = {}
    for d in ranking.differences:
        if d.spread is not None:
            spreads[d.strategy_a, d.strategy_b] = d.spread
            spreads[d.strategy_b, d.strategy_a] = d.spread.turned
    return spreads


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _p_text(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else "below 0.001"

"""Several tasks: does one strategy win in general, and which wins where.

Tasks are the sample now, so the examples within a task no longer count; each task has one area per strategy.
Demšar, "Statistical comparisons of classifiers over multiple data sets" (JMLR 2006,
https://jmlr.org/papers/v7/demsar06a.html): Friedman's test whether ranks differ at all, then Wilcoxon's
signed-rank test for each pair, Holm-adjusted. Below six tasks no two-sided signed-rank test can reach 5 %,
whatever the areas: then the answer is that the tasks are too few, and the winners task by task.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata, wilcoxon

from paretune.inference import holm
from paretune.verdict import Comparison, Condition


@dataclass(frozen=True)
class TaskWinner:
    """The best strategy of one task."""

    task: str
    strategy: str  # the largest area
    area: float
    certainty: str  # as in paretune.verdict.Recommendation
    tied: tuple[str, ...]  # with it, itself included


@dataclass(frozen=True)
class PairAcrossTasks:
    """Two strategies over all tasks."""

    strategy_a: str
    strategy_b: str
    wins: int  # tasks where a has the larger area by more than the margin
    losses: int
    median_difference: float  # of areas, a - b
    p_value: float  # Wilcoxon's signed-rank test, two-sided, Holm-adjusted; 1 where it cannot be made


@dataclass(frozen=True)
class AcrossTasks:
    """All tasks under one attack and epsilon; ``ranked`` is sorted by mean rank, best first."""

    attack: str  # this, the threat and the epsilon are empty for tables that do not name them
    threat: str
    epsilon: float
    tasks: tuple[str, ...]
    ranked: tuple[str, ...]  # strategies that every task has
    mean_ranks: tuple[float, ...]  # 1 is best; ties share
    left_out: tuple[str, ...]  # strategies that some task lacks
    friedman_p: float | None  # that all strategies are alike; None below three strategies or two tasks
    pairs: tuple[PairAcrossTasks, ...]
    winners: tuple[TaskWinner, ...]
    level: float

    @property
    def certainty(self) -> Literal["clear", "cannot tell", "alone"]:
        """``clear`` if the first of the ranked is told apart from every other one."""
        if len(self.ranked) < 2:
            return "alone"
        first = [pair for pair in self.pairs if self.ranked[0] in (pair.strategy_a, pair.strategy_b)]
        return "clear" if all(pair.p_value < 1 - self.level for pair in first) else "cannot tell"

    @property
    def verdict(self) -> str:
        """What the tasks allow to say."""
        count = len(self.tasks)
        best = f"{self.ranked[0]} has the best mean rank, {self.mean_ranks[0]:.2f} over {count} tasks"
        winners = {winner.strategy for winner in self.winners}
        split = (
            f"; the largest area is {next(iter(winners))}'s in every task"
            if len(winners) == 1
            else f"; {len(winners)} strategies have the largest area of some task"
        )
        if self.certainty == "alone":
            return f"{best}; there is no other strategy that every task has."
        if self.certainty == "clear":
            return f"{best}, told apart from every other strategy{split}."
        if 2 * 0.5**count > 1 - self.level:
            return f"Cannot tell: {best}, but {count} tasks are too few for any signed-rank test{split}."
        return f"Cannot tell: {best}, but not told apart from every other strategy{split}."

    def to_frame(self) -> pd.DataFrame:
        """The winners as a table, one row for each task."""
        return pd.DataFrame(
            {
                "task": [winner.task for winner in self.winners],
                "strategy": [winner.strategy for winner in self.winners],
                "area": [winner.area for winner in self.winners],
                "certainty": [winner.certainty for winner in self.winners],
                "tied": [", ".join(winner.tied) for winner in self.winners],
            }
        )


def across_tasks(comparison: Comparison) -> tuple[AcrossTasks, ...]:
    """The strategies over all tasks that share an attack and an epsilon; one entry for each of these.

    Args:
        comparison: from :func:`paretune.compare`; conditions of a single task are left out.

    Raises:
        ValueError: no attack and epsilon has two tasks, or no strategy is in all of its tasks.
    """
    grouped: dict[tuple[str, float, str], list[Condition]] = {}
    for condition in comparison.conditions:
        grouped.setdefault((condition.threat, condition.epsilon, condition.attack), []).append(condition)
    several = [conditions for conditions in grouped.values() if len(conditions) > 1]
    if not several:
        raise ValueError(
            "across_tasks needs at least two tasks under one attack and epsilon; got "
            + "; ".join(f"{c.task}: {c.attack}" for c in comparison.conditions)
        )
    return tuple(_across(conditions) for conditions in several)


def across_areas(
    tables: Mapping[str, Mapping[str, float]],
    *,
    margin: float,
    level: float,
    winners: Iterable[TaskWinner],
    attack: str = "",
    threat: str = "",
    epsilon: float = 0.0,
) -> AcrossTasks:
    """The strategies over all tasks, from nothing but their areas.

    Args:
        tables: the area of each strategy, for each task.
        margin: areas closer than this are no win.
        level: of the tests, in (0, 1).
        winners: one for each task.
        attack: what the tasks share.
        threat: likewise.
        epsilon: likewise.

    Raises:
        ValueError: no strategy is in all tasks.
    """
    everywhere = sorted(set.intersection(*(set(table) for table in tables.values())))
    if not everywhere:
        raise ValueError(
            "no strategy is in all tasks: "
            + "; ".join(f"{task} has {', '.join(table)}" for task, table in tables.items())
        )
    areas = np.array(
        [[table[name] for name in everywhere] for table in tables.values()]
    )  # (tasks, strategies)
    ranks = rankdata(-areas, axis=1).mean(axis=0)
    order = np.argsort(ranks, kind="stable")
    ranked = [everywhere[i] for i in order]
    return AcrossTasks(
        attack=attack,
        threat=threat,
        epsilon=epsilon,
        tasks=tuple(tables),
        ranked=tuple(ranked),
        mean_ranks=tuple(float(ranks[i]) for i in order),
        left_out=tuple(sorted(set.union(*(set(table) for table in tables.values())) - {*everywhere})),
        friedman_p=_friedman(areas),
        pairs=_pairs(areas[:, order], ranked, margin),
        winners=tuple(winners),
        level=level,
    )


def _across(conditions: list[Condition]) -> AcrossTasks:
    first = conditions[0]
    return across_areas(
        {c.task: {each.strategy: each.area for each in c.areas} for c in conditions},
        margin=first.margin,
        level=first.level,
        winners=(TaskWinner(c.task, c.best.strategy, c.best.area, c.certainty, c.tied) for c in conditions),
        attack=first.attack,
        threat=first.threat,
        epsilon=first.epsilon,
    )


def _friedman(areas: NDArray[np.float64]) -> float | None:
    if areas.shape[1] < 3 or len(areas) < 2:
        return None
    if (areas == areas[:, :1]).all():
        return 1.0  # all tied in every task, where the statistic is 0 / 0
    return float(friedmanchisquare(*areas.T).pvalue)


def _pairs(areas: NDArray[np.float64], names: Iterable[str], margin: float) -> tuple[PairAcrossTasks, ...]:
    columns = list(zip(names, areas.T, strict=True))
    raw = []
    for (a, of_a), (b, of_b) in combinations(columns, 2):
        gaps = of_a - of_b
        p = 1.0 if not gaps.any() else float(wilcoxon(gaps).pvalue)
        raw.append((a, b, gaps, p))
    adjusted = holm([p for *_, p in raw])
    return tuple(
        PairAcrossTasks(
            a, b, int((gaps > margin).sum()), int((gaps < -margin).sum()), float(np.median(gaps)), p
        )
        for (a, b, gaps, _), p in zip(raw, adjusted, strict=True)
    )

"""The outcome of a comparison: numbers with their uncertainty, and the sentences they allow."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class AreaEstimate:
    """The area under one strategy's frontier, for one task, attack and epsilon."""

    task: str
    attack: str
    threat: str
    epsilon: float
    strategy: str
    area: float  # chosen on select, measured on report, averaged over seeds
    low: float
    high: float
    optimistic: float  # what choosing and measuring on the report split would have said
    k: int  # points per run
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]  # areas
    trainable_parameters: int
    train_seconds: float  # of one seed, mean
    best_clean: float  # report accuracy of the checkpoint with the best one on select, mean over seeds
    best_robust: float


@dataclass(frozen=True)
class Difference:
    """area(strategy_a) - area(strategy_b), paired over examples."""

    task: str
    attack: str
    threat: str
    epsilon: float
    strategy_a: str
    strategy_b: str
    difference: float
    low: float  # the interval of this pair alone
    high: float
    p_value: float  # Holm-adjusted over all pairs of the condition


@dataclass(frozen=True)
class Recommendation:
    """The strategy to use, why, and what would change it."""

    task: str
    attack: str
    threat: str
    epsilon: float
    strategy: str
    reason: str
    tied: tuple[str, ...]  # with the largest area; the recommended one is the cheapest of these
    would_change: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.strategy}. {self.reason}"


@dataclass(frozen=True)
class Condition:
    """All strategies under one attack and epsilon of one task; ``areas`` are sorted best first."""

    task: str
    attack: str
    threat: str
    epsilon: float
    areas: tuple[AreaEstimate, ...]
    differences: tuple[Difference, ...]
    k: int  # points of each run that are used
    runs_per_seed: int  # of each strategy that are used
    examples: int  # report split
    examples_select: int
    seeds_resampled: bool
    notes: tuple[str, ...]
    reference: tuple[float, float]
    level: float
    resamples: int
    margin: float

    @property
    def best(self) -> AreaEstimate:
        """The largest area."""
        return self.areas[0]

    @property
    def indistinguishable(self) -> tuple[str, ...]:
        """The strategies that are not told apart from the best at ``level``."""
        return tuple(d.strategy_b for d in self._to_best() if d.p_value >= 1 - self.level)

    @property
    def tied(self) -> tuple[str, ...]:
        """The best strategy, those not told apart from it, and those less than ``margin`` behind."""
        close = {d.strategy_b for d in self._to_best() if d.difference < self.margin}
        names = close.union(self.indistinguishable, [self.best.strategy])
        return tuple(estimate.strategy for estimate in self.areas if estimate.strategy in names)

    @property
    def recommended(self) -> AreaEstimate:
        """The cheapest of the tied, by trainable parameters and then training time."""
        tied = [estimate for estimate in self.areas if estimate.strategy in self.tied]
        return min(tied, key=lambda estimate: (estimate.trainable_parameters, estimate.train_seconds))

    @property
    def verdict(self) -> str:
        """What the numbers allow to say."""
        best, cheapest = self.best, self.recommended
        similar = tuple(name for name in self.tied[1:] if name not in self.indistinguishable)
        alone = len(self.areas) == 1
        what = "an area of" if alone else "the largest area,"
        parts = [
            f"{best.strategy} has {what} {best.area:.3f} ({self.level:.0%} interval "
            f"{best.low:.3f} to {best.high:.3f}; {_count(self.k, 'point')} per run, "
            f"{_count(len(best.seeds), 'training seed')})"
        ]
        if self.indistinguishable:
            parts.append(f"{_join(self.indistinguishable)} cannot be told apart from it")
        if similar:
            parts.append(f"{_join(similar)} {_is(similar)} less than {self.margin:g} behind")
        if alone:
            parts.append("there is no other strategy to compare it with")
        elif len(self.tied) == 1:
            parts.append("every other strategy is told apart from it")
        else:
            parameters = _count(cheapest.trainable_parameters, "trainable parameter")
            parts.append(f"the cheapest of these is {cheapest.strategy}, with {parameters}")
        covered = "test examples and of training seeds" if self.seeds_resampled else "test examples only"
        because = "" if self.seeds_resampled else " (fewer than five training seeds)"
        return f"{'; '.join(parts)}. Intervals cover the sampling of {covered}{because}."

    @property
    def recommendation(self) -> Recommendation:
        """The decision with its evidence."""
        identity = (self.task, self.attack, self.threat, self.epsilon)
        changes = tuple(self._would_change())
        return Recommendation(*identity, self.recommended.strategy, self.verdict, self.tied, changes)

    def _to_best(self) -> list[Difference]:
        return [d for d in self.differences if d.strategy_a == self.best.strategy]

    def _would_change(self) -> list[str]:
        changes = []
        for d in self._to_best():
            half_width = (d.high - d.low) / 2
            if d.strategy_b in self.tied and d.difference < self.margin:
                changes.append(
                    f"A margin below {d.difference:.4f}, instead of {self.margin:g}, and enough examples to "
                    f"resolve it, would put {d.strategy_a} before {d.strategy_b}."
                )
            elif d.strategy_b in self.tied and half_width > d.difference:
                # The width of an interval falls with the root of the number of examples.
                needed = self.examples * (half_width / d.difference) ** 2
                changes.append(
                    f"About {float(f'{needed:.1e}'):,.0f} report examples, instead of {self.examples:,}, "
                    f"would tell {d.strategy_b} from {d.strategy_a} if the difference is {d.difference:.3f}."
                )
        if not self.seeds_resampled:
            changes.append("Five or more training seeds per strategy would cover the luck of training too.")
        return changes


@dataclass(frozen=True)
class Comparison:
    """One :class:`Condition` for each task, attack and epsilon."""

    conditions: tuple[Condition, ...]

    @property
    def areas(self) -> tuple[AreaEstimate, ...]:
        """Those of all conditions; within each, best first."""
        return tuple(estimate for condition in self.conditions for estimate in condition.areas)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All pairs of all conditions."""
        return tuple(difference for condition in self.conditions for difference in condition.differences)

    @property
    def verdict(self) -> str:
        """What the numbers allow to say, one line for each condition, named if there are several."""
        if len(self.conditions) == 1:
            return self.conditions[0].verdict
        names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in self.conditions])
        return "\n".join(f"{name}: {c.verdict}" for name, c in zip(names, self.conditions, strict=True))

    def to_frame(self) -> pd.DataFrame:
        """The areas as a table, one row for each estimate."""
        return pd.DataFrame([dataclasses.asdict(estimate) for estimate in self.areas])


def epsilon_text(epsilon: float) -> str:
    """``4/255`` where the value is that, else a short decimal."""
    halves = round(2 * 255 * epsilon)
    if abs(halves / 2 / 255 - epsilon) < 1e-6 and abs(round(epsilon, 3) - epsilon) > 1e-9:
        return f"{halves / 2:g}/255"
    return f"{epsilon:.4g}"


def threat_text(threat: str, epsilon: float) -> str:
    """``L∞ ≤ 4/255``."""
    return f"{'L∞' if threat == 'Linf' else threat} ≤ {epsilon_text(epsilon)}"


def attack_text(attack: str) -> str:
    """``PGD(Linf(4/255))`` for ``PGD(Linf(0.01568627450980392))``."""
    return re.sub(r"\d*\.\d{4,}", lambda match: epsilon_text(float(match[0])), attack)


def condition_names(conditions: Sequence[tuple[str, str, float, str]]) -> list[str]:
    """``digits, L∞ ≤ 4/255`` for each (task, threat, epsilon, attack); with the attack where that is not unique."""
    short = [f"{task}, {threat_text(threat, epsilon)}" for task, threat, epsilon, _ in conditions]
    return [
        name if short.count(name) == 1 else f"{name}, {attack_text(attack)}"
        for name, (_, _, _, attack) in zip(short, conditions, strict=True)
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _join(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"

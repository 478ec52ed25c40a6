"""The outcome of a comparison: numbers with their uncertainty, and the sentences they allow."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from paretune._names import attack_text, condition_names, epsilon_text, threat_text
from paretune.power import Needed, needed_examples, needed_seeds


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
    p_best: float  # p-value of the model confidence set: below 1 - level, the largest true area is another's


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
    p_unadjusted: float  # of this pair alone
    margin: float  # areas closer than this are equal for practical purposes
    ahead: float  # how plausible it is that a is ahead of b by more than the margin, in [0, 1]; see
    equivalent: float  # paretune.inference.shares_around; that the two are within the margin;
    behind: float  # that a is behind b by more than the margin
    error_examples: float  # standard error from the report and the select examples
    error_seeds: float | None  # from the luck of training; None where a strategy has one seed

    @property
    def practically(self) -> Literal["ahead", "behind", "equivalent", "undecided"]:
        """Where the whole interval lies to the region of practical equivalence, from -margin to margin.

        Two one-sided tests: Schuirmann (J. Pharmacokinetics and Biopharmaceutics 1987).
        """
        if self.low > self.margin:
            return "ahead"
        if self.high < -self.margin:
            return "behind"
        return "equivalent" if -self.margin <= self.low and self.high <= self.margin else "undecided"


Certainty = Literal["clear", "tie", "equivalent", "cannot tell", "alone"]


@dataclass(frozen=True)
class Recommendation:
    """The strategy to use, why, and what would change it.

    ``certainty`` says what the data decide:

    - ``clear``: every other strategy is told apart from the largest area, by the margin or more.
    - ``tie``: some are told apart, several are not; the cheapest of these is recommended.
    - ``equivalent``: the intervals of all differences lie within the margin; the cheapest is recommended.
    - ``cannot tell``: none is told apart; the cheapest is named, but the data are no reason for it.
    - ``alone``: there is nothing to compare with.
    """

    task: str
    attack: str
    threat: str
    epsilon: float
    strategy: str
    reason: str
    tied: tuple[str, ...]  # with the largest area; the recommended one is the cheapest of these
    would_change: tuple[str, ...]
    certainty: Certainty
    area: float  # of the recommended strategy
    low: float
    high: float
    runners_up: tuple[str, ...]  # not told apart from the largest area, at the level
    confidence_set: tuple[str, ...]  # holds the largest true area, with the level as confidence
    needed: tuple[Needed, ...]  # what would tell the tied from the largest area

    def __str__(self) -> str:
        start = (
            f"Cannot tell; cheapest: {self.strategy}" if self.certainty == "cannot tell" else self.strategy
        )
        return f"{start}. {self.reason}"


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
    groups: int | None  # of report examples, which are resampled; None where the examples are
    seeds_resampled: bool
    notes: tuple[str, ...]
    reference: tuple[float, float]
    min_clean: float  # floors of a partial area; 0 for none
    min_robust: float
    level: float
    interval: str  # "basic" or "bca"
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
    def confidence_set(self) -> tuple[str, ...]:
        """The strategies among which the largest true area is, with ``level`` as confidence.

        The model confidence set: :func:`paretune.inference.confidence_set`.
        """
        return tuple(each.strategy for each in self.areas if each.p_best >= 1 - self.level)

    @property
    def certainty(self) -> Certainty:
        """What the data decide; see :class:`Recommendation`."""
        if len(self.areas) == 1:
            return "alone"
        if len(self.tied) == 1:
            return "clear"
        if all(d.practically == "equivalent" for d in self._to_best()):
            return "equivalent"
        return "cannot tell" if len(self.indistinguishable) == len(self.areas) - 1 else "tie"

    def within(self, *, max_trainable: int | None = None, max_seconds: float | None = None) -> "Condition":
        """The strategies that a budget allows; p-values stay adjusted over all pairs.

        Args:
            max_trainable: trainable parameters, at most.
            max_seconds: training time of one seed, at most, in seconds.

        Raises:
            ValueError: no strategy is within the limits.
        """
        allowed = [
            each
            for each in self.areas
            if (max_trainable is None or each.trainable_parameters <= max_trainable)
            and (max_seconds is None or each.train_seconds <= max_seconds)
        ]
        if not allowed:
            smallest = min(each.trainable_parameters for each in self.areas)
            fastest = min(each.train_seconds for each in self.areas)
            raise ValueError(
                f"no strategy of task {self.task!r} has max_trainable={max_trainable} and "
                f"max_seconds={max_seconds}: the smallest trains {smallest:,} parameters, the fastest takes "
                f"{fastest:.0f} s"
            )
        names = {each.strategy for each in allowed}
        pairs = (d for d in self.differences if d.strategy_a in names and d.strategy_b in names)
        return dataclasses.replace(self, areas=tuple(allowed), differences=tuple(pairs))

    @property
    def verdict(self) -> str:
        """What the numbers allow to say."""
        best, cheapest = self.best, self.recommended
        similar = tuple(name for name in self.tied[1:] if name not in self.indistinguishable)
        alone = len(self.areas) == 1
        floors = "".join(
            f" above {name} {floor:g}"
            for name, floor in (("clean", self.min_clean), ("robust", self.min_robust))
            if floor
        )
        what = f"an area{floors} of" if alone else f"the largest area{floors},"
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
            if self.certainty == "cannot tell":
                parts.append("these data do not tell which strategy is best")
            elif self.certainty == "equivalent":
                parts.append(f"all differ by less than {self.margin:g} for practical purposes")
            parameters = _count(cheapest.trainable_parameters, "trainable parameter")
            parts.append(f"the cheapest of these is {cheapest.strategy}, with {parameters}")
        examples = "test examples" if self.groups is None else f"test examples in {self.groups:,} groups"
        covered = f"Intervals cover the sampling of {examples}"
        if self.seeds_resampled:
            return f"{'; '.join(parts)}. {covered}, the choice of checkpoints and the luck of training."
        uncovered = "not the luck of training (fewer than five seeds)"
        return f"{'; '.join(parts)}. {covered} and the choice of checkpoints, {uncovered}."

    @property
    def recommendation(self) -> Recommendation:
        """The decision with its evidence."""
        identity = (self.task, self.attack, self.threat, self.epsilon)
        return Recommendation(
            *identity,
            strategy=self.recommended.strategy,
            reason=self.verdict,
            tied=self.tied,
            would_change=tuple(self._would_change()),
            certainty=self.certainty,
            area=self.recommended.area,
            low=self.recommended.low,
            high=self.recommended.high,
            runners_up=self.indistinguishable,
            confidence_set=self.confidence_set,
            needed=self.needed(),
        )

    def needed(self, power: float = 0.8) -> tuple[Needed, ...]:
        """What would tell each strategy that is not told apart from the largest area; see :mod:`paretune.power`.

        The level is divided by the number of pairs, which is at least as strict as Holm's adjustment.

        Args:
            power: chance to find the difference, in (0, 1).
        """
        alpha = (1 - self.level) / max(1, len(self.differences))
        made = []
        for d in self._to_best():
            effect = max(d.difference, self.margin)
            if d.strategy_b not in self.indistinguishable or effect == 0:
                continue
            v_examples, v_seeds = d.error_examples**2, None if d.error_seeds is None else d.error_seeds**2
            counted = v_seeds if v_seeds is not None and self.seeds_resampled else 0.0
            seeds = min(
                len(each.seeds) for each in self.areas if each.strategy in (d.strategy_a, d.strategy_b)
            )
            made.append(
                Needed(
                    d.strategy_a,
                    d.strategy_b,
                    effect,
                    power,
                    needed_examples(
                        effect,
                        examples=self.examples,
                        v_examples=v_examples,
                        v_seeds=counted,
                        alpha=alpha,
                        power=power,
                    ),
                    None
                    if v_seeds is None
                    else needed_seeds(
                        effect, seeds=seeds, v_examples=v_examples, v_seeds=v_seeds, alpha=alpha, power=power
                    ),
                )
            )
        return tuple(made)

    def _to_best(self) -> list[Difference]:
        return [d for d in self.differences if d.strategy_a == self.best.strategy]

    def _would_change(self) -> list[str]:
        changes = []
        for need in self.needed():
            pair = f"tell {need.strategy_b} from {need.strategy_a} with a chance of {need.power:.0%}"
            truth = f"if the true difference is {need.effect:.3f}"
            if need.examples is None:
                changes.append(f"No number of examples would {pair} {truth}: the luck of training hides it.")
            else:
                changes.append(
                    f"About {_rounded(need.examples)} report examples, instead of {self.examples:,}, and select "
                    f"examples in proportion, would {pair} {truth}."
                )
            if need.seeds is not None and self.seeds_resampled:
                changes.append(f"So would about {need.seeds} training seeds of each.")
        changes += [
            f"A margin below {d.difference:.4f}, instead of {self.margin:g}, would put {d.strategy_a} before "
            f"{d.strategy_b}."
            for d in self._to_best()
            if d.strategy_b not in self.indistinguishable and d.difference < self.margin
        ]
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


def _rounded(number: int) -> str:
    return f"{float(f'{number:.1e}'):,.0f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _join(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"


__all__ = [
    "AreaEstimate",
    "Certainty",
    "Comparison",
    "Condition",
    "Difference",
    "Recommendation",
    "attack_text",
    "condition_names",
    "epsilon_text",
    "threat_text",
]

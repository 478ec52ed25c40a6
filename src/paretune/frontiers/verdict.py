"""The outcome of a comparison: numbers with their uncertainty, and the sentences they allow."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from paretune.frontiers.deciding import (
    SAME,
    Certainty,
    Decision,
    best_p_values,
    decide,
    gap_text,
    listed,
    p_matrix,
)
from paretune.frontiers.elsewhere import Elsewhere, numbers
from paretune.frontiers.power import Needed, needed_examples, needed_seeds
from paretune.frontiers.race import Out, Race
from paretune.frontiers.ranking import Area, Gap, Ranking
from paretune.frontiers.tracking import Slope, slope_numbers
from paretune.frontiers.volumes import Corner
from paretune.runs.naming import attack_text, condition_names, threat_text


@dataclass(frozen=True)
class AreaEstimate(Area):
    """That of one attack and epsilon: chosen on select, measured on report."""

    low: float
    high: float
    seeds: tuple[int, ...]
    attack: str
    threat: str
    epsilon: float
    optimistic: float  # what choosing and measuring on the report split would have said
    trainable_parameters: int
    train_seconds: float  # of one seed, mean
    best_clean: float  # report accuracy of the checkpoint with the best one on select, mean over seeds
    best_robust: float
    p_best: float  # that none is ahead by the margin or more: below 1 - level, it is not among the best


@dataclass(frozen=True)
class Difference(Gap):
    """That of one task, attack and epsilon, paired over examples."""

    low: float
    high: float
    p_value: float
    task: str
    attack: str
    threat: str
    epsilon: float
    p_unadjusted: float  # of this pair alone
    margin: float  # areas closer than this are equal for practical purposes
    ahead: float  # how plausible it is that a is ahead of b by more than the margin, in [0, 1]; see
    equivalent: float  # paretune.frontiers.inference.shares_around; that the two are within the margin;
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


@dataclass(frozen=True)
class Recommendation:
    """The strategy to use, why, and what would change it.

    ``certainty`` says what the data decide:

    - ``clear``: every other strategy is told apart from the largest area, and behind it by the margin or more.
    - ``tie``: some strategies are told apart, but several may be best, or are less than the margin behind; the
      cheapest of these is recommended.
    - ``equivalent``: the intervals of all differences to the largest area lie within the margin; the cheapest is
      recommended.
    - ``cannot tell``: no two are told apart; the cheapest is named, but the data are no reason for it.
    - ``alone``: there is nothing to compare with.
    """

    task: str
    attack: str
    threat: str
    epsilon: float
    strategy: str
    reason: str
    tied: tuple[str, ...]  # may be best, the largest area first; the recommended one is the cheapest of these
    would_change: tuple[str, ...]
    certainty: Certainty
    area: float  # of the recommended strategy
    low: float
    high: float
    confidence_set: tuple[str, ...]  # the tied: they hold the largest true area, with the level as confidence
    needed: tuple[Needed, ...]  # what would tell the tied from the largest area

    def __str__(self) -> str:
        start = (
            f"Cannot tell; cheapest: {self.strategy}" if self.certainty == "cannot tell" else self.strategy
        )
        return f"{start}. {self.reason}"


@dataclass(frozen=True)
class Condition(Ranking[AreaEstimate, Difference]):
    """All strategies under one attack and epsilon of one task."""

    attack: str
    threat: str
    epsilon: float
    runs_per_seed: int  # of each strategy that are used
    examples: int  # report split
    examples_select: int
    groups: int | None  # of report examples, which are resampled; None where the examples are
    seeds_resampled: bool
    elsewhere: tuple[
        Elsewhere, ...
    ] = ()  # clean, then robust, of strategies measured on other domains or the like
    volumes: "Condition | None" = None  # of those measured on the same images elsewhere at every point
    slopes: tuple[Slope, ...] = ()  # of shifted accuracy along training, likewise
    corner: Corner | None = None  # where volumes start, if ``areas`` and ``differences`` are of these
    shifted: int | None = None  # examples that volumes are measured on besides
    race: Race | None = None  # that the runs are of, if it was decided by the same settings

    @property
    def quantity(self) -> str:
        """What the numbers in ``areas`` are: areas, or volumes."""
        return "area" if self.corner is None else "volume"

    @property
    def judged(self) -> "Condition":
        """What decides: the areas, or the volumes if :func:`paretune.compare` was asked to go ``by`` these."""
        return self.volumes if self.settings.by == "volume" and self.volumes is not None else self

    @property
    def put_out(self) -> dict[str, tuple[int, Out]]:
        """What the race put out: of each the round, and the lead over it, of a strategy that is compared too."""
        if self.race is None or self.corner is not None:  # a race is about areas
            return {}
        here = {area.strategy for area in self.areas}
        leads = self.race.leads(self.task, self.attack, self.epsilon)
        return {out.behind: (number, out) for number, out in leads if {out.ahead, out.behind} <= here}

    @functools.cached_property
    def decision(self) -> Decision:
        """What the tests decide; with a race, these spend half of the error, and what the race told on select is told.

        The largest area is never out: where the two splits contradict each other, it may be best.
        """
        if not self.put_out:
            return super().decision
        names = [area.strategy for area in self.areas]
        p_values = p_matrix(names, ((d.strategy_a, d.strategy_b, d.p_value) for d in self.differences))
        level = (1 + self.level) / 2
        decision = decide([area.area for area in self.areas], p_values, level=level, margin=self.margin)
        for name, (_, lead) in self.put_out.items():
            ahead, behind = names.index(lead.ahead), names.index(name)
            if behind > 0:
                decision.told[ahead, behind] = decision.behind[ahead, behind] = True
        return decision

    def race_tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """A title, a heading and rows: what the race saw of each strategy, and when and why it put it out."""
        if self.race is None or self.corner is not None:
            return []
        head, rows = self.race.numbers(self.task, self.attack, self.epsilon)
        return [(f"race, by areas on the select split: {self.race.sentence}", head, rows)]

    def further_tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """What stands below the areas: of a race, of accuracies elsewhere and of volumes, what there is."""
        return [*self.race_tables(), *self.elsewhere_tables(), *self.third_axis_tables()]

    @property
    def race_notes(self) -> tuple[str, ...]:
        """What the race put out, in words."""
        by_round: dict[int, list[str]] = {}
        for name, (number, lead) in self.put_out.items():
            text = f"{name} (at least {gap_text(lead.low)} behind {lead.ahead})"
            by_round.setdefault(number, []).append(text)
        rounds = "; ".join(f"after round {number} {listed(texts)}" for number, texts in by_round.items())
        if not rounds:
            return ()
        return (
            f"A race put out, by areas on the select split: {rounds}. What else is said is of the report split.",
        )

    @property
    def confidence_set(self) -> tuple[str, ...]:
        """The strategies among which the largest true area is, with ``level`` as confidence: the tied."""
        return self.tied

    @property
    def recommended(self) -> AreaEstimate:
        """The cheapest of the tied, by trainable parameters and then training time."""
        tied = [estimate for estimate in self.areas if estimate.strategy in self.tied]
        return min(tied, key=lambda estimate: (estimate.trainable_parameters, estimate.train_seconds))

    def within(self, *, max_trainable: int | None = None, max_seconds: float | None = None) -> "Condition":
        """The strategies that a budget allows; p-values stay adjusted over all pairs.

        Args:
            max_trainable: trainable parameters, at most.
            max_seconds: training time of one seed, at most, in seconds.

        Raises:
            ValueError: no strategy is within the limits.
        """
        allowed = [
            area
            for area in self.areas
            if (max_trainable is None or area.trainable_parameters <= max_trainable)
            and (max_seconds is None or area.train_seconds <= max_seconds)
        ]
        if not allowed:
            smallest = min(area.trainable_parameters for area in self.areas)
            fastest = min(area.train_seconds for area in self.areas)
            raise ValueError(
                f"no strategy of task {self.task!r} has max_trainable={max_trainable} and "
                f"max_seconds={max_seconds}: the smallest trains {smallest:,} parameters, the fastest takes "
                f"{fastest:.0f} s"
            )
        names = {area.strategy for area in allowed}
        pairs = tuple(d for d in self.differences if d.strategy_a in names and d.strategy_b in names)
        others = tuple(result for result in self.elsewhere if result.strategy in names)
        volumes = self.volumes
        if volumes is not None:
            measured = names & {volume.strategy for volume in volumes.areas}
            volumes = (
                volumes.within(max_trainable=max_trainable, max_seconds=max_seconds) if measured else None
            )
        return dataclasses.replace(
            self,
            areas=with_p_best(allowed, pairs),
            differences=pairs,
            elsewhere=others,
            volumes=volumes,
            slopes=tuple(slope for slope in self.slopes if slope.strategy in names),
        )

    def elsewhere_tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """A title, a heading and rows for clean accuracy elsewhere, and for robust accuracy if it was measured there."""
        tables = []
        for accuracy in ("clean", "robust"):
            if results := [result for result in self.elsewhere if result.accuracy == accuracy]:
                title = (
                    f"{accuracy} accuracy on what was trained on (report split) and elsewhere, {100 * self.level:g}% "
                    f"intervals, of the checkpoints with the best {accuracy} accuracy on select"
                )
                tables.append((title, *numbers(results)))
        return tables

    def third_axis_tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """A title, a heading and rows for volumes, and for what shifted accuracy tracks along training."""
        if self.volumes is None:
            return []
        interval = f"{100 * self.level:g}% interval"
        start = ", ".join(f"{value:g}" for value in self.volumes.corner or ())
        rows = [
            [one.strategy, f"{one.area:.3f}", f"{one.low:.3f} to {one.high:.3f}", f"{one.p_best:.3f}"]
            for one in self.volumes.areas
        ]
        title = f"volumes below (clean, robust, shifted), from ({start})"
        tables = [(title, ["strategy", "volume", interval, "may be best, p"], rows)]
        if self.slopes:
            title = f"slope of shifted accuracy along training, {interval}s"
            tables.append((title, *slope_numbers(self.slopes)))
        return tables

    @property
    def sentence(self) -> str:
        """The verdict without what intervals are about."""
        floors = "".join(
            f" above {name} {floor:g}"
            for name, floor in (("clean", self.settings.min_clean), ("robust", self.settings.min_robust))
            if floor
        )
        remarks, advice = [], []
        if self.best.area <= 0:
            start = self.corner or self.settings.start
            below = ", ".join(f"{value:g}" for value in start)
            all_of = "all three" if self.corner else "both"
            remarks.append(f"no chosen checkpoint is above ({below}) in {all_of} accuracies")
        if self.certainty not in ("alone", "clear"):
            parameters = _count(self.recommended.trainable_parameters, "trainable parameter")
            advice.append(f"the cheapest of these is {self.recommended.strategy}, with {parameters}")
        budget = f"{_count(self.k, 'point')} per run, {_count(len(self.best.seeds), 'training seed')}"
        return self._said("strategy", budget, floors=floors, remarks=remarks, advice=advice)

    @property
    def verdict(self) -> str:
        """What the numbers allow to say."""
        examples = "test examples" if self.groups is None else f"test examples in {self.groups:,} groups"
        if self.shifted is not None:
            examples += f" and of {self.shifted:,} shifted ones"
        covered = f"{self.sentence} Intervals cover the sampling of {examples}"
        if self.seeds_resampled:
            return f"{covered}, the choice of checkpoints and the luck of training."
        return f"{covered} and the choice of checkpoints, not the luck of training (fewer than five seeds)."

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
            confidence_set=self.confidence_set,
            needed=self.needed(),
        )

    def needed(self, power: float = 0.8) -> tuple[Needed, ...]:
        """What would tell each strategy that is not told apart from the largest area; see :mod:`paretune.frontiers.power`.

        The level is divided by the number of pairs, which is at least as strict as the adjustment.

        Args:
            power: chance to find the difference, in (0, 1).
        """
        alpha = (1 - self.level) / max(1, len(self.differences))
        needs = []
        for d in self.to_best:
            effect = max(d.difference, self.margin)
            if d.strategy_b not in self.indistinguishable or effect < SAME:
                continue
            v_examples, v_seeds = d.error_examples**2, None if d.error_seeds is None else d.error_seeds**2
            counted = v_seeds if v_seeds is not None and self.seeds_resampled else 0.0
            seeds = min(
                len(area.seeds) for area in self.areas if area.strategy in (d.strategy_a, d.strategy_b)
            )
            common = {"v_examples": v_examples, "alpha": alpha, "power": power}
            examples = needed_examples(effect, examples=self.examples, v_seeds=counted, **common)
            trainings = (
                None if v_seeds is None else needed_seeds(effect, seeds=seeds, v_seeds=v_seeds, **common)
            )
            needs.append(Needed(d.strategy_a, d.strategy_b, effect, power, examples, trainings))
        return tuple(needs)

    def _would_change(self) -> list[str]:
        changes = []
        for need in self.needed():
            pair = f"tell {need.strategy_b} from {need.strategy_a} with a chance of {need.power:.0%}"
            truth = f"if the true difference is {gap_text(need.effect)}"
            if need.examples is None:
                changes.append(f"No number of examples would {pair} {truth}: the luck of training hides it.")
            elif need.examples <= self.examples:  # the margin is wider than what was observed
                changes.append(
                    f"A true difference of {gap_text(need.effect)} between {need.strategy_a} and {need.strategy_b} would "
                    f"have been told by these examples with a chance of {need.power:.0%}: if there is one, it is smaller."
                )
                continue
            else:
                changes.append(
                    f"About {_rounded(need.examples)} report examples, instead of {self.examples:,}, and select "
                    f"{'' if self.shifted is None else 'and shifted '}examples in proportion, would {pair} {truth}."
                )
            if need.seeds is not None and self.seeds_resampled:
                changes.append(f"So would about {need.seeds} training seeds of each.")
        changes += [
            f"A margin below {d.difference:.4f}, instead of {self.margin:g}, would put {d.strategy_a} before "
            f"{d.strategy_b}."
            for d in self.to_best
            if d.strategy_b in self.tied and d.strategy_b not in self.indistinguishable
        ]
        if not self.seeds_resampled:
            changes.append("Five or more training seeds per strategy would cover the luck of training too.")
        return changes


@dataclass(frozen=True, repr=False)
class Comparison:
    """One :class:`Condition` for each task, attack and epsilon; prints as their areas and verdicts."""

    conditions: tuple[Condition, ...]

    def __repr__(self) -> str:
        return "\n\n".join(map(_table, self.conditions))

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
            return self.conditions[0].judged.verdict
        names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in self.conditions])
        return "\n".join(
            f"{name}: {c.judged.verdict}" for name, c in zip(names, self.conditions, strict=True)
        )

    def to_frame(self) -> pd.DataFrame:
        """The areas as a table, one row for each estimate."""
        frame = pd.DataFrame([dataclasses.asdict(estimate) for estimate in self.areas])
        if any(condition.volumes for condition in self.conditions):
            volumes = [
                None
                if condition.volumes is None
                else next((v for v in condition.volumes.areas if v.strategy == area.strategy), None)
                for condition in self.conditions
                for area in condition.areas
            ]
            for column, name in (("volume", "area"), ("volume_low", "low"), ("volume_high", "high")):
                frame[column] = [None if volume is None else getattr(volume, name) for volume in volumes]
        return frame.set_index(["task", "attack", "threat", "epsilon"]).reset_index()


def _table(condition: Condition) -> str:
    interval = f"{condition.settings.level * 100:g}% interval"
    columns = ("area", interval, "best clean", "best robust", "trainable")
    rows = [
        (
            f"{area.area:.3f}",
            f"{area.low:.3f} to {area.high:.3f}",
            f"{area.best_clean:.3f}",
            f"{area.best_robust:.3f}",
            f"{area.trainable_parameters:,}",
        )
        for area in condition.areas
    ]
    table = pd.DataFrame(rows, columns=columns, index=[area.strategy for area in condition.areas])
    heading = f"{condition.task}, {threat_text(condition.threat, condition.epsilon)}, {attack_text(condition.attack)}"
    text = f"{heading}\n{table.to_string()}\n{condition.judged.verdict}"
    for title, head, others in condition.further_tables():
        text += f"\n\n{title}\n{pd.DataFrame(others, columns=head).set_index(head[0]).rename_axis(None).to_string()}"
    return text


def _rounded(number: int) -> str:
    return f"{float(f'{number:.1e}'):,.0f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def with_p_best(areas: Sequence[AreaEstimate], differences: Sequence[Difference]) -> tuple[AreaEstimate, ...]:
    """The estimates, the largest first, with the p-value that says whether each is among the best of them."""
    margin = differences[0].margin if differences else 0.0
    p_values = p_matrix(
        [area.strategy for area in areas], ((d.strategy_a, d.strategy_b, d.p_value) for d in differences)
    )
    shares = best_p_values([area.area for area in areas], p_values, margin=margin)
    return tuple(dataclasses.replace(area, p_best=float(p)) for area, p in zip(areas, shares, strict=True))


__all__ = ["AreaEstimate", "Comparison", "Condition", "Difference", "Recommendation"]

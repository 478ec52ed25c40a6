"""The record of a race: rounds of runs, who was put out after each and why, as ``race.json`` beside the runs has it.

:func:`paretune.sweeps.racing.race` writes it, :func:`paretune.compare` reads it: a strategy that is out was told on the
select split to be behind another one, and so is not among those that may be best.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from paretune.frontiers.deciding import listed
from paretune.frontiers.elimination import Lead
from paretune.frontiers.settings import Settings
from paretune.runs.rows import RACE, read_json, training_of
from paretune.runs.store import Run

Ended = Literal["one is left", "equivalent", "futile", "seeds", "budget"]
_ENDED = {
    "one is left": "one strategy is left",
    "equivalent": "those that are left differ by less than the margin",
    "futile": "more seeds would hardly tell more of them apart",
    "seeds": "every seed was used",
    "budget": "the budget has nothing left for another round",
}


@dataclass(frozen=True)
class Standing:
    """One strategy under one condition after a round."""

    task: str
    attack: str
    epsilon: float
    strategy: str
    area: float  # on the select split, mean over seeds
    seeds: int


@dataclass(frozen=True)
class Out(Lead):
    """The lead, under one condition, over a strategy that a round put out."""

    task: str
    attack: str
    epsilon: float


@dataclass(frozen=True)
class Round:
    """A round of runs, and what the look after it found.

    Args:
        runs: names of their directories, and whose they are.
        look: 1 for the first look of the race; None for a round after which nothing could be told.
        gradient_evaluations: of this round, evaluation counted as if no image were solved before the last step.
        seconds: that this round took.
        standings: the strategies that were in the race, under each condition.
        out: that it put out, under each condition.
    """

    runs: Mapping[str, str]
    look: int | None
    gradient_evaluations: int
    seconds: float
    standings: tuple[Standing, ...]
    out: tuple[Out, ...]


@dataclass(frozen=True)
class Race:
    """A race so far.

    Args:
        strategies: that entered.
        seeds: that there are.
        level: with which those that stay hold a best one, together with the tests on the report split.
        margin: areas closer than this are equal for practical purposes.
        start: (clean, robust) where areas start.
        rounds: one after the other.
        ended: why; None while it goes on.
        grid: gradient evaluations of every strategy with every seed.
    """

    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    level: float
    margin: float
    start: tuple[float, float]
    rounds: tuple[Round, ...] = ()
    ended: Ended | None = None
    grid: int = 0

    @property
    def out(self) -> dict[str, int]:
        """The strategies that were put out, and after which round."""
        return {out.behind: number for number, past in enumerate(self.rounds, start=1) for out in past.out}

    @property
    def stayed(self) -> tuple[str, ...]:
        """The strategies that may be best."""
        return tuple(strategy for strategy in self.strategies if strategy not in self.out)

    @property
    def gradient_evaluations(self) -> int:
        """Of all rounds."""
        return sum(past.gradient_evaluations for past in self.rounds)

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return sum(past.seconds for past in self.rounds)

    @property
    def sentence(self) -> str:
        """What it took, why it ended, and who stayed."""
        runs, of = sum(len(past.runs) for past in self.rounds), len(self.strategies) * len(self.seeds)
        share = f" ({self.gradient_evaluations / self.grid:.0%})" if self.grid else ""
        ended = f"it ended as {_ENDED[self.ended]}" if self.ended else "it goes on"
        verb = "stays" if len(self.stayed) == 1 else "stay"
        return (
            f"{runs} of {of} runs, {self.gradient_evaluations:,} of {self.grid:,} gradient evaluations{share}; {ended}; "
            f"{listed([text.removesuffix('()') for text in self.stayed])} {verb}"
        )

    def leads(self, task: str, attack: str, epsilon: float) -> list[tuple[int, Out]]:
        """What put strategies out under this condition, and after which round."""
        return [
            (number, out)
            for number, past in enumerate(self.rounds, start=1)
            for out in past.out
            if (out.task, out.attack, out.epsilon) == (task, attack, epsilon)
        ]

    def numbers(self, task: str, attack: str, epsilon: float) -> tuple[list[str], list[list[str]]]:
        """A heading and a row for each strategy: its area when it was last judged, and what put it out."""
        key = (task, attack, epsilon)
        leads = {out.behind: (number, out) for number, out in self.leads(*key)}
        last = {
            standing.strategy: standing
            for past in self.rounds
            for standing in past.standings
            if (standing.task, standing.attack, standing.epsilon) == key
        }
        ranked = sorted(last.values(), key=lambda one: (-self.out.get(one.strategy, math.inf), -one.area))
        rows = []
        for one in ranked:
            row = [one.strategy, f"{one.area:.3f}", f"{one.seeds}"]
            if one.strategy in leads:
                number, out = leads[one.strategy]
                row += [f"{number}", out.ahead, f"{out.difference:.3f}", f"{out.low:.3f}"]
            else:
                row += ["may be best", "", "", ""]
            rows.append(row)
        return ["strategy", "area", "seeds", "out after round", "behind", "by", "at least"], rows

    def holds(self, settings: Settings) -> bool:
        """Whether a comparison with these settings asks what the race has answered."""
        return (
            settings.by == "area"
            and (settings.start, settings.margin) == (self.start, self.margin)
            and settings.level <= self.level
        )

    def renamed(self, names: Mapping[str, str]) -> "Race":
        """With other names of its strategies."""

        def named(values: Iterable[Any], *fields: str) -> tuple[Any, ...]:
            return tuple(
                dataclasses.replace(value, **{field: names[getattr(value, field)] for field in fields})
                for value in values
            )

        rounds = (
            dataclasses.replace(
                past,
                runs={run: names[strategy] for run, strategy in past.runs.items()},
                standings=named(past.standings, "strategy"),
                out=named(past.out, "ahead", "behind"),
            )
            for past in self.rounds
        )
        strategies = tuple(names[strategy] for strategy in self.strategies)
        return dataclasses.replace(self, strategies=strategies, rounds=tuple(rounds))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are JSON."""
        return dataclasses.asdict(self) | {"stayed": self.stayed}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave, or JSON made of it.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        rounds = tuple(
            Round(
                **{
                    **past,
                    "standings": tuple(Standing(**standing) for standing in past["standings"]),
                    "out": tuple(Out(**out) for out in past["out"]),
                }
            )
            for past in values["rounds"]
        )
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        clean, robust = values["start"]
        race = cls(
            **fields
            | {
                "rounds": rounds,
                "strategies": tuple(values["strategies"]),
                "seeds": tuple(values["seeds"]),
                "start": (clean, robust),
            }
        )
        known = {*race.strategies}
        named = {
            name for past in rounds for name in (*past.runs.values(), *(s.strategy for s in past.standings))
        }
        named |= {name for past in rounds for out in past.out for name in (out.ahead, out.behind)}
        if strange := sorted(named - known):
            raise ValueError(f"it names {', '.join(map(str, strange))}, which did not enter")
        return race


def read_race(directory: Path) -> Race | None:
    """The race of the runs in ``directory``; None if there is none.

    Raises:
        ValueError: its file is damaged.
    """
    file = directory / RACE
    try:
        content = read_json(file)
    except FileNotFoundError:
        return None
    try:
        return Race.from_dict(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no record of a race: {type(error).__name__}: {error}") from None


def race_of(runs: Sequence[Run], labels: Mapping[str, Sequence[int]]) -> Race | None:
    """The race that all these runs are of, with the names that a comparison gives its strategies.

    Args:
        runs: that the labels index.
        labels: of each strategy of the comparison, its runs.

    Returns:
        None if they are of no race or of several, or a strategy has runs besides.
    """
    whose: dict[Path, dict[str, set[str]]] = {}
    races: dict[Path, Race | None] = {}
    for label, indices in labels.items():
        for index in indices:
            training = training_of(runs[index].path).absolute()
            if training.parent not in races:
                races[training.parent] = read_race(training.parent)
            race = races[training.parent]
            ran = {} if race is None else {name: by for past in race.rounds for name, by in past.runs.items()}
            if training.name not in ran:
                return None
            whose.setdefault(training.parent, {}).setdefault(ran[training.name], set()).add(label)
    (race,) = races.values() if len(races) == 1 else (None,)
    if race is None:
        return None
    (names,) = whose.values()
    if any(len(several) > 1 for several in names.values()):
        return None
    return race.renamed(
        {strategy: next(iter(names.get(strategy, {strategy}))) for strategy in race.strategies}
    )

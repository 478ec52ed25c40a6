"""Which runs a race makes next, and what it knows after them; nothing is run here.

Strategies share the seeds that they have:

1. every strategy with the first seed;
2. the better half of them with the second seed, which says how far seeds spread;
3. those of the others that may still be best with the second seed;
4. those that are left with the third seed, and so on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from paretune.frontiers.elimination import Entrant, Look, Rules, look_at
from paretune.frontiers.race import Ended, Out, Race, Round, Standing


class Key(NamedTuple):
    """A condition."""

    task: str
    attack: str
    epsilon: float


def next_round(state: Race) -> list[tuple[str, int]]:
    """The strategies and seeds of the next round; none if every seed was used."""
    if not state.rounds:
        return _of_seed(state, 0)
    if len(state.rounds) == 1:
        better = {standing.strategy for standing in _leading(state.rounds[0].standings)}
        return [(strategy, seed) for strategy, seed in _of_seed(state, 1) if strategy in better]
    if len(state.rounds) == 2:
        second = {*state.rounds[1].runs.values()}
        if others := [(strategy, seed) for strategy, seed in _of_seed(state, 1) if strategy not in second]:
            return others
    return _of_seed(state, max(standing.seeds for standing in state.rounds[-1].standings))


def after_round(state: Race, last: Round, entrants: Mapping[Key, Mapping[str, Entrant]]) -> Race:
    """The race after a round. Who is out is so under every condition.

    Args:
        state: before it.
        last: the round, without what is told after it.
        entrants: all runs so far, by condition and strategy.
    """
    number = len(state.rounds) or None  # after the first round nothing says how far seeds spread
    rules = Rules(state.level, state.margin, len(state.strategies) - 1, len(state.seeds))
    standings: list[Standing] = []
    leads: list[Out] = []
    looks: list[Look] = []
    for key, entered in entrants.items():
        standings += [
            Standing(*key, name, entered[name].area, len(entered[name].areas)) for name in state.stayed
        ]
        if number is not None:
            looks.append(look_at(entered, state.stayed, rules, number))
            leads += [Out(**vars(lead), **key._asdict()) for lead in looks[-1].out]
    behind = [lead.behind for lead in leads]
    out = tuple(lead for lead in leads if behind.count(lead.behind) == len(entrants))
    last = replace(last, look=number, standings=tuple(standings), out=out)
    state = replace(state, rounds=(*state.rounds, last))
    ended: Ended | None = None
    if len(state.stayed) == 1:
        ended = "one is left"
    elif looks and all(look.equivalent for look in looks):
        ended = "equivalent"
    elif looks and all(look.equivalent or look.futile for look in looks):
        ended = "futile"
    return replace(state, ended=ended)


def _of_seed(state: Race, number: int) -> list[tuple[str, int]]:
    return [(strategy, state.seeds[number]) for strategy in state.stayed] if number < len(state.seeds) else []


def _leading(standings: Sequence[Standing]) -> list[Standing]:
    """The better half, rounded up, under each condition."""
    by_condition: dict[Key, list[Standing]] = {}
    for standing in standings:
        key = Key(standing.task, standing.attack, standing.epsilon)
        by_condition.setdefault(key, []).append(standing)
    return [
        standing
        for of_condition in by_condition.values()
        for standing in sorted(of_condition, key=lambda one: -one.area)[: (len(of_condition) + 1) // 2]
    ]

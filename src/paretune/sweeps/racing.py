"""A comparison that stops when it is certain: strategies that cannot be best any more get no more seeds.

The unit is a run to its end, so that every area is that of a whole run; :mod:`paretune.frontiers.rounds` says which come
next, and :mod:`paretune.frontiers.elimination`, on the select split alone, who is out after a round. Runs are not cut short:
how far a run is at a part of its training does not say where it ends, as learning curves cross.

What a race has done is in ``race.json`` beside the runs, which are those of a sweep. Called again, the race takes the same
course, as that follows from the runs, and goes on where it was.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.images import ImageData
from paretune.frontiers.cells import spaced_subsets
from paretune.frontiers.deciding import listed
from paretune.frontiers.elimination import Entrant
from paretune.frontiers.race import Ended, Race, Round, read_race
from paretune.frontiers.rounds import Key, after_round, next_round
from paretune.frontiers.settings import Settings
from paretune.runs import disk
from paretune.runs.lock import alone
from paretune.runs.objects import check_local
from paretune.runs.rows import RACE
from paretune.runs.sinks.base import Openable
from paretune.runs.storage import settle, share
from paretune.runs.store import Run
from paretune.sweeps.announcing import minutes_text
from paretune.sweeps.budgets import Budget
from paretune.sweeps.config import RunConfig
from paretune.sweeps.costs import PIXELS, Work, makespan, measured
from paretune.sweeps.executors import Executor, Workers
from paretune.sweeps.executors.job import steps_done
from paretune.sweeps.executors.local import shares
from paretune.sweeps.grid import directory_name, run_all
from paretune.training.tasks import Tasks

log = logging.getLogger(__name__)


def race(
    configs: Sequence[RunConfig],
    out: str | Path,
    settings: Settings,
    *,
    budget: Budget | None = None,
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    tell: Callable[[str], object] | None = None,
) -> tuple[list[Run], Race]:
    """Run what is needed of ``configs`` to know which strategies may be best.

    Args:
        configs: every strategy with every seed.
        out: directory of the runs and of ``race.json``.
        settings: how areas are judged.
        budget: no round begins that would exceed it, with those before it; None is no limit. Gradient evaluations of an
            evaluation are counted as if no image were solved before the last step of the attack. Of time, that of the
            rounds counts, without what a call that was killed had done of one.
        on: see :func:`~paretune.sweeps.grid.run_all`, as for the others.
        workers: runs at once.
        resume: False starts the race and its runs over.
        progress: show bars.
        sinks: who else receives the rows of each run.
        tell: called with lines on the data and on each round.

    Returns:
        The runs, in the order of ``configs``, and the race.

    Raises:
        ValueError: there are fewer than two strategies or seeds, settings go by volume, the budget is too small for the
            first round, or ``out`` has a race of other runs or settings.
        Exception: whatever a run raises, see :func:`~paretune.sweeps.grid.run_all`.
    """
    check_local("out", out)
    out = Path(out)
    entered = {(repr(config.strategy), config.seed): config for config in configs}
    check(configs, settings)
    state = _begun(configs, settings, out, resume)
    data = configs[0].check()
    works = {key: Work.of(config, data) for key, config in entered.items()}
    state = replace(state, grid=sum(map(_evaluations, works.values())))
    known, state = state.rounds, replace(state, rounds=(), ended=None)
    runs: dict[tuple[str, int], list[Run]] = {}
    while state.ended is None:
        keys = next_round(state)
        if not keys:
            state = _ended(out, state, "seeds", tell)
            break
        needed = sum(_evaluations(works[key]) for key in keys)
        before = _like(known, state, entered, keys)
        if budget is not None and not _fits(
            budget, state, needed, before, [entered[key] for key in keys], data, workers
        ):
            if not state.rounds:
                raise _too_small(budget, needed, keys)
            state = _ended(out, state, "budget", tell)
            break
        if resume:  # what other machines have made is no work of this round
            settle(out / directory_name(entered[key]) for key in keys)
        finished = resume and all(math.isinf(_done(out, entered[key])) for key in keys)
        began = time.perf_counter()
        ran = run_all(
            [entered[key] for key in keys],
            out,
            on=on,
            workers=workers,
            resume=resume,
            progress=progress,
            sinks=sinks,
            tell=None if state.rounds else tell,
        )
        seconds = before.seconds if finished and before else time.perf_counter() - began
        tasks = len(ran) // len(keys)
        for place, key in enumerate(keys):
            runs[key] = ran[place * tasks : (place + 1) * tasks]
        spent = sum(_spent(works[key], entered[key], runs[key][0]) for key in keys)
        named = {directory_name(entered[key]): key[0] for key in keys}
        state = after_round(state, Round(named, None, spent, seconds, (), ()), entrants(runs, settings))
        if tell is not None:
            tell(_told(state))
        state = _ended(out, state, state.ended, tell) if state.ended else _written(out, state)
    return [run for key in entered if key in runs for run in runs[key]], state


def check(configs: Sequence[RunConfig], settings: Settings) -> None:
    """Refuse what cannot be raced.

    Raises:
        ValueError: see :func:`race`.
    """
    for name, count in (
        ("strategies", len({config.strategy for config in configs})),
        ("seeds", len({config.seed for config in configs})),
    ):
        if count < 2:
            raise ValueError(f"until='certain' needs at least two {name}, got {count}; give more (--{name})")
    if settings.by == "volume":
        raise ValueError("until='certain' goes by areas; by='volume' needs all runs: leave until out")


def entrants(
    runs: Mapping[tuple[str, int], Sequence[Run]], settings: Settings
) -> dict[Key, dict[str, Entrant]]:
    """What the select split says of runs, by condition and strategy; of every run as many points as the shortest has."""
    every = [run for of_key in runs.values() for run in of_key]
    names = [*Key._fields]
    fewest = min(int(run.points.groupby(names).size().min()) for run in every)
    bits: dict[Key, dict[str, list[tuple[Any, Any]]]] = {}
    for (strategy, _), of_key in runs.items():
        for run in of_key:
            for _, rows in run.points.groupby(names, sort=True):
                (used,) = spaced_subsets(np.zeros(len(rows), dtype=int), fewest, 1, 0)
                points = [run.bits(row) for _, row in rows.iloc[used].iterrows()]
                clean, robust = (
                    np.stack([right[f"select/{name}"] for right in points]) for name in ("clean", "robust")
                )
                first = rows.iloc[0]
                key = Key(str(first["task"]), str(first["attack"]), float(first["epsilon"]))
                bits.setdefault(key, {}).setdefault(strategy, []).append((clean, robust))
    return {
        key: {strategy: Entrant.of(of_seeds, settings.start) for strategy, of_seeds in of_condition.items()}
        for key, of_condition in bits.items()
    }


def _begun(configs: Sequence[RunConfig], settings: Settings, out: Path, resume: bool) -> Race:
    """The race that ``out`` has, or a new one."""
    strategies = tuple(dict.fromkeys(repr(config.strategy) for config in configs))
    seeds = tuple(dict.fromkeys(config.seed for config in configs))
    fresh = Race(strategies, seeds, settings.level, settings.margin, settings.start)
    known = read_race(out) if resume else None
    if known is None:
        return fresh
    differs = [
        name
        for name in ("strategies", "level", "margin", "start")
        if getattr(known, name) != getattr(fresh, name)
    ]
    shared = min(len(known.seeds), len(seeds))
    if known.seeds[:shared] != seeds[:shared]:
        differs.append("seeds")
    names = {directory_name(config) for config in configs}
    if not differs and any({*first.runs} - names for first in known.rounds[:1]):
        differs.append("options of the runs")
    if differs:
        raise ValueError(
            f"{out / RACE} is of a race with other {listed(differs)}; give another out, or resume=False (--resume false) to "
            "start over"
        )
    return replace(fresh, rounds=known.rounds)


def _like(
    known: Sequence[Round],
    state: Race,
    entered: Mapping[tuple[str, int], RunConfig],
    keys: Sequence[tuple[str, int]],
) -> Round | None:
    """The round that an earlier call made in the place of the next one, if it was of the same runs."""
    place = len(state.rounds)
    names = {directory_name(entered[key]) for key in keys}
    return known[place] if place < len(known) and {*known[place].runs} == names else None


def _fits(
    budget: Budget,
    state: Race,
    needed: int,
    before: Round | None,
    configs: Sequence[RunConfig],
    data: ImageData | Tasks,
    workers: Workers,
) -> bool:
    """Whether a round of these runs is within the budget; one that was made before takes what it took."""
    if before is not None:
        seconds = before.seconds
        needed = before.gradient_evaluations
    elif math.isinf(budget.seconds):
        seconds = 0.0
    elif state.rounds:
        seconds = state.seconds / max(1, state.gradient_evaluations) * needed
    else:
        used, _ = shares(workers if isinstance(workers, int) else None, len(configs))
        cost = measured(configs[0], data, PIXELS)
        seconds = makespan([cost.seconds(Work.of(config, data)) for config in configs], used)
        log.info("%d runs: about %s", len(configs), minutes_text(seconds))
    return budget.allows(state.gradient_evaluations + needed, state.seconds + seconds)


def _too_small(budget: Budget, needed: int, keys: Sequence[tuple[str, int]]) -> ValueError:
    return ValueError(
        f"budget={budget.plain()!r} is too small for one round: {len(keys)} runs, one of each strategy, take about "
        f"{needed:,} gradient evaluations (paretune plan says how long); give more, fewer strategies, or smaller runs"
    )


def _evaluations(work: Work) -> int:
    return work.training + work.evaluation


def _spent(work: Work, config: RunConfig, run: Run) -> int:
    """Gradient evaluations of a run: those of training as recorded, those of evaluation at most."""
    training = (
        float(run.points["gradient_evaluations"].max()) if "gradient_evaluations" in run.points else math.nan
    )
    evaluated = work.evaluation * int(run.points["step"].nunique()) // config.points
    # Runs of older versions lack the number.
    return evaluated + (work.training if math.isnan(training) else int(training))


def _done(out: Path, config: RunConfig) -> float:
    path = out / directory_name(config)
    return steps_done(path, config.places(path))


def _ended(out: Path, state: Race, ended: Ended, tell: Callable[[str], object] | None) -> Race:
    state = _written(out, replace(state, ended=ended))
    if tell is not None:
        tell(f"race: {state.sentence}")
    return state


def _written(out: Path, state: Race) -> Race:
    with alone(out, patience=60):
        disk.write_json(out / RACE, state.to_dict())
        share(out / RACE)
    return state


def _told(state: Race) -> str:
    """A line on the last round."""
    last = state.rounds[-1]
    gone = {lead.behind: lead for lead in last.out}
    texts = [
        f"{name.removesuffix('()')} (behind {lead.ahead.removesuffix('()')})" for name, lead in gone.items()
    ]
    outcome = (
        f"out: {listed(texts)}; {len(state.stayed)} stay" if texts else f"{len(state.stayed)} may be best"
    )
    return f"round {len(state.rounds)}, {len(last.runs)} runs: {outcome}"

"""What a comparison would run, and what that takes, before any of it runs."""

import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paretune.runs.storage import local_copy
from paretune.sweeps.announcing import data_lines
from paretune.sweeps.config import CompareConfig, RunConfig
from paretune.sweeps.costs import Cost, Work, makespan, measured
from paretune.sweeps.executors import Workers
from paretune.sweeps.executors.job import steps_done
from paretune.sweeps.executors.local import shares
from paretune.sweeps.executors.packing import fitting
from paretune.sweeps.grid import check_unchanged, directory_name
from paretune.sweeps.searching import chosen, configured, outcomes, search_directory, trials


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run.

    Args:
        directory: of the run.
        done: steps that it goes on from; infinite for a run that will not be repeated: finished, or a trial that diverged.
        steps: of the whole run.
        work: that is left.
        seconds: about how long that takes.
    """

    directory: Path
    done: float
    steps: int
    work: Work
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The runs of one strategy.

    Args:
        strategy: the call that makes it.
        trials: whether they look for a learning rate.
        cost: of steps of this strategy.
        runs: in their order.
    """

    strategy: str
    trials: bool
    cost: Cost
    runs: tuple[PlannedRun, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are JSON; what is counted is what is left to do."""
        works = [run.work for run in self.runs]
        runs = [
            {
                "directory": str(run.directory),
                "finished": math.isinf(run.done),
                "done_steps": run.steps if math.isinf(run.done) else int(run.done),
                "steps": run.steps,
                "seconds": run.seconds,
            }
            for run in self.runs
        ]
        return {
            "strategy": self.strategy,
            "trials": self.trials,
            "trainable_parameters": self.cost.trainable_parameters,
            "parameters": self.cost.parameters,
            "steps": sum(work.steps for work in works),
            "training_gradients": sum(work.training for work in works),
            "evaluation_gradients_at_most": sum(work.evaluation for work in works),
            "seconds": sum(run.seconds for run in self.runs),
            "peak_memory_bytes": self.cost.peak_memory_bytes,
            "runs": runs,
        }


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A comparison before it runs.

    Args:
        data: a line on the images, of several tasks a line for each too.
        strategies: in their order; trials, if there are any, come first.
        workers: processes at once.
        seconds: about how long these take for all that is left, their start included and the report not.
    """

    data: str
    strategies: tuple[Planned, ...]
    workers: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are JSON."""
        return vars(self) | {"strategies": [planned.to_dict() for planned in self.strategies]}


def plan(
    config: CompareConfig, out: str | Path, *, workers: Workers = None, resume: bool = True
) -> SweepPlan:
    """What a comparison in ``out`` would do, the search for learning rates included; nothing is written.

    Every strategy takes steps in a process of its own, as many at once as there are workers, so that seconds and memory are
    those of workers side by side. Evaluation is timed as if every image had to be attacked to the end, so that it often
    takes less.

    Args:
        config: the comparison.
        out: directory of the runs, or its URL, which is only read.
        workers: processes; see :func:`~paretune.sweeps.grid.run_all`.
        resume: False plans to start all runs over.

    Raises:
        ValueError: what the sweep would refuse: options, data, or damaged files in ``out``.
    """
    configs, tried, out = config.runs(), list[RunConfig](), local_copy(out)
    data = configs[0].check()
    strategies = list(dict.fromkeys(run.strategy for run in configs))
    known = outcomes(out) if resume else {}
    if config.lr != "auto":
        configs = configured(configs, dict.fromkeys(strategies, config.lr))
    else:
        tried = trials(configs, config)
        if known.keys() >= {directory_name(trial) for trial in tried}:
            configs = configured(configs, chosen(tried, known))
    places = {search_directory(out): tried, Path(out): configs}
    diverged = {search_directory(out) / name for name, outcome in known.items() if "diverged" in outcome}
    done = {}
    for path in (place / directory_name(run) for place, runs in places.items() for run in runs):
        places_of = configs[0].places(path)
        done[path] = math.inf if path in diverged else steps_done(path, places_of) if resume else 0.0
        if math.isinf(done[path]) and path not in diverged:
            check_unchanged(places_of, data)
    auto = workers == "auto"
    workers, threads = shares(None if workers == "auto" else workers, len(configs))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        took = list(pool.map(_measured, configs[: len(strategies)], [threads] * len(strategies)))
    costs = {strategy: cost for strategy, (cost, _) in zip(strategies, took, strict=True)}
    if auto:
        workers, _ = fitting(max(cost.peak_memory_bytes for cost in costs.values()), len(configs))
    every, seconds = [], 0.0
    for place, runs in places.items():
        plans = []
        for run in runs:
            path, steps = place / directory_name(run), run.steps(data)
            work = Work.of(run, data, int(min(done[path], steps)))
            about = costs[run.strategy].seconds(work)
            plans.append(PlannedRun(directory=path, done=done[path], steps=steps, work=work, seconds=about))
        left = [planned.seconds for planned in plans if planned.work.steps]
        if left:
            seconds += max(start for _, start in took) + makespan(left, min(workers, len(left)))
        for strategy in strategies if runs else ():
            of_strategy = (
                planned for run, planned in zip(runs, plans, strict=True) if run.strategy == strategy
            )
            cost = costs[strategy]
            every.append(
                Planned(strategy=repr(strategy), trials=runs is tried, cost=cost, runs=tuple(of_strategy))
            )
    return SweepPlan(
        data="\n".join(data_lines(data, config)), strategies=tuple(every), workers=workers, seconds=seconds
    )


def _measured(config: RunConfig, threads: int) -> tuple[Cost, float]:
    """The cost of ``config`` in this process, which has done nothing else, and the seconds that its start took."""
    start = time.process_time()
    torch.set_num_threads(threads)
    began = time.perf_counter()
    data = config.load_data()
    loading = time.perf_counter() - began
    cost = measured(config, data)
    return replace(cost, setup=cost.setup + loading), start

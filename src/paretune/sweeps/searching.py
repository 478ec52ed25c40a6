"""A learning rate for every strategy, found with the same budget before they are compared.

Each strategy is tried with its own rate times powers of two, for a part of the epochs, on a seed that is not compared.
The trials are measured once, at their end; the best has the largest area on the select split, which for one point is
clean times robust accuracy; of several tasks the mean of theirs. The report split takes no part in the choice.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from paretune._values import LAST_SEED
from paretune.frontiers.pareto import area
from paretune.runs import disk
from paretune.runs.lock import alone
from paretune.runs.objects import check_local
from paretune.runs.rows import SEARCH, read_json
from paretune.runs.storage import share
from paretune.runs.store import Run
from paretune.strategies import Strategy
from paretune.sweeps.config import RunConfig, SearchConfig
from paretune.sweeps.costs import Work
from paretune.sweeps.executors import Executor, Workers
from paretune.sweeps.grid import directory_name, run_all
from paretune.training.guards import TrainingDiverged

log = logging.getLogger(__name__)  # which the command line shows

Outcome = dict[
    str, Any
]  # of a trial: its strategy and lr, and accuracies and area on the select split, or "diverged"


def search_directory(out: str | Path) -> Path:
    """Where the trials for the runs in ``out`` are."""
    return Path(out) / "lr-search"


def with_rates(
    configs: Sequence[RunConfig],
    search: SearchConfig,
    out: str | Path,
    *,
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
) -> list[RunConfig]:
    """``configs`` with the learning rates that ``search`` asks for; where it says auto, they are searched for now.

    The trials are runs in ``out/lr-search``, which no reader of ``out`` takes for runs of the comparison. Their outcomes
    and the chosen rates are in ``lr-search.json`` there. Trials that are finished, or have diverged, are not repeated.

    Args:
        configs: runs of one task.
        search: how.
        out: directory of the runs.
        on: see :func:`~paretune.sweeps.grid.run_all`, as for the others.
        workers: likewise.
        resume: False repeats the trials.
        progress: show bars.

    Raises:
        TrainingDiverged: all trials of a strategy diverged.
        Exception: whatever else a trial raises, see :func:`~paretune.sweeps.grid.run_all`.
    """
    if search.lr != "auto":
        return configured(configs, dict.fromkeys((config.strategy for config in configs), search.lr))
    check_local("out", out)
    data = configs[0].check()  # what is wrong with the comparison is said before its trials
    tried, file = trials(configs, search), search_directory(out) / SEARCH
    work = Work.of(tried[0], data)
    log.info(
        "learning rates: %d trials of each strategy, each of %s steps, %s gradient evaluations of training and at most %s "
        "of evaluation, on seed %d",
        *(search.lr_trials, f"{work.steps:,}", f"{work.training:,}", f"{work.evaluation:,}", tried[0].seed),
    )
    with alone(file.parent, patience=60):
        known = outcomes(out) if resume else {}
        disk.write_json(file, {"trials": known})  # before there are runs, which it keeps apart
        share(file)
    left = [trial for trial in tried if "diverged" not in known.get(directory_name(trial), {})]
    runs = run_all(
        left, file.parent, on=on, workers=workers, resume=resume, progress=progress, diverging=True
    )
    left_runs = iter(runs)
    results = {
        directory_name(trial): _outcome(trial, [*islice(left_runs, max(1, len(trial.sources)))])
        for trial in left
    }
    known |= results
    rates = chosen(tried, known)
    with alone(file.parent, patience=60):
        texts = {repr(strategy): rate for strategy, rate in rates.items()}
        disk.write_json(file, {"trials": outcomes(out) | known, "chosen": texts})
        share(file)
    return configured(configs, rates)


def configured(configs: Sequence[RunConfig], rates: Mapping[Strategy, float | None]) -> list[RunConfig]:
    """``configs`` with the rate of each one's strategy; where that is its own, they stay the runs without a search."""
    return [
        config
        if rates[config.strategy] in (None, config.strategy.learning_rate)
        else replace(config, optimizer=replace(config.optimizer, lr=rates[config.strategy]))
        for config in configs
    ]


def trials(configs: Sequence[RunConfig], search: SearchConfig) -> list[RunConfig]:
    """The runs that choose among learning rates: of each strategy as many, of as many steps, by rising rate."""
    compared = {config.seed for config in configs}
    # From the end, so that it stays the same when seeds are added.
    seed = next(seed for seed in range(LAST_SEED, 0, -1) if seed not in compared)
    epochs, half = configs[0].epochs * search.lr_fraction, search.lr_trials // 2
    tried: list[RunConfig] = []
    for strategy in dict.fromkeys(config.strategy for config in configs):
        trial = replace(configs[0], strategy=strategy, seed=seed, epochs=epochs, points=1)
        for power in range(-half, half + 1):
            tried += configured([trial], {strategy: strategy.learning_rate * 2.0**power})
    return tried


def chosen(tried: Sequence[RunConfig], known: Mapping[str, Outcome]) -> dict[Strategy, float]:
    """The rate of each strategy with the largest area on the select split.

    Of equal areas the larger clean accuracy decides, then the smaller rate. A trial that diverged is worse than any other.

    Args:
        tried: the trials, those of a strategy by rising rate.
        known: their outcomes, by the names of their directories.

    Raises:
        TrainingDiverged: all trials of a strategy diverged.
    """
    rates: dict[Strategy, float] = {}
    for strategy in dict.fromkeys(trial.strategy for trial in tried):
        results = [known[directory_name(trial)] for trial in tried if trial.strategy == strategy]
        whole = [result for result in results if "diverged" not in result]
        span = f"{len(results)} learning rates from {results[0]['lr']:.2g} to {results[-1]['lr']:.2g}"
        if not whole:
            raise TrainingDiverged(
                f"{strategy!r} diverged with all of {span}; give a smaller one by --lr, or leave it out"
            )
        # The first of equal ones.
        best = max(whole, key=lambda result: (result["area"], result["clean_select"]))
        rates[strategy] = best["lr"]
        told = f"{strategy!r}: {best['lr']:.2g} is the best of {span}"
        told += f", with clean {best['clean_select']:.3f} and robust {best['robust_select']:.3f} on the select split"
        edge = best["lr"] in (results[0]["lr"], results[-1]["lr"])
        if edge:
            beyond = "smaller" if best["lr"] == results[0]["lr"] else "larger"
            told += f"; a {beyond} one may be better still: it is at the edge of what was tried (--lr-trials)"
        if not best["area"]:
            told += "; none withstood the attack, so that clean accuracy decided (--lr-fraction makes trials longer)"
        log.log(logging.WARNING if edge or not best["area"] else logging.INFO, told)
    return rates


def outcomes(out: str | Path) -> dict[str, Outcome]:
    """What came of the trials for the runs in ``out``, by the names of their directories."""
    try:
        known: dict[str, Outcome] = read_json(search_directory(out) / SEARCH).get("trials", {})
    except FileNotFoundError:
        return {}
    return known


def _outcome(trial: RunConfig, runs: Sequence[Run]) -> Outcome:
    """Of the run of each task of the trial; accuracies and area are means over the tasks."""
    told = {"strategy": repr(trial.strategy), "lr": trial.optimizer.lr or trial.strategy.learning_rate}
    if not all(run.done for run in runs):
        return told | {"diverged": True}
    accuracies = [(run.points["clean_select"], run.points["robust_select"]) for run in runs]
    return told | {
        "clean_select": fmean(clean.iloc[-1] for clean, _ in accuracies),
        "robust_select": fmean(robust.iloc[-1] for _, robust in accuracies),
        "area": fmean(area(clean, robust) for clean, robust in accuracies),
    }

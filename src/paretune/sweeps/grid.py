"""A grid of runs on the processes of one machine."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from logging.handlers import QueueHandler
from multiprocessing.connection import wait as wait_for
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paretune.data.augmenting import read_augmentation
from paretune.data.images import ImageData
from paretune.runs import disk
from paretune.runs.lock import alone
from paretune.runs.progress import Status, bars
from paretune.runs.rows import read_config, read_json, read_stated, run_key
from paretune.runs.sinks.base import Openable, backfill
from paretune.runs.store import Run, load_runs
from paretune.strategies import LinearProbe
from paretune.sweeps.announcing import data_lines, time_line
from paretune.sweeps.config import RunConfig
from paretune.sweeps.sources import SourceConfig
from paretune.training.guards import TrainingDiverged
from paretune.training.optimizers import AdamW
from paretune.training.tasks import Tasks

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

log = logging.getLogger(__name__)


def run_all(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    workers: int | None = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    tell: Callable[[str], object] | None = None,
    diverging: bool = False,
) -> list[Run]:
    """Train every configuration in a run directory of its own below ``out``; finished runs are not repeated.

    Each worker is a process that uses its share of the cores. Which worker takes which run changes no result. What workers
    log goes through the loggers of this process, lines that are alike once.

    Args:
        configs: what to run.
        out: made if it does not exist.
        workers: processes; None takes one a core (one in all if there is a GPU), never more than runs.
        resume: go on with runs that were stopped; False starts them over.
        progress: show bars on the terminal.
        sinks: who else receives the rows of each run, see :func:`paretune.train`.
        tell: called before the runs begin, with lines on the data of each task and one on about how long it will take.
        diverging: go on with the other runs when one diverges, which is logged, and return it as it is, not done.

    Returns:
        One run a configuration, in the same order; of a configuration of several tasks one for each, see
        :meth:`~paretune.sweeps.config.RunConfig.places`.

    Raises:
        ValueError: ``workers`` is below 1, or above it for what cannot be sent to them; two configurations are the same, or
            a finished run is on other images than its data holds now.
        RuntimeError: a worker ended abruptly.
        Exception: whatever a run raised; runs that were going on finish first, waiting ones are not started.
    """
    out, asked = Path(out), workers
    workers, threads = shares(workers, len(configs))
    paths = [out / directory_name(config) for config in configs]
    if len(set(paths)) < len(paths):
        raise ValueError("two of the configurations are the same")
    places = {path: config.places(path) for config, path in zip(configs, paths, strict=True)}
    finished = {path for path in paths if resume and all((place / "DONE").exists() for place in places[path])}
    tasks: dict[RunConfig, list[tuple[RunConfig, Path]]] = {}
    for config, path in zip(configs, paths, strict=True):
        shared = dataclasses.replace(config, strategy=LinearProbe(), seed=0, optimizer=AdamW())
        tasks.setdefault(shared, []).append((config, path))
    for task, runs in tasks.items():
        left = [(config, path) for config, path in runs if path not in finished]
        try:
            data = task.check()  # a wrong name is an error here and now, not in every worker
        except (ValueError, OSError) as error:
            if left:
                raise
            log.warning("whether the data of finished runs has changed since is not known: %s", error)
            continue
        for path in finished.intersection(path for _, path in runs):
            check_unchanged(places[path], data)
        if tell is not None and left:
            for line in data_lines(data, task):
                tell(line)
            begun = [(config, int(steps_done(path, places[path])) if resume else 0) for config, path in left]
            tell(time_line(begun, data, workers=min(workers, len(left)), threads=threads))
    run_places = [place for path in paths for place in places[path]]
    if len(finished) == len(paths):
        for place in run_places:
            backfill(place, sinks)
        return [load_runs(place)[0] for place in run_places]
    with alone(out, patience=60):
        announce(out, configs)
    if (reason := _stays_here(configs)) is not None:
        if asked is not None and asked > 1:
            raise ValueError(
                f"workers={asked}, but the data or the model cannot be sent to them: {reason}; give workers=1"
            )
        log.info("the runs are made in this process, one by one: %s", reason)
        for config, path in zip(configs, paths, strict=True):
            _made(config, path, resume, progress, sinks, diverging)
        return [load_runs(place)[0] for place in run_places]
    spawn = multiprocessing.get_context("spawn")  # fork would copy torch's thread pools in an unusable state
    messages: Queue[Any] = spawn.Queue()
    with (
        _shown(messages, [path.name for path in paths], enabled=progress),
        ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=_start, initargs=(messages, threads, _levels())
        ) as pool,
    ):
        futures = [
            pool.submit(_run, config, path, resume, sinks, diverging)
            for config, path in zip(configs, paths, strict=True)
        ]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
        for future in done:
            try:
                future.result()
            except BrokenProcessPool:
                raise RuntimeError(
                    f"one of {workers} worker processes ended abruptly: it was killed, or the memory ran out. Give the same "
                    "call again and the runs go on from their last evaluation points; fewer workers (workers=1, "
                    "--workers 1) take less memory"
                ) from None
    return [load_runs(place)[0] for place in run_places]


def shares(workers: int | None, runs: int) -> tuple[int, int]:
    """How many processes share this many ``runs``, and the threads of each; ``workers`` is that of :func:`run_all`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is None:
        workers = 1 if torch.cuda.is_available() else cores
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    workers = min(workers, runs)
    return workers, max(1, cores // workers)


def steps_done(path: Path, places: Sequence[Path]) -> float:
    """Up to which step the run in ``path`` is kept: 0 where there is none, infinity where it is finished.

    Args:
        path: that holds its checkpoint.
        places: the run directory of each of its tasks, of one task ``path`` itself.

    Raises:
        ValueError: a file of it is damaged.
    """
    if not all((place / "config.json").exists() for place in places):
        return 0.0
    keys = {place: run_key(read_config(place)) for place in places}
    stated = [read_stated(place, keys[place]) for place in places]
    if all(statement is not None and statement.done for statement in stated):
        return math.inf
    kept = read_stated(path, keys[places[0]])
    return 0.0 if kept is None else kept.step


def _stays_here(configs: Sequence[RunConfig]) -> str | None:
    """Why a configuration cannot be sent to another process; None if it can."""
    try:
        sent = bytes(ForkingPickler.dumps(configs[0]))
    except Exception as error:  # whatever somebody's class raises
        return f"{type(error).__name__}: {error}"
    if b"__main__" in sent and not hasattr(sys.modules["__main__"], "__file__"):
        return "a class of it is defined in this notebook or shell, not in a file"
    return None


def check_unchanged(places: Sequence[Path], data: ImageData | Tasks) -> None:
    """Raise ValueError if a finished run in ``places``, one for each task, is on other images than ``data``."""
    datasets = [data] if isinstance(data, ImageData) else data.data.values()
    for place, dataset in zip(places, datasets, strict=True):
        if load_runs(place)[0].config.get("data") != dataset.fingerprint:
            raise ValueError(
                f"{place} has a finished run on other images than {dataset.name} holds now: restore them, give another out, "
                "or resume=False (--resume false) to start the runs over"
            )


def directory_name(config: RunConfig) -> str:
    """``lora-rank-4-seed0-1a2b3c4d``: readable, and different for different configurations."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)}
    values |= {"strategy": config.strategy.to_dict(), "limit": config.most}
    if not config.is_demo:
        values["img_size"] = config.size
    if config.augmentation is None:  # the data decides
        del values["augmentation"]
    else:
        values["augmentation"] = read_augmentation(config.augmentation).to_dict()
    if config.sources:
        sources = {name: vars(source) | {"limit": source.most} for name, source in config.sources.items()}
        values = {
            name: value for name, value in values.items() if name not in SourceConfig.__dataclass_fields__
        }
        values["data"] = [*sources.items()]  # in their order
    absent = (
        "columns",
        "skip_bad",
        "train_domains",
        "attack_elsewhere",
        "task_weights",
        "task_batch_sizes",
        "reuse",
        "confirm",
    )
    for name in absent:  # as before there were these
        if not values.get(name):
            values.pop(name, None)
    if config.confirm is not None:
        values["confirm"] = repr(config.confirming)
    if config.objective is None:  # of train_steps
        del values["objective"]
    if config.balance == "none":
        del values["balance"]
    if config.engine != "compiled":  # the others give the same numbers
        del values["engine"]
    text = json.dumps(values, sort_keys=True, default=repr)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{config.slug}-seed{config.seed}-{digest}"


def announce(out: Path, configs: Sequence[RunConfig]) -> None:
    """``sweep.json`` names the runs of all sweeps in ``out``, for those who watch: also runs that have not begun."""
    file = out / "sweep.json"
    try:
        runs = dict(read_json(file)["runs"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # it serves those who watch alone
        runs = {}
    for config in configs:
        for place in config.places(directory_name(config)):
            runs[place.as_posix()] = {
                "strategy": repr(config.strategy).removesuffix("()"),
                "seed": config.seed,
            }
    disk.write_json(file, {"runs": runs})


_messages: "Queue[Any] | None" = None


def _levels() -> dict[str, int]:
    """The levels that were set, of the root logger under the empty name."""
    known = {"": logging.getLogger()} | logging.Logger.manager.loggerDict
    return {name: log.level for name, log in known.items() if isinstance(log, logging.Logger) and log.level}


def _start(messages: "Queue[Any]", threads: int, levels: dict[str, int]) -> None:
    global _messages
    _messages = messages
    # As a script that configures them on import has left them.
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers, logger.propagate = [], True
    logging.getLogger().handlers = [QueueHandler(messages)]
    logging.getLogger("paretune.attacks.copy").setLevel(logging.INFO)  # precision and engine, and why
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    torch.set_num_threads(threads)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("paretune.data.files").setLevel(logging.ERROR)  # the sweep has said what it leaves out
    # A sweep that is killed takes its workers along; the runs go on from their checkpoints next time.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _run(config: RunConfig, path: Path, resume: bool, sinks: Sequence[Openable], diverging: bool) -> None:
    def report(status: Status) -> None:
        if _messages is not None:
            _messages.put((path.name, status))

    _made(config, path, resume, report, sinks, diverging)
    if _messages is not None:
        _messages.put((path.name, None))


def _made(
    config: RunConfig,
    path: Path,
    resume: bool,
    progress: bool | Callable[[Status], None],
    sinks: Sequence[Openable],
    diverging: bool,
) -> None:
    try:
        config.run(path, resume=resume, progress=progress, sinks=sinks)
    except TrainingDiverged as error:
        if not diverging:
            raise
        log.info("%s: %s", path.name, error)


@contextlib.contextmanager
def _shown(messages: "Queue[Any]", names: Sequence[str], *, enabled: bool) -> Iterator[None]:
    """One bar for the whole sweep and one for each run under way; and what the workers log."""
    stop = threading.Event()
    display = bars(enabled=enabled)

    def listen() -> None:
        with display:
            whole = display.add_task(f"{len(names)} runs", total=None, note="")
            tasks: dict[str, Any] = {}
            steps: dict[str, int] = {}
            total = finished = 0
            logged: set[tuple[str, int, str]] = set()
            while not (stop.is_set() and messages.empty()):
                try:
                    message = messages.get(timeout=0.2)
                except queue.Empty:
                    continue
                if isinstance(message, logging.LogRecord):
                    once = getattr(message, "once", False)  # whatever the numbers in it are
                    line = message.name, message.levelno, "" if once else message.getMessage()
                    if line not in logged:
                        logging.getLogger(message.name).handle(message)
                    logged.add(line)
                    continue
                name, status = message
                if status is None:
                    finished += 1
                    steps[name] = total or steps.get(name, 0)
                    if name in tasks:
                        display.update(tasks[name], visible=False)
                else:
                    if name not in tasks:
                        tasks[name] = display.add_task(name, total=status.total, note="")
                    total, steps[name] = status.total, status.step
                    display.update(tasks[name], completed=status.step)
                    if status.clean is not None:
                        display.update(tasks[name], note=str(status))
                if total:
                    display.update(whole, total=total * len(names), completed=sum(steps.values()))
                display.update(whole, note=f"{finished} done")

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)

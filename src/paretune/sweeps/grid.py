"""A grid of runs, wherever they are made."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from paretune.data.augmenting import read_augmentation
from paretune.data.images import ImageData
from paretune.runs import disk
from paretune.runs.lock import alone
from paretune.runs.objects import check_local
from paretune.runs.rows import read_json
from paretune.runs.sinks.base import SENT, Openable, backfill
from paretune.runs.storage import check_shared, settle, share, stored_at
from paretune.runs.store import Run, load_runs
from paretune.sweeps.announcing import data_lines
from paretune.sweeps.config import RunConfig
from paretune.sweeps.executors import Crew, Executor, Workers, read_executor
from paretune.sweeps.executors.base import check_workers
from paretune.sweeps.executors.cluster import only_driver
from paretune.sweeps.executors.job import Job, of_task, steps_done
from paretune.sweeps.sources import SourceConfig
from paretune.training.tasks import Tasks

log = logging.getLogger(__name__)


def run_all(
    configs: Sequence[RunConfig],
    out: str | Path,
    *,
    on: str | Executor = "local",
    workers: Workers = None,
    resume: bool = True,
    progress: bool = True,
    sinks: Sequence[Openable] = (),
    tell: Callable[[str], object] | None = None,
    diverging: bool = False,
) -> list[Run]:
    """Train every configuration in a run directory of its own below ``out``; finished runs are not repeated.

    Each worker is a process; which one takes which run changes no result. What workers log goes through the loggers of this
    process, lines that are alike once. Killed and called again, the runs go on from their last evaluation points, wherever
    they are made then.

    Args:
        configs: what to run.
        out: made if it does not exist. Machines that take runs must see it under this path, unless it is that of a URL, as
            :func:`~paretune.runs.storage.opened` has it.
        on: where the runs are made: ``"local"``, ``"ray"``, ``"ray:HOST:PORT"``, ``"slurm"``, or one of
            :mod:`paretune.sweeps.executors` with its options, as a value or as a text.
        workers: runs at once. None takes one a core here (one in all if there is a GPU), and elsewhere what there is place
            for, never more than runs; ``"auto"`` as many as memory here has place for, which is measured first.
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
        RuntimeError: a worker ended abruptly; elsewhere, several of one run in a row.
        ImportError, ConnectionError: ``on`` needs a package, or nothing answers there.
        BlockingIOError: another process hands out runs in ``out``, or is at work in one of them.
        OSError: what was trained cannot be sent to the URL; it stays here, and the same call sends it.
        Exception: whatever a run raised; runs that were going on finish first, waiting ones are not started.
    """
    out, executor = Path(out), read_executor(on)
    check_workers(workers)
    check_local("out", out)
    paths = [out / directory_name(config) for config in configs]
    if len(set(paths)) < len(paths):
        raise ValueError("two of the configurations are the same")
    places = {path: config.places(path) for config, path in zip(configs, paths, strict=True)}
    if resume:
        settle(paths)
    finished = {path for path in paths if resume and all((place / "DONE").exists() for place in places[path])}
    tasks: dict[RunConfig, list[tuple[RunConfig, Path]]] = {}
    for config, path in zip(configs, paths, strict=True):
        tasks.setdefault(of_task(config), []).append((config, path))
    run_places = [place for path in paths for place in places[path]]
    with contextlib.ExitStack() as held:
        left = any(path not in finished for path in paths)
        if left and executor.far:
            held.enter_context(only_driver(out))
        crew = held.enter_context(executor.crew(workers, configs)) if left else None
        for task, runs in tasks.items():
            _check(task, runs, finished, places, crew=crew, resume=resume, tell=tell)
        for path in finished:
            for place in places[path]:
                backfill(place, sinks)
                if (place / SENT).exists():
                    share(place / SENT)
        if crew is not None:
            with alone(out, patience=60):
                announce(out, configs)
            jobs = [
                Job(
                    config=config,
                    path=path,
                    stored=stored_at(path),
                    resume=resume,
                    sinks=sinks,
                    diverging=diverging,
                )
                for config, path in zip(configs, paths, strict=True)
                if path not in finished
            ]
            if jobs[0].stays_here() is None:
                check_shared(jobs[0].stored)
            crew.make(jobs, names=[path.name for path in paths], progress=progress)
            settle(job.path for job in jobs)
    return [load_runs(place)[0] for place in run_places]


def _check(
    task: RunConfig,
    runs: Sequence[tuple[RunConfig, Path]],
    finished: set[Path],
    places: Mapping[Path, Sequence[Path]],
    *,
    crew: Crew | None,
    resume: bool,
    tell: Callable[[str], object] | None,
) -> None:
    """Refuse what is wrong with the runs of one task, and say what ``crew`` is about to do."""
    left = [(config, path) for config, path in runs if path not in finished]
    try:
        data = task.check()  # a wrong name is an error here and now, not in every worker
    except (ValueError, OSError) as error:
        if left:
            raise
        log.warning("whether the data of finished runs has changed since is not known: %s", error)
        return
    for path in finished.intersection(path for _, path in runs):
        check_unchanged(places[path], data)
    if tell is not None and left and crew is not None:
        for line in data_lines(data, task):
            tell(line)
        done = [(config, steps_done(path, places[path]) if resume else 0.0) for config, path in left]
        # Jobs that a killed command has left behind may end at any time.
        if begun := [(config, int(steps)) for config, steps in done if math.isfinite(steps)]:
            tell(crew.line(begun, data))


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
    share(file)

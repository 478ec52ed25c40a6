"""One run to make, wherever that is."""

import contextlib
import dataclasses
import logging
import math
import pickle
import queue
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch

from paretune.data.images import ImageData
from paretune.runs.forgetting import forget
from paretune.runs.lock import alone
from paretune.runs.progress import Status
from paretune.runs.rows import TASKS, read_config, read_stated, run_key
from paretune.runs.sinks.base import Openable
from paretune.runs.stored import Stored, sending
from paretune.strategies import LinearProbe
from paretune.sweeps.config import RunConfig
from paretune.training.guards import TrainingDiverged
from paretune.training.optimizers import AdamW
from paretune.training.tasks import Tasks

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for which a run waits for another process to leave its directory


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A run, and its directory.

    Args:
        config: of the run.
        path: its directory.
        stored: where that is sent, if it is.
        resume: go on with what is there.
        sinks: who else receives the rows.
        diverging: whether a run that diverges is no error.
    """

    config: RunConfig
    path: Path
    stored: Stored | None = None
    resume: bool = True
    sinks: Sequence[Openable] = ()
    diverging: bool = False

    @property
    def places(self) -> list[Path]:
        """The run directory of each task, of one task ``path`` itself."""
        return self.config.places(self.path)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all((place / "DONE").exists() for place in self.places)

    def make(self, progress: bool | Callable[[Status], None], data: ImageData | Tasks | None = None) -> None:
        """Make the run here and now, on ``data`` that is loaded already, if any."""
        with contextlib.ExitStack() as entered:
            sinks = list(self.sinks)
            if self.stored is not None:  # last, so that what other sinks have received is sent too
                sinks.append(entered.enter_context(sending(self.stored, resume=self.resume)))
            try:
                self.config.run(self.path, data=data, resume=self.resume, progress=progress, sinks=sinks)
            except TrainingDiverged as error:
                if not self.diverging:
                    raise
                log.info("%s: %s", self.path.name, error)

    def here(self) -> "Job":
        """The same on this machine, which may keep what is sent in another directory than the one that it comes from."""
        return self if self.stored is None else dataclasses.replace(self, path=self.stored.path)

    def fetch(self) -> None:
        """Make the directory what other machines have sent."""
        if self.stored is not None:
            self.stored.fetch()

    def forget(self) -> None:
        """Remove what there is of the run, but for its configuration."""
        if self.stored is not None:
            self.stored.forget()
        with alone(self.path):
            for place in dict.fromkeys((self.path, *self.places)):
                if (place / "config.json").exists() or (place / TASKS).exists():
                    forget(place)

    def in_use(self) -> bool:
        """Whether a process is at work in the directory, as its lock tells, or another machine on what is sent."""
        if self.stored is not None and self.stored.at_work() is not None:
            return True
        if not self.path.exists():
            return False
        try:
            with alone(self.path):
                return False
        except BlockingIOError:
            return True

    def glance(self) -> None:
        """Fetch what tells how far another machine is; of several tasks with the first."""
        if self.stored is not None:
            first = self.places[0].relative_to(self.path)
            of_first = [(first / name).as_posix() for name in ("config.json", "points.jsonl")]
            self.stored.glance([TASKS, *of_first, "log.jsonl"])

    def stays_here(self) -> str | None:
        """Why it cannot be sent to another process; None if it can."""
        try:
            sent = bytes(ForkingPickler.dumps(self.config))
        except Exception as error:  # whatever somebody's class raises
            return f"{type(error).__name__}: {error}"
        if b"__main__" in sent and not hasattr(sys.modules["__main__"], "__file__"):
            return "a class of it is defined in this notebook or shell, not in a file"
        return None


def of_task(config: RunConfig) -> RunConfig:
    """What all runs of the task of ``config`` share: those for which it is the same load the same data."""
    return dataclasses.replace(config, strategy=LinearProbe(), seed=0, optimizer=AdamW())


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


@dataclass(frozen=True)
class Outcome:
    """What came of a job that was made elsewhere.

    Args:
        records: what it logged.
        error: what it raised.
    """

    records: list[logging.LogRecord]
    error: Exception | None = None


def remotely(job: Job, threads: int, levels: Mapping[str, int]) -> Outcome:
    """Make the run of ``job`` in this process, which serves for that alone.

    Args:
        job: the run.
        threads: to use.
        levels: of the loggers, by their names.
    """
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.getLogger().handlers = [QueueHandler(records)]
    set_levels(levels)
    torch.set_num_threads(threads)
    error = None
    try:
        job = job.here()
        with alone(job.path, patience=PATIENCE):
            pass
        job.make(progress=False)
    except Exception as raised:  # whatever it is, it is the driver's to raise
        error = _sent(raised)
    return Outcome([records.get() for _ in range(records.qsize())], error)


def set_levels(levels: Mapping[str, int]) -> None:
    """Log in this process, which makes runs, what the one that sent it here would."""
    logging.getLogger("paretune.attacks.copy").setLevel(logging.INFO)  # precision and engine, and why
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("paretune.data.files").setLevel(logging.ERROR)  # the sweep has said what it leaves out


def _sent(error: Exception) -> Exception:
    """``error`` as it can be sent, with where it was raised."""
    text = "".join(traceback.format_exception(error))
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        pickle.loads(pickle.dumps(error))  # somebody's class may take other arguments than it keeps
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"It was raised in the process of the run:\n{text}")
    return error

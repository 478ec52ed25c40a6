"""Runs on the processes of this machine."""

import contextlib
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import wait as wait_for
from typing import TYPE_CHECKING, Any

import torch

from paretune.data.images import ImageData
from paretune.runs.progress import Status
from paretune.sweeps.config import RunConfig
from paretune.sweeps.executors.base import Crew, Executor, Workers, check_workers
from paretune.sweeps.executors.display import levels, shown
from paretune.sweeps.executors.job import Job, of_task, set_levels
from paretune.sweeps.executors.packing import cores, fitting, peak_bytes, visible_devices
from paretune.training.tasks import Tasks

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Local(Executor):
    """The processes of this machine, each with its share of the cores; what cannot be sent to them is run here, one by one.

    Of several GPUs each process sees one.

    Where there is a GPU and neither ``gpus_per_run`` nor a number of workers is given, there is one run at once.
    """

    @property
    def far(self) -> bool:
        """No: the processes end with this one."""
        return False

    @contextlib.contextmanager
    def crew(self, workers: Workers, configs: Sequence[RunConfig]) -> Iterator[Crew]:
        """As many processes as are asked for, or as there is place for."""
        check_workers(workers)
        devices = visible_devices()
        if self.gpus_per_run is not None and not devices:
            raise ValueError(f"gpus_per_run={self.gpus_per_run:g}, but no GPU is visible here; leave it out")
        asked = workers if isinstance(workers, int) else None
        if workers == "auto" and self.gpus_per_run is None:
            peak, one = peak_bytes(configs)
            workers, devices = fitting(peak, len(configs))
            where = f"GPUs {', '.join(devices)}" if devices else f"{cores()} cores"
            log.info("workers=auto: %d at once on %s, as %r takes %.2g GB", workers, where, one, peak / 1e9)
        elif self.gpus_per_run is not None:
            on_each = max(1, int(1 / self.gpus_per_run + 1e-9))
            devices = [device for _ in range(on_each) for device in devices]
            workers = len(devices) if asked is None else asked
            if workers > len(devices):
                raise ValueError(
                    f"workers={workers}, but gpus_per_run={self.gpus_per_run:g} has place for {len(devices)} on the GPUs"
                )
        assert workers != "auto"
        workers, threads = shares(workers, len(configs))
        yield _Processes(workers, threads, asked, devices)


def shares(workers: int | None, runs: int) -> tuple[int, int]:
    """How many processes share this many ``runs``, and the threads of each; ``workers`` is that of ``run_all``.

    A process has its share of the cores, but never more threads than torch has here, which ``OMP_NUM_THREADS`` decides.
    """
    check_workers(workers)
    if workers is None:
        workers = 1 if torch.cuda.is_available() else cores()
    workers = min(workers, runs)
    return workers, max(1, min(cores() // workers, torch.get_num_threads()))


class _Processes(Crew):
    """Processes that end with this one.

    Args:
        workers: how many.
        threads: of each.
        asked: how many were asked for.
        devices: names of GPUs, which the processes take in turn.
    """

    def __init__(self, workers: int, threads: int, asked: int | None, devices: Sequence[str]) -> None:
        super().__init__(workers, threads)
        self.asked, self.devices = asked, devices

    def make(self, jobs: Sequence[Job], *, names: Sequence[str], progress: bool) -> None:
        """In a pool; what cannot be sent there, here."""
        if (reason := jobs[0].stays_here()) is not None:
            if self.asked is not None and self.asked > 1:
                raise ValueError(
                    f"workers={self.asked}, but the data or the model cannot be sent to them: {reason}; give workers=1"
                )
            log.info("the runs are made in this process, one by one: %s", reason)
            for job in jobs:
                job.make(progress)
            return
        spawn = multiprocessing.get_context(
            "spawn"
        )  # fork would copy torch's thread pools in an unusable state
        messages: Queue[Any] = spawn.Queue()
        devices: Queue[str] = spawn.Queue()
        for number in range(self.workers if self.devices else 0):
            devices.put(self.devices[number % len(self.devices)])
        taken = devices if self.devices else None
        with (
            shown(messages, names, finished=len(names) - len(jobs), enabled=progress),
            ProcessPoolExecutor(
                self.workers,
                mp_context=spawn,
                initializer=_start,
                initargs=(messages, taken, self.threads, levels()),
            ) as pool,
        ):
            futures = [pool.submit(_make, job) for job in jobs]
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            for future in done:
                try:
                    future.result()
                except BrokenProcessPool:
                    raise RuntimeError(
                        f"one of {self.workers} worker processes ended abruptly: it was killed, or the memory ran out. Give "
                        "the same call again and the runs go on from their last evaluation points; fewer workers "
                        "(workers=1, --workers 1) take less memory"
                    ) from None


_messages: "Queue[Any] | None" = None
_loaded: tuple[RunConfig, ImageData | Tasks] | None = None  # of this process, which ends with the sweep


def _start(messages: "Queue[Any]", devices: "Queue[str] | None", threads: int, known: dict[str, int]) -> None:
    global _messages
    _messages = messages
    if devices is not None:  # before CUDA is asked for anything
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    # As a script that configures them on import has left them.
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers, logger.propagate = [], True
    logging.getLogger().handlers = [QueueHandler(messages)]
    set_levels(known)
    torch.set_num_threads(threads)
    # A sweep that is killed takes its workers along; the runs go on from their checkpoints next time.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _make(job: Job) -> None:
    def report(status: Status) -> None:
        if _messages is not None:
            _messages.put((job.path.name, status))

    global _loaded
    task = of_task(job.config)
    if _loaded is None or _loaded[0] != task:
        _loaded = None  # before the next is loaded
        _loaded = task, task.load_data()
    job.make(report, _loaded[1])
    if _messages is not None:
        _messages.put((job.path.name, None))

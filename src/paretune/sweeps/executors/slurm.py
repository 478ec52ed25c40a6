"""Runs as jobs of Slurm, through submitit; a job that is preempted, or whose hours have ended, is queued again."""

import contextlib
import importlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paretune._values import check_choices, check_whole
from paretune.data.images import ImageData
from paretune.sweeps.config import RunConfig
from paretune.sweeps.executors.base import Crew, Executor, Workers, check_workers
from paretune.sweeps.executors.cluster import Distant, Lost, needing
from paretune.sweeps.executors.display import levels
from paretune.sweeps.executors.job import Job, Outcome, remotely
from paretune.sweeps.executors.packing import cores
from paretune.training.tasks import Tasks

_NAME = "paretune"
_FOLDER = ".slurm"
_ARRAY = 1000
_TIMES = 100  # that a run may use its hours up; each time it goes on from its last evaluation point
_WARNING = 120  # seconds before the end of its hours at which a job is told


@dataclass(frozen=True, kw_only=True)
class Slurm(Executor):
    """Job arrays of Slurm, one run a job. The machines see the directory of the runs, and this process's, under one path.

    Where this process is killed its jobs go on; the same call again waits for those at work, and queues the others.

    Args:
        partition: to queue in; None is the cluster's own.
        account: to charge.
        hours: of one job. A run may take longer: it is queued again, and goes on from its last evaluation point.
        cpus_per_run: cores that a run takes, and its threads.
        memory_gb: of a job; None is the cluster's own.
        retries: how often in a row a run may lose its job without coming further.
        cluster: local runs the jobs as processes of this machine, to try things out.
    """

    partition: str | None = None
    account: str | None = None
    hours: float = 4.0
    cpus_per_run: int = 1
    memory_gb: float | None = None
    retries: int = 3
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        check_whole("cpus_per_run", self.cpus_per_run, 1)
        check_whole("retries", self.retries, 0)
        if self.gpus_per_run not in (None, 1):
            raise ValueError(
                f"Slurm gives whole GPUs: gpus_per_run must be 1 or None, got {self.gpus_per_run:g}"
            )
        for name in ("hours", "memory_gb"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}")

    @contextlib.contextmanager
    def crew(self, workers: Workers, configs: Sequence[RunConfig]) -> Iterator[Crew]:
        """So many jobs are in the queue or at work at once: ``workers``, or as many as an array may have."""
        check_workers(workers)
        if workers == "auto":
            raise ValueError("workers='auto' measures this machine; give Slurm a number, or leave it out")
        submitit = needing("on='slurm'", "slurm", lambda: importlib.import_module("submitit"))
        yield _Queue(submitit, self, workers)

    def parameters(self) -> dict[str, Any]:
        """What submitit calls these."""
        stated = {
            "name": _NAME,
            "timeout_min": math.ceil(60 * self.hours),
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": self.cpus_per_run,
            "mem_gb": self.memory_gb,
            "gpus_per_node": self.gpus_per_run and int(self.gpus_per_run),
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_signal_delay_s": _WARNING,
        }
        return {name: value for name, value in stated.items() if value is not None}


class _Task:
    """A job as submitit calls it."""

    def __init__(self, job: Job, threads: int, known: Mapping[str, int]) -> None:
        self.job, self.threads, self.known = job, threads, known

    def __call__(self) -> Outcome:
        """Make the run."""
        return remotely(self.job, self.threads, self.known)

    def checkpoint(self) -> Any:
        """What to queue when the job is about to be ended: the same again, which goes on from what the run has kept."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Queue(Distant):
    """Jobs of Slurm.

    Args:
        submitit: the package.
        executor: what jobs take.
        workers: how many there are at once; None for as many as an array may have.
    """

    def __init__(self, submitit: Any, executor: Slurm, workers: int | None) -> None:
        self.submitit, self.executor = submitit, executor
        super().__init__(workers, executor.cpus_per_run, executor.retries)

    def line(self, begun: Sequence[tuple[RunConfig, int]], data: ImageData | Tasks) -> str:
        """How many runs there are; how long that takes is not known."""
        return (
            f"{len(begun)} run{'s' if len(begun) > 1 else ''} of {begun[0][0].steps(data):,} steps, each a job of Slurm, "
            f"{min(self.workers, len(begun))} of them queued at once"
        )

    def places(self) -> int:
        """As many as an array may have by the default of Slurm; without its queue, one a core."""
        return cores() if self.executor.cluster == "local" else _ARRAY

    def make(self, jobs: Sequence[Job], *, names: Sequence[str], progress: bool) -> None:
        """Queue and take back; what submitit keeps of the jobs, with what they print, stays where one fails."""
        super().make(jobs, names=names, progress=progress)
        shutil.rmtree(jobs[0].path.parent / _FOLDER, ignore_errors=True)

    def hand_out(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """An array of jobs, whose files are beside the runs."""
        folder = jobs[0].path.parent / _FOLDER / "%j"
        queue = self.submitit.AutoExecutor(
            folder=folder, cluster=self.executor.cluster, slurm_max_num_timeout=_TIMES
        )
        queue.update_parameters(**self.executor.parameters())
        tasks = [_Task(job, self.threads, levels()) for job in jobs]
        handles: list[Any] = queue.submit_array(tasks)
        return handles

    def ended(self, handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Jobs that have a result, or that Slurm no longer knows as queued or at work."""
        end = time.monotonic() + seconds
        while not (done := [handle for handle in handles if handle.done()]) and time.monotonic() < end:
            time.sleep(seconds / 4)
        return done

    def outcome(self, handle: Any) -> Outcome:
        """What the job returned."""
        utils = importlib.import_module("submitit.core.utils")
        try:
            outcome: Outcome = handle.result()
        except utils.UncompletedJobError as error:
            raise Lost(str(error)) from None
        except utils.FailedJobError as error:
            raise RuntimeError(f"a machine of the cluster cannot make runs: {error}") from None
        return outcome

    def withdraw(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Jobs that wait in the queue."""
        waiting = [handle for handle in handles if handle.state == "PENDING"]
        for handle in waiting:
            handle.cancel()
        return waiting

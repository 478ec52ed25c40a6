"""Runs on a Ray cluster, which finds the place for each and says when it is lost; what is kept of them is in their
directories alone, so that they go on from there.

Moritz et al. 2018, Ray: A Distributed Framework for Emerging AI Applications (https://arxiv.org/abs/1712.05889).
"""

import contextlib
import importlib
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paretune._values import check_whole
from paretune.data.images import ImageData
from paretune.sweeps.config import RunConfig
from paretune.sweeps.executors.base import Crew, Executor, Workers, check_workers
from paretune.sweeps.executors.cluster import Distant, Lost, needing
from paretune.sweeps.executors.display import levels
from paretune.sweeps.executors.job import Job, Outcome, remotely
from paretune.training.tasks import Tasks

ANSWER = 20.0  # seconds that an address has to answer


@dataclass(frozen=True, kw_only=True)
class Ray(Executor):
    """A Ray cluster whose machines see the directory of the runs under the same path, unless that is a URL.

    Where ``gpus_per_run`` is None, a run takes a GPU of its own if the cluster has any.

    Args:
        address: HOST:PORT of the head, or auto for the cluster that this machine belongs to. None starts one of this
            machine alone, which ends with the sweep. A cluster that this process is connected to already is used as it is.
        cpus_per_run: cores that a run takes, and its threads.
        retries: how often in a row a run may lose its worker without coming further.
    """

    address: str | None = None
    cpus_per_run: int = 1
    retries: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("cpus_per_run", self.cpus_per_run, 1)
        check_whole("retries", self.retries, 0)

    @contextlib.contextmanager
    def crew(self, workers: Workers, configs: Sequence[RunConfig]) -> Iterator[Crew]:
        """Connected; how many runs there are at once follows from what the cluster has, unless ``workers`` says it."""
        check_workers(workers)
        if workers == "auto":
            raise ValueError(
                "workers='auto' measures this machine; on Ray leave workers out, which takes what the cluster has, and give "
                "gpus_per_run (--gpus-per-run)"
            )
        ray = needing("on='ray'", "ray", lambda: importlib.import_module("ray"))
        connected = ray.is_initialized()
        if not connected:
            if self.address is not None:
                check_answers(self.address)
            alone = {} if self.address is not None else {"include_dashboard": False}
            ray.init(
                address=self.address or "local", logging_level=logging.WARNING, log_to_driver=False, **alone
            )
        try:
            yield _Cluster(ray, self, workers)
        finally:
            if not connected:
                ray.shutdown()


def check_answers(address: str) -> None:
    """Connect to ``address`` from a process that can be ended, as a client of Ray waits for minutes, and then exits.

    Raises:
        ConnectionError: nothing answers there in ``ANSWER`` seconds, or not as Ray of this version does.
    """
    connect = "import sys, ray; ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)"
    hint = (
        "check the address and that the cluster runs (ray status), or leave it out to use this machine alone"
    )
    try:
        tried = subprocess.run(
            [sys.executable, "-c", connect, address],
            timeout=ANSWER,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConnectionError(
            f"no Ray cluster answers at {address} within {ANSWER:g} seconds; {hint}"
        ) from None
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ConnectionError(f"no Ray cluster can be reached at {address} ({said}); {hint}")


class _Cluster(Distant):
    """The machines of a cluster.

    Args:
        ray: the package, connected.
        executor: what runs take.
        workers: how many runs at once, at most; None for what there is place for.
    """

    def __init__(self, ray: Any, executor: Ray, workers: int | None) -> None:
        self.ray, self.cpus = ray, executor.cpus_per_run
        has_gpus = any(node["Resources"].get("GPU") for node in self._nodes())
        self.gpus = executor.gpus_per_run or float(has_gpus)
        if not self.places():
            wanted = f"{self.cpus} cores" + (f" and {self.gpus:g} GPU" if self.gpus else "")
            raise ValueError(
                f"no machine of the Ray cluster has {wanted} for a run; give a smaller cpus_per_run or gpus_per_run"
            )
        super().__init__(workers, executor.cpus_per_run, executor.retries)
        self.task = ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )(remotely)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def line(self, begun: Sequence[tuple[RunConfig, int]], data: ImageData | Tasks) -> str:
        """How many runs there are, and what makes them; how long that takes is not known."""
        nodes = self._nodes()
        cpus, gpus = (sum(node["Resources"].get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
        machines = f"{len(nodes)} machine{'s' if len(nodes) > 1 else ''}"
        return (
            f"{len(begun)} run{'s' if len(begun) > 1 else ''} of {begun[0][0].steps(data):,} steps, "
            f"{min(self.workers, len(begun))} at once, on a Ray cluster of {machines}, {cpus:g} cores and {gpus:g} GPUs"
        )

    def places(self) -> int:
        """Of each machine as many as its cores and GPUs suffice for."""
        places = 0
        for node in self._nodes():
            rooms = [node["Resources"].get("CPU", 0.0) / self.cpus]
            if gpus := self.gpus:
                rooms.append(node["Resources"].get("GPU", 0.0) * math.floor(1 / gpus + 1e-9))
            places += int(min(rooms))
        return places

    def hand_out(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """A task of the cluster for each."""
        return [self.task.remote(job, self.threads, levels()) for job in jobs]

    def ended(self, handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Tasks that have."""
        self.ray.wait(list(handles), num_returns=1, timeout=seconds)
        ready, _ = self.ray.wait(list(handles), num_returns=len(handles), timeout=0)
        ended: list[Any] = ready
        return ended

    def outcome(self, handle: Any) -> Outcome:
        """What the task returned."""
        errors = self.ray.exceptions
        try:
            outcome: Outcome = self.ray.get(handle)
        except errors.RayTaskError as error:
            raise RuntimeError(
                f"a machine of the cluster cannot make runs: {error.cause}. It needs the same versions of Python, paretune "
                "and of your own modules as this one"
            ) from None
        except (errors.RaySystemError, errors.RuntimeEnvSetupError):
            raise
        except errors.RayError as error:
            raise Lost(str(error)) from None
        return outcome

"""What makes runs, as a value."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from paretune._values import Value, check_whole
from paretune.data.images import ImageData
from paretune.sweeps.announcing import time_line
from paretune.sweeps.config import RunConfig
from paretune.sweeps.executors.job import Job
from paretune.training.tasks import Tasks

Workers = int | Literal["auto"] | None


class Crew(ABC):
    """What makes the runs of one sweep while it lasts.

    Args:
        workers: how many runs there are at once, at most.
        threads: of each.
    """

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads

    def line(self, begun: Sequence[tuple[RunConfig, int]], data: ImageData | Tasks) -> str:
        """What to say before the runs of one task begin.

        Args:
            begun: runs that are left, and how many steps of each are done.
            data: what they train on.
        """
        return time_line(begun, data, workers=min(self.workers, len(begun)), threads=self.threads)

    @abstractmethod
    def make(self, jobs: Sequence[Job], *, names: Sequence[str], progress: bool) -> None:
        """Make the runs of ``jobs``; those of other ``names`` are finished already.

        Raises:
            Exception: the first that a run raised; runs that were going on finish first, waiting ones are not started.
        """


@dataclass(frozen=True, kw_only=True)
class Executor(Value, ABC):
    """Where runs are made.

    Args:
        gpus_per_run: share of one GPU that a run takes: 0.5 puts two runs on each. What None does each executor says.
    """

    gpus_per_run: float | None = None

    def __post_init__(self) -> None:
        if self.gpus_per_run is not None and not 0 < self.gpus_per_run <= 1:
            raise ValueError(
                "gpus_per_run is the share of one GPU that a run takes, above 0 and at most 1; got "
                f"{self.gpus_per_run}"
            )

    @property
    def far(self) -> bool:
        """Whether the runs are made by processes that this one did not start, and may outlive it."""
        return True

    @abstractmethod
    def crew(self, workers: Workers, configs: Sequence[RunConfig]) -> AbstractContextManager[Crew]:
        """Connect, for the runs of ``configs``.

        Raises:
            ValueError: ``workers`` is out of range, or there is no place that suits a run.
            ImportError: a package is missing; the message has the line that installs it.
            OSError: nothing answers.
        """


def check_workers(workers: Workers) -> None:
    """Raise ValueError unless ``workers`` is None, ``"auto"`` or a whole number from 1 on."""
    if workers is not None and workers != "auto":
        if isinstance(workers, int) and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        check_whole("workers", workers, 1, hint="; or 'auto'")

"""Where the runs of a sweep are made: in this process, on the processes of this machine, on a Ray cluster, or by Slurm."""

from paretune.sweeps.executors.base import Crew, Executor, Workers
from paretune.sweeps.executors.job import Job
from paretune.sweeps.executors.reading import EXECUTORS, read_executor

__all__ = ["EXECUTORS", "Crew", "Executor", "Job", "Workers", "read_executor"]

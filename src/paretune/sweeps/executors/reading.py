"""Texts that name where runs are made."""

from dataclasses import replace

from paretune._values import parse, shown, told
from paretune.sweeps.executors.base import Executor
from paretune.sweeps.executors.local import Local
from paretune.sweeps.executors.ray import Ray
from paretune.sweeps.executors.slurm import Slurm

EXECUTORS: dict[str, type[Executor]] = {"Local": Local, "Ray": Ray, "Slurm": Slurm}


def read_executor(on: "str | Executor", *, gpus_per_run: float | None = None) -> Executor:
    """``"local"``, ``"ray"``, ``"ray:10.0.0.1:6379"``, ``"slurm"``, or a call such as ``"Slurm(hours=8)"``.

    Args:
        on: where; after ``ray:`` comes the address of a cluster.
        gpus_per_run: share of one GPU that a run takes, in the place of that of ``on``.

    Raises:
        ValueError: it names nothing of these, or an option is out of range.
    """
    executor = on if isinstance(on, Executor) else _read(on)
    if gpus_per_run is None:
        return executor
    return replace(executor, gpus_per_run=gpus_per_run)


def _read(text: str) -> Executor:
    name, colon, address = text.partition(":")
    if colon and name.strip().lower() == "ray":
        if not address.strip():
            raise ValueError(
                f"on={shown(text)} has no address after its colon; give one, such as ray:10.0.0.1:6379"
            )
        return Ray(address=address.strip())
    with told("on", text):
        executor: Executor = parse(text, EXECUTORS)
    return executor

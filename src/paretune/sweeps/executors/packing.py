"""How many runs fit at once, by the memory that a run takes."""

import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from paretune.strategies import Strategy
from paretune.sweeps.config import RunConfig
from paretune.sweeps.costs import measured

log = logging.getLogger(__name__)

_USED = 0.9  # of the memory that is free: runs grow a little beyond the steps that were measured
_CONTEXT = (
    600 << 20
)  # bytes of a process on a GPU beside its tensors: CUDA's context and the kernels that are loaded


def cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def free_bytes() -> list[int]:
    """Memory of each of them that nobody uses now."""
    return [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]


def packed(peak: int, free: Sequence[int], runs: int) -> list[int]:
    """The device of each of the workers that fit: as many runs as memory allows, spread evenly.

    A device that is too small for a run is left out, unless all are: then each takes one run, which may learn its batches
    in more parts.

    Args:
        peak: bytes that a run takes on a device.
        free: bytes of each device.
        runs: how many there are.
    """
    room = [int(_USED * bytes_free // peak) for bytes_free in free]
    if not any(room):
        log.warning(
            "a run takes %.3g GB, and the largest GPU has %.3g GB free: each takes one, in more parts where memory ends",
            *(peak / 1e9, max(free) / 1e9),
        )
        room = [1] * len(free)
    turns = [device for turn in range(max(room)) for device in range(len(free)) if turn < room[device]]
    return turns[:runs]


def fitting(peak: int, runs: int) -> tuple[int, list[str]]:
    """How many runs of ``peak`` bytes memory has place for at once here, at least one, and the GPU of each if there are any.

    On a CPU there is no more than one run a core.
    """
    if devices := visible_devices():
        chosen = packed(peak, free_bytes(), runs)
        return len(chosen), [devices[number] for number in chosen]
    return max(1, min(cores(), runs, int(_USED * available_bytes() // peak))), []


def available_bytes() -> int:
    """Memory that this machine has free, or what the control group of this process leaves of it."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(text.partition("MemAvailable:")[2].split()[0]) << 10
    except (OSError, ValueError, IndexError):  # no Linux
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 33
    try:
        group = Path("/sys/fs/cgroup")
        most, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        return min(free, int(most) - int(used))
    except (OSError, ValueError):  # no group, or "max"
        return free


def peak_bytes(configs: Sequence[RunConfig]) -> tuple[int, Strategy]:
    """The largest memory that a run takes, and its strategy, from a few steps of each strategy in a process of its own."""
    by_strategy = {config.strategy: config for config in configs}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        peaks = list(pool.map(_peak, by_strategy.values()))
    return max(zip(peaks, by_strategy, strict=True), key=lambda pair: pair[0])


def _peak(config: RunConfig) -> int:
    cost = measured(config, config.load_data())
    return cost.peak_memory_bytes + (_CONTEXT if torch.cuda.is_available() else 0)

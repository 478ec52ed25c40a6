"""Time frontiers and comparisons, and append a row for each to ``benchmarks/pareto.csv``.

    OMP_NUM_THREADS=1 python benchmarks/pareto.py

Seconds are processor time, which a shared machine inflates less than the clock; only the comparison has the
clock's too. The comparison reads run directories from disk: 7 strategies of 100 checkpoints, 10 000 report and 2 500 select
examples, 10 000 resamples; its memory is the peak of the process that does nothing else.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from _record import append, machine
from paretune.frontiers.pareto import area, frontier
from paretune.runs.store import RunWriter

HERE = Path(__file__).parent
STRATEGIES, CHECKPOINTS, EXAMPLES, EXAMPLES_SELECT, RESAMPLES = 7, 100, 10_000, 2_500, 10_000

COMPARE = """
import resource, sys, time
from paretune.frontiers.comparing import compare
started, spent = time.perf_counter(), time.process_time()
compare(sys.argv[1], resamples=int(sys.argv[2]))
print(time.perf_counter() - started, time.process_time() - spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def timed(repeats: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call of each function, in turns, after one round that does not count."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, spent in zip(functions, seconds, strict=True):
            started = time.process_time()
            function()
            spent.append(time.process_time() - started)
    return [spent[1:] for spent in seconds]


def along_a_curve(points: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Clean and robust accuracies of a trade-off with noise."""
    progress = rng.random(points)
    clean = 0.95 - 0.3 * progress**2 - 0.02 * rng.random(points)
    return np.column_stack([clean, 0.05 + 0.5 * np.sqrt(progress) - 0.02 * rng.random(points)])


def write_runs(root: Path) -> None:
    """Run directories with the bits of every checkpoint."""
    rng = np.random.default_rng(0)
    sizes = {"report": EXAMPLES, "select": EXAMPLES_SELECT}
    hardness = {split: rng.random(size) for split, size in sizes.items()}
    progress = np.arange(1, CHECKPOINTS + 1) / CHECKPOINTS
    for number in range(STRATEGIES):
        name = f"S{number}"
        config = {"task": "benchmark", "strategy": name, "strategy_config": f"{name}()", "seed": 0}
        writer = RunWriter(root / name, config)
        for step, share in enumerate(progress):
            bits = {}
            for split, hard in hardness.items():
                own = 0.1 * rng.random((2, len(hard)))
                clean = hard + own[0] < 1.0 - 0.2 * share**2
                bits[f"{split}/clean"] = clean
                bits[f"{split}/robust"] = clean & (hard + own[1] < 0.1 + 0.5 * np.sqrt(share) + 0.01 * number)
            writer.append(
                {
                    "step": step,
                    "epoch": float(step),
                    "attack": "PGD()",
                    "threat": "Linf",
                    "epsilon": 4 / 255,
                    "clean": bits["report/clean"].mean(),
                    "robust": bits["report/robust"].mean(),
                    "clean_select": bits["select/clean"].mean(),
                    "robust_select": bits["select/robust"].mean(),
                    "examples": EXAMPLES,
                    "examples_select": EXAMPLES_SELECT,
                    "report_id": "report",
                    "select_id": "select",
                    "bits_key": "robust",
                    "trainable_parameters": 1000 * (number + 1),
                    "train_seconds": 1.0,
                    "cpu_seconds": 1.0,
                    "peak_memory_bytes": 1,
                    "precision": "float32",
                    "versions": {},
                },
                bits,
            )
        writer.finish({})


def comparison(repeats: int) -> tuple[list[float], list[float], int]:
    """Seconds by the clock and of the processor, and peak memory, of a comparison in its own process."""
    wall, seconds, peaks = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        write_runs(Path(directory))
        for _ in range(repeats):
            done = subprocess.run(
                [sys.executable, "-c", COMPARE, directory, str(RESAMPLES)],
                check=True,
                capture_output=True,
                text=True,
            )
            clock, spent, peak = done.stdout.split()
            wall.append(float(clock))
            seconds.append(float(spent))
            peaks.append(int(peak))
    return wall, seconds, max(peaks)


def main() -> None:
    """Measure everything, append the rows."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []

    def add(what: str, points: int, seconds: list[float], peak: int = 0) -> None:
        rows.append(
            {
                "what": what,
                "points": points,
                "seconds_median": f"{median(seconds):.6f}",
                "seconds_lowest": f"{min(seconds):.6f}",
                "seconds_highest": f"{max(seconds):.6f}",
                "repeats": len(seconds),
                "peak_memory_bytes": peak or "",
            }
        )
        print(rows[-1])

    for shape, points in (("uniform", rng.random((10**6, 2))), ("curve", along_a_curve(10**6, rng))):
        two = points
        by_area, by_front = timed(5, lambda two=two: area(*two.T), lambda two=two: frontier(two))
        add(f"area, {shape}", len(two), by_area)
        add(f"frontier, {shape}", len(two), by_front)
    wall, spent, peak = comparison(3)
    add(f"compare, {RESAMPLES} resamples", STRATEGIES * CHECKPOINTS, spent, peak=peak)
    add(f"compare, {RESAMPLES} resamples, by the clock", STRATEGIES * CHECKPOINTS, wall, peak=peak)

    for row in rows:
        append(
            HERE / "pareto.csv",
            {**machine("numpy"), "threads": os.environ.get("OMP_NUM_THREADS", "")} | row,
        )


if __name__ == "__main__":
    main()

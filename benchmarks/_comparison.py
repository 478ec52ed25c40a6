"""Time one ``paretune compare`` in a fresh directory and process, and append a row for each strategy.

Seconds are wall time of the whole command, start of the interpreter and report included.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _record import append, machine

HERE = Path(__file__).parent


def measure(name: str, *options: str) -> None:
    """Run ``paretune compare OPTIONS``, append its areas to ``benchmarks/NAME.csv``, draw ``benchmarks/NAME.png``."""
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        done = subprocess.run(
            ["paretune", "compare", *options], cwd=directory, check=True, stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - started
        print(done.stdout)
        from paretune.frontiers.comparing import compare

        runs = Path(directory) / "paretune-runs"
        (condition,) = compare(runs).conditions
        (HERE / f"{name}.png").write_bytes((runs / "report.png").read_bytes())
    # Of the largest process: each worker holds one run.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    shared = {
        **machine(),
        "seconds": round(seconds, 1),
        "peak_memory_bytes_of_largest_process": peak,
        "attack": condition.attack,
        "examples": condition.examples,
    }
    path = HERE / f"{name}.csv"
    for each in condition.areas:
        found = {
            "strategy": each.strategy,
            "area": round(each.area, 4),
            "low": round(each.low, 4),
            "high": round(each.high, 4),
            "per_seed": " ".join(f"{value:.4f}" for value in each.per_seed),
            "best_clean": round(each.best_clean, 4),
            "best_robust": round(each.best_robust, 4),
            "trainable_parameters": each.trainable_parameters,
            "train_seconds": round(each.train_seconds, 1),
        }
        append(path, shared | found)
    print(f"{seconds:.0f} s, rows in {path}", file=sys.stderr)

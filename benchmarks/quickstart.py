"""Time ``paretune compare`` without arguments, in a fresh directory and process, and append a row for each strategy.

    python benchmarks/quickstart.py            # writes benchmarks/quickstart.csv and its figure

Seconds are wall time of the whole command, start of the interpreter and report included.
"""

import csv
import datetime
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def main() -> None:
    """Run, measure, append."""
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        done = subprocess.run(
            ["paretune", "compare"], cwd=directory, check=True, stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - started
        print(done.stdout)
        from paretune.stats import compare

        runs = Path(directory) / "paretune-runs"
        (condition,) = compare(runs).conditions
        (HERE.parent / "docs").mkdir(exist_ok=True)
        (HERE.parent / "docs/quickstart.png").write_bytes((runs / "report.png").read_bytes())
    # Of the largest process: each worker holds one run.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    shared = {
        "date": datetime.date.today().isoformat(),
        "paretune": version("paretune"),
        "torch": version("torch"),
        "timm": version("timm"),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": round(seconds, 1),
        "peak_memory_bytes_of_largest_process": peak,
        "attack": condition.attack,
        "examples": condition.examples,
    }
    path = HERE / "quickstart.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        fields = [*shared, "strategy", "area", "low", "high", "per_seed", "best_clean", "best_robust"]
        writer = csv.DictWriter(file, [*fields, "trainable_parameters", "train_seconds"])
        if new:
            writer.writeheader()
        for each in condition.areas:
            writer.writerow(
                shared
                | {
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
            )
    print(f"{seconds:.0f} s, rows in {path}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Plan the demo's strategies with one seed, run them, and compare minutes and memory.

python benchmarks/plan.py            # appends to benchmarks/plan.csv

The minutes of a run are those between its first and its last file; what its worker loads before is not in them. The last row
is the whole sweep, the start of its workers included. The load of the machine is what others took of it.
"""

import os
import tempfile
import time
from pathlib import Path

from _record import append, machine
from paretune.sweeps.config import CompareConfig, Seeds
from paretune.sweeps.grid import run_all
from paretune.sweeps.planning import plan

if __name__ == "__main__":
    config = CompareConfig(seeds=Seeds((0,)))
    with tempfile.TemporaryDirectory() as directory:
        planned, load = plan(config, directory), os.getloadavg()[0]
        started = time.perf_counter()
        runs = run_all(config.runs(), directory)
        seconds = time.perf_counter() - started
        shared = machine() | {"workers": planned.workers, "load_before": round(load, 1)}
        shared |= {"load_after": round(os.getloadavg()[0], 1)}
        file = Path(__file__).with_suffix(".csv")
        for each, run in zip(planned.strategies, runs, strict=True):
            took = (run.path / "DONE").stat().st_mtime - (run.path / "config.json").stat().st_mtime
            row = {
                "strategy": each.strategy,
                "planned_minutes": round(each.runs[0].seconds / 60, 2),
                "taken_minutes": round(took / 60, 2),
                "planned_peak_memory_bytes": each.cost.peak_memory_bytes,
                "peak_memory_bytes": int(run.points["peak_memory_bytes"].max()),
            }
            append(file, shared | row)
        row = dict.fromkeys(row, "") | {"strategy": "all"}
        row |= {"planned_minutes": round(planned.seconds / 60, 2), "taken_minutes": round(seconds / 60, 2)}
        append(file, shared | row)
    print(file.read_text())

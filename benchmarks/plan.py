"""Plan the demo's strategies with one seed, run them, and compare minutes and memory.

python benchmarks/plan.py            # appends to benchmarks/plan.csv
python benchmarks/plan.py --cpu      # one run after the other in this process, by its CPU time: others do not count
python benchmarks/plan.py --cpu LoRA # of one strategy

By the wall clock the minutes of a run are those between its first and its last file; what its worker loads before is not in
them. The row "all" is the whole sweep, the start of its workers included. Where the load of the machine grows after the
plan, the sweep takes longer than that says.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from _record import append, machine
from paretune.sweeps import costs
from paretune.sweeps.config import CompareConfig, Seeds, Strategies
from paretune.sweeps.grid import run_all
from paretune.sweeps.planning import plan

FILE = Path(__file__).with_suffix(".csv")


def by_wall_clock(config: CompareConfig, directory: str, shared: dict[str, Any]) -> None:
    """What ``paretune plan`` says, and what ``paretune compare`` takes."""
    planned, before = plan(config, directory), os.getloadavg()[0]
    shared = shared | {"clock": "wall", "workers": planned.workers}
    started = time.perf_counter()
    runs = run_all(config.runs(), directory)
    seconds = time.perf_counter() - started
    shared["load"] = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
    for each, run in zip(planned.strategies, runs, strict=True):
        took = (run.path / "DONE").stat().st_mtime - (run.path / "config.json").stat().st_mtime
        peak = int(run.points["peak_memory_bytes"].max())
        record(shared, each.strategy, each.runs[0].seconds, took, each.cost.peak_memory_bytes, peak)
    record(shared, "all", planned.seconds, seconds)


def by_cpu_time(config: CompareConfig, directory: str, shared: dict[str, Any]) -> None:
    """The same estimate and the same run, each by the CPU time of one thread."""
    torch.set_num_threads(1)
    costs.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    for run in config.runs():
        data = run.load_data()
        cost = costs.measured(run, data)
        began = time.process_time()
        run.run(Path(directory) / repr(run.strategy), progress=False)
        took = time.process_time() - began
        planned = cost.seconds(costs.Work.of(run, data))
        shared = shared | {"clock": "cpu", "workers": 1, "load": f"{os.getloadavg()[0]:.1f}"}
        record(shared, repr(run.strategy), planned, took)


def record(
    shared: dict[str, Any], strategy: str, planned: float, took: float, planned_peak: Any = "", peak: Any = ""
) -> None:
    """Append and print a row."""
    row = {
        "strategy": strategy,
        "planned_minutes": round(planned / 60, 2),
        "taken_minutes": round(took / 60, 2),
    }
    row |= {"planned_peak_memory_bytes": planned_peak, "peak_memory_bytes": peak}
    append(FILE, shared | row)
    print(row, flush=True)


if __name__ == "__main__":
    named = {"strategies": Strategies.read(sys.argv[2])} if sys.argv[2:] else {}
    measure = by_cpu_time if "--cpu" in sys.argv[1:2] else by_wall_clock
    with tempfile.TemporaryDirectory() as place:
        measure(CompareConfig(seeds=Seeds((0,)), **named), place, machine())

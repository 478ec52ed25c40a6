"""Train the study, cell by cell, and keep the rows of each cell that is whole in results/.

python benchmarks/study/run.py --runs DIR [--tasks digits] [--emoji NODE_MODULES] [--workers 2]
python benchmarks/study/run.py --runs DIR --set-aside   # keep what is finished of cells that are not whole
python benchmarks/study/run.py --cells         # which cells there are, and which of them results/ has

Killed, it goes on where it stopped; on another machine, with the runs in results/ and those that were set aside.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from _cells import cells, read_study, write_solar_cells

from _record import machine


def main() -> None:
    """Make what is missing."""
    study = read_study()
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--runs", type=Path, help="directory of the run directories")
    options.add_argument("--tasks", nargs="+", choices=study["tasks"], default=list(study["tasks"]))
    options.add_argument("--emoji", help="directory of the emoji packages; none for node_modules here")
    options.add_argument("--workers", type=int, default=1, help="runs at once")
    options.add_argument("--set-aside", action="store_true", help="train nothing")
    options.add_argument("--cells", action="store_true", help="only list them")
    chosen = options.parse_args()
    if chosen.runs is None and not chosen.cells:
        options.error("give --runs")
    logging.basicConfig(level=logging.WARNING)
    wanted = [
        cell for cell in cells(study, chosen.runs or Path(), emoji=chosen.emoji) if cell.task in chosen.tasks
    ]
    if not chosen.cells and "solar-cells" in chosen.tasks:
        chosen.runs.mkdir(parents=True, exist_ok=True)
        write_solar_cells(chosen.runs / study["tasks"]["solar-cells"]["data"])
    for cell in wanted:
        if chosen.set_aside and not cell.file.exists():
            cell.set_aside(chosen.runs, machine())
        elif not cell.file.exists() and not chosen.cells:
            cell.keep(chosen.runs, cell.make(chosen.runs, chosen.workers), machine())
        state = "whole" if cell.file.exists() else "begun" if cell.unfinished.exists() else "missing"
        print(f"{cell.name:60} {state}", flush=True)


if __name__ == "__main__":
    main()

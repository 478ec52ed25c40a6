"""CPU time of ``paretune compare`` in two checkouts of this repository, in turns.

python benchmarks/releases.py ../before .    # appends to benchmarks/releases.csv
python benchmarks/releases.py ../before . --rounds 5 --options "--epochs 2 --seeds 0"

The task is the embedded default, on one thread in one process, because CPU time of one thread is steadier than wall time.
"""

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _record import append, machine


def seconds(checkout: Path, options: list[str]) -> float:
    """CPU time of one comparison with the code of ``checkout``, its workers included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "paretune", "compare", "--workers", "1", *options]
        subprocess.run(command, cwd=scratch, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def revision(checkout: Path) -> str:
    """The commit of ``checkout``."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="--epochs 2 --seeds 0", help="of paretune compare")
    arguments = parser.parse_args()
    options = shlex.split(arguments.options)
    checkouts = [checkout.resolve() for checkout in arguments.checkouts]
    times: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    for _ in range(arguments.rounds):
        for checkout in checkouts:
            times[checkout].append(seconds(checkout, options))
            print(revision(checkout), f"{times[checkout][-1]:.1f} s", flush=True)
    for checkout in checkouts:
        row = {"revision": revision(checkout), "options": arguments.options, "rounds": arguments.rounds}
        spread = " ".join(f"{each:.1f}" for each in times[checkout])
        cpu = {"cpu_seconds": f"{statistics.median(times[checkout]):.1f}", "each": spread}
        append(Path(__file__).with_suffix(".csv"), machine() | row | cpu)

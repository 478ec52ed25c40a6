"""What benchmarks share: works timed in turns, and rows that say where they were measured."""

import csv
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import paretune

Work = Callable[[], object]


def machine(*packages: str) -> dict[str, str | int]:
    """Date, versions of paretune, torch, timm and ``packages``, processor, its matrix units, and cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in fields.get("flags", "").split()]
    return {
        "date": datetime.date.today().isoformat(),
        "paretune": paretune.__version__,
        **{name: version_of(name) for name in ("torch", "timm", *packages)},
        "python": platform.python_version(),
        "processor": fields.get("model name", platform.processor()),
        "units": " ".join(units) or "none",
        "cores": len(os.sched_getaffinity(0)),
    }


def version_of(package: str) -> str:
    """Of an installed package, or that it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def append(path: Path, row: dict[str, Any]) -> None:
    """Add ``row`` to the CSV file at ``path``; a new file gets its header first, an old one must have this header."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
            file.flush()
        check_columns(path, list(row))
        writer.writerow(row)


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse a CSV file whose header is another."""
    with path.open(newline="") as file:
        if next(csv.reader(file), None) != [*columns]:
            raise ValueError(f"{path} has other columns; move it away to start anew")


class Recorder:
    """Appends rows that have the same columns, whatever the section, and prints them.

    Args:
        path: of the CSV file.
        columns: after ``section``, ``work`` and ``implementation``; those that a row lacks stay empty.
        packages: as for :func:`machine`.
    """

    def __init__(self, path: Path, columns: Sequence[str], *packages: str) -> None:
        self.path = path
        self.columns = columns
        self.shared = machine(*packages)

    def check(self) -> None:
        """Refuse a file that these rows cannot be appended to."""
        if not self.path.parent.is_dir():
            raise ValueError(f"{self.path.parent} is no directory")
        if self.path.exists():
            check_columns(self.path, [*self.shared, "section", "work", "implementation", *self.columns])

    def row(self, section: str, work: str, implementation: str, **found: Any) -> None:
        """Append one row and print it."""
        columns = {"section": section, "work": work, "implementation": implementation}
        columns |= dict.fromkeys(self.columns, "")
        columns |= {
            key: f"{value:.5g}" if isinstance(value, float) else value for key, value in found.items()
        }
        append(self.path, self.shared | columns)
        print("  ".join(str(value) for value in columns.values() if value != ""), flush=True)


def in_turns(works: dict[str, Work], rounds: int, before: int = 0) -> dict[str, list[float]]:
    """CPU seconds of each work, one after the other, ``rounds`` times after one that does not count.

    Each timed call follows ``before`` calls of the same work that do not count. So it meets caches and a heap as this work
    leaves them, which is what a loop of it meets: after another work that has returned its memory to the system, the time
    of a short one is mostly that of getting memory again.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            for _ in range(before):
                work()
            began = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - began)
        print("." if number else "warm", end=" ", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return seconds

"""Rows of benchmarks: where they were measured, and appending them to their file."""

import csv
import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, str | int]:
    """Date, versions of paretune, torch, timm and ``packages``, processor, its matrix units, and cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in fields.get("flags", "").split()]
    return {
        "date": datetime.date.today().isoformat(),
        **{name: version(name) for name in ("paretune", "torch", "timm", *packages)},
        "python": platform.python_version(),
        "processor": fields.get("model name", platform.processor()),
        "units": " ".join(units) or "none",
        "cores": len(os.sched_getaffinity(0)),
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """Add ``row`` to the CSV file at ``path``; a new file gets its header first, an old one must have this header."""
    new = not path.exists()
    with path.open("a+", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        file.seek(0)
        if next(csv.reader(file)) != list(row):
            raise ValueError(f"{path} has other columns; move it away to start anew")
        writer.writerow(row)

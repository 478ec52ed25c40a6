"""A small sweep as a process that can be killed, and what its runs say."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch

from paretune.runs.store import load_runs

COMPARE = [
    "compare",
    "--backbone",
    "timm:test_resnet",
    "--img-size",
    "24",
    "--limit",
    "100",
    "--points",
    "10",
]
COMPARE += ["--eval-steps", "1", "--train-steps", "1", "--batch-size", "16", "--strategies", "bitfit,lora"]
COMPARE += ["--seeds", "0", "--epochs", "80"]
COST = ("train_seconds", "cpu_seconds", "attack_seconds", "peak_memory_bytes")
PATIENCE = 400  # seconds


def command(tmp_path: Path, out: str, *more: str) -> list[str]:
    weights = tmp_path / "w.pth"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), weights)
    out = str(tmp_path / out)
    return [sys.executable, "-m", "paretune", *COMPARE, "--weights", str(weights), "--out", out, *more]


@contextlib.contextmanager
def started(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(
    what: Callable[[], Any], process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> Any:
    """The first true value of ``what``, while ``process`` goes on."""
    end = time.monotonic() + PATIENCE
    while not (value := what()):
        said = log.read_text() if log is not None else ""
        assert process is None or process.poll() is None, f"ended by itself: {said}"
        assert time.monotonic() < end, said
        time.sleep(0.02)
    return value


def points(out: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in out.glob("*/points.jsonl"))


def assert_as_made_here(out: Path, tmp_path: Path) -> None:
    """The runs in ``out`` are whole, and those that processes of this machine make undisturbed."""
    done = subprocess.run(command(tmp_path, "here", "--workers", "2"), capture_output=True, check=False)
    assert done.returncode == 0
    assert rows(out) == rows(tmp_path / "here")
    assert all(len(lines) == 10 for _, lines, _, _ in rows(out).values())


def rows(out: Path) -> dict[str, Any]:
    """All that runs say, but for what it cost."""
    said = {}
    for run in load_runs(out):
        lines = [json.loads(line) for line in (run.path / "points.jsonl").read_text().splitlines()]
        said[run.path.name] = (
            run.done,
            [{name: value for name, value in line.items() if name not in COST} for line in lines],
            {file.name: file.read_bytes() for file in run.path.glob("bits/*")},
            (run.path / "adapter/adapter_model.safetensors").read_bytes(),
        )
    return said

"""A sweep on processes: killed, it leaves nobody behind, and given again it goes on."""

import math
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import timm
import torch

from paretune.runs.store import load_runs
from paretune.sweeps import grid
from tests.unit.commands.test_cli import weights  # noqa: F401  # a fixture
from tests.unit.training.test_points import small

COMPARE = ["compare", "--backbone", "timm:test_resnet", "--img-size", "32", "--limit", "120", "--points", "2"]
COMPARE += [
    "--eval-steps",
    "2",
    "--train-steps",
    "1",
    "--batch-size",
    "16",
    "--strategies",
    "bitfit,lora",
    "--workers",
    "2",
]


@pytest.mark.slow
def test_a_killed_sweep_takes_its_workers_along_and_goes_on_later(tmp_path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    command = [
        sys.executable,
        "-c",
        "import sys; from paretune.commands.cli import main; sys.exit(main())",
        *COMPARE,
    ]
    command += ["--weights", str(tmp_path / "w.pth"), "--out", str(tmp_path / "runs"), "--epochs", "40"]
    sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers: list[psutil.Process] = []
    while not list(tmp_path.glob("runs/*/config.json")):  # until a worker is at work
        assert sweep.poll() is None, "the sweep ended by itself"
        workers = psutil.Process(sweep.pid).children(recursive=True)
    sweep.kill()
    sweep.wait()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert workers
    assert not alive
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    assert all(run.done for run in load_runs(tmp_path / "runs"))
    assert len(load_runs(tmp_path / "runs")) == 4


@pytest.mark.slow
def test_a_run_that_ends_while_the_others_are_looked_at_is_not_counted(
    tmp_path: Path,
    weights: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs of Slurm outlive a command that is killed."""
    config, told = small(weights, points=1), list[str]()
    monkeypatch.setattr(grid, "steps_done", lambda *_: math.inf)
    (run,) = grid.run_all([config], tmp_path, workers=1, progress=False, tell=told.append)
    assert run.done
    assert not any("1 run" in line for line in told)

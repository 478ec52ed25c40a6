"""A sweep on processes: killed, it leaves nobody behind, and given again it goes on."""

import subprocess
import sys

import psutil
import pytest
import timm
import torch

from paretune.runs.store import load_runs

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

"""Jobs as Slurm would make them, on submitit's executor of this machine."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from paretune.runs.store import load_runs
from paretune.sweeps.executors import read_executor
from paretune.sweeps.executors.slurm import Slurm
from tests.sweeping import assert_as_made_here, command, points, started, until


def at_work(out: Path) -> list[psutil.Process]:
    """The processes that make runs below ``out``."""
    words = ("submitit.core._submit", str(out))
    there = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if all(word in line for word in words):
                there.append(process)
    return there


@pytest.mark.slow
def test_a_job_is_preempted_and_the_driver_killed_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    words = command(tmp_path, "slurm", "--on", "Slurm(cluster='local')", "--workers", "2")
    out, log = tmp_path / "slurm", tmp_path / "driver.log"
    with started(words, log) as driver:
        until(lambda: len(at_work(out)) == 2 and points(out) >= 2, driver, log)
        preempted = at_work(out)[0]
        preempted.send_signal(signal.SIGUSR2)
        psutil.wait_procs([preempted], timeout=60)
        until(lambda: len(at_work(out)) == 2, driver, log)  # queued again
        driver.kill()
    assert at_work(out)  # jobs outlive their driver
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert all(run.done for run in load_runs(out))
    assert not (out / ".slurm").exists()
    assert_as_made_here(out, tmp_path)


def test_options_are_those_of_a_job() -> None:
    queue = Slurm(partition="gpu", hours=1.5, cpus_per_run=8, memory_gb=32, gpus_per_run=1)
    assert repr(queue) == "Slurm(gpus_per_run=1, partition='gpu', hours=1.5, cpus_per_run=8, memory_gb=32)"
    assert read_executor(repr(queue)) == queue
    assert queue.parameters() == {
        "name": "paretune",
        "timeout_min": 90,
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": 8,
        "mem_gb": 32,
        "gpus_per_node": 1,
        "slurm_partition": "gpu",
        "slurm_signal_delay_s": 120,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_run": 0.5}, "Slurm gives whole GPUs: gpus_per_run must be 1 or None, got 0.5"),
        ({"hours": 0}, "hours must be finite and above 0, got 0"),
        ({"memory_gb": float("nan")}, "memory_gb must be finite and above 0"),
        ({"cpus_per_run": 0}, "cpus_per_run must be a whole number from 1"),
        ({"cluster": "pbs"}, "cluster must be 'slurm' or 'local', got 'pbs'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Slurm(**options)  # type: ignore[arg-type]


def test_submitit_that_is_not_installed_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"on='slurm' needs .* pip install 'paretune\[slurm\]'"):  # noqa: SIM117
        with Slurm().crew(None, []):
            pass

"""A Ray cluster of real processes: whatever of it is killed, the rows are those of a sweep on one machine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import timm
import torch

from paretune.runs.store import load_runs
from paretune.sweeps.executors import ray as module
from paretune.sweeps.executors.ray import Ray, check_answers

if not os.environ.get("PARETUNE_REQUIRE_RAY"):
    pytest.importorskip("ray")

COMPARE = [
    "compare",
    "--backbone",
    "timm:test_resnet",
    "--img-size",
    "24",
    "--limit",
    "100",
    "--points",
    "20",
]
COMPARE += ["--eval-steps", "1", "--train-steps", "1", "--batch-size", "16", "--strategies", "bitfit,lora"]
COMPARE += ["--seeds", "0", "--epochs", "150"]
COST = ("train_seconds", "cpu_seconds", "attack_seconds", "peak_memory_bytes")
PATIENCE = 240


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
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
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


def workers(cluster: Any) -> list[psutil.Process]:
    """The processes of this cluster that make a run now."""
    at_work = []
    for node in cluster.list_all_nodes():
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::remotely"):
                    at_work.append(process)
    return at_work


def points(out: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in out.glob("*/points.jsonl"))


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


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two machines of one core each, on this one."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, connect=False, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_worker_a_machine_and_the_driver_are_killed_and_nothing_is_lost_or_doubled(
    cluster: Any, tmp_path: Path
) -> None:
    words = command(tmp_path, "ray", "--on", f"ray:{cluster.address}")
    out, log = tmp_path / "ray", tmp_path / "driver.log"
    with started(words, log) as driver:
        until(lambda: len(workers(cluster)) == 2 and points(out) >= 2, driver, log)
        second = subprocess.run(words, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"{out / '.driver'} is in use by process {driver.pid}" in second.stderr
        lost = workers(cluster)[0]
        lost.kill()
        until(lambda: "has lost its worker" in log.read_text(), driver, log)
        (node,) = cluster.worker_nodes
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: log.read_text().count("has lost its worker") >= 2, driver, log)
        before = points(out)
        until(lambda: points(out) > before, driver, log)  # on the machine that is left
        left = workers(cluster)
        assert left
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE)
    assert not alive
    assert not all(run.done for run in load_runs(out))
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert not (out / ".driver").exists()
    here = subprocess.run(
        command(tmp_path, "here", "--workers", "2"),
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert here.returncode == 0
    assert rows(out) == rows(tmp_path / "here")
    assert all(len(lines) == 20 for _, lines, _, _ in rows(out).values())


def test_an_address_that_does_not_answer_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens there, and says nothing: a client of Ray would wait for two minutes."""
    monkeypatch.setattr(module, "ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            ConnectionError, match=rf"no Ray cluster answers at {address} within 1 seconds; check"
        ):
            check_answers(address)


@pytest.mark.slow
def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(
        ConnectionError, match=r"no Ray cluster can be reached at nonsense .*; check the address"
    ):
        check_answers("nonsense")


def test_ray_that_is_not_installed_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ImportError, match=r"on='ray' needs .* pip install 'paretune\[ray\]'"),
        Ray().crew(1, []),
    ):
        pass


def test_workers_by_the_memory_of_this_machine_are_refused_on_others() -> None:
    with pytest.raises(ValueError, match="workers='auto' measures this machine; on Ray leave workers out"):  # noqa: SIM117
        with Ray().crew("auto", []):
            pass

"""A Ray cluster of real processes: whatever of it is killed, the rows are those of a sweep on one machine."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from paretune.runs.store import load_runs
from paretune.sweeps.executors import ray as module
from paretune.sweeps.executors.ray import Ray, check_answers
from tests.sweeping import PATIENCE, assert_as_made_here, command, points, started, until


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


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two machines of one core each, on this one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
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
        lost, other = workers(cluster)
        for worker in (lost, other):  # which may be done before the second driver has begun
            worker.suspend()
        second = subprocess.run(words, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"{out / '.driver'} is in use by process {driver.pid}" in second.stderr
        lost.kill()
        until(lambda: "has lost its worker" in log.read_text(), driver, log)
        (node,) = cluster.worker_nodes
        # With the other run, or with what goes on in the place of the lost one.
        cluster.remove_node(node, allow_graceful=False)
        with contextlib.suppress(psutil.NoSuchProcess):
            other.resume()
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
    assert_as_made_here(out, tmp_path)


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

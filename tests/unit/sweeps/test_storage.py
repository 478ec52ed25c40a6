"""A sweep whose runs live at a URL is the sweep of a directory, whatever dies or is refused."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.commands.cli import main
from paretune.runs.holding import HOLDER
from paretune.runs.objects import Objects, check_local
from paretune.runs.storage import local_copy, opened
from paretune.runs.store import load_runs
from paretune.runs.stored import Sending
from paretune.sweeps.grid import run_all
from paretune.watch import watching
from tests import tiny
from tests.buckets import at, machine, memory, s3
from tests.sweeping import assert_as_made_here, command, rows, started, until
from tests.unit.sweeps.test_entry import FEW, own

TWO = ["LoRA(rank=2)", "BitFit()"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, tmp_path / "one")


@functools.cache
def backbone() -> pt.Backbone:
    """Of a class of this process, so that its runs are made here."""
    return own(10)


def sweep(out: str | Path, **options: Any) -> Any:
    few = FEW | {"points": 3} | options
    return pt.sweep(tiny.data(120), TWO, [0], backbone=backbone(), out=out, **few)


def test_the_rows_and_bits_are_those_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = memory()
    sweep(url)
    sweep(tmp_path / "path")
    expected = rows(tmp_path / "path")
    machine(monkeypatch, tmp_path / "two")
    assert rows(local_copy(url)) == expected
    assert {run.path.name for run in load_runs(url)} == {*expected}
    table = pt.load_points(url)
    assert len(table) == sum(len(lines) for _, lines, _, _ in expected.values())
    assert len(pt.compare(url).conditions) == 1
    assert json.loads(at(url)["sweep.json"])["runs"].keys() == {*expected}
    assert not [name for name in at(url) if name.split("/")[-1].startswith(".") or "checkpoint" in name]


def test_a_second_call_repeats_nothing_and_goes_on_with_what_a_dead_machine_has_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    url, send, count = memory(), Sending.send, 0

    def dying(sender: Sending, steps: Any) -> None:
        nonlocal count
        send(sender, steps)
        count += 1
        if count == 5:  # of six points of two runs
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Sending, "send", dying)
        with pytest.raises(Died):
            sweep(url)
    shutil.rmtree(tmp_path / "one")
    trained, learn = list[int](), pt.training.loop.gradients

    def counted(*arguments: Any, **options: Any) -> Any:
        trained.append(1)
        return learn(*arguments, **options)

    monkeypatch.setattr("paretune.training.loop.gradients", counted)
    sweep(url)
    undone, steps = len(trained), int(pt.load_points(url)["step"].max())
    assert 0 < undone < steps / 2  # after the second of three points of the second run
    sweep(url)
    assert len(trained) == undone
    sweep(tmp_path / "path")
    assert rows(local_copy(url)) == rows(tmp_path / "path")
    sweep(url, resume=False)
    assert len(trained) == undone + 4 * steps
    assert rows(local_copy(url)) == rows(tmp_path / "path")


def test_one_process_works_at_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = memory()
    with opened(url):
        with pytest.raises(BlockingIOError, match=f"out='{url}': .* is in use by process {os.getpid()}"):
            sweep(url)
        machine(monkeypatch, tmp_path / "two")
        with pytest.raises(
            BlockingIOError, match=f"out='{url}': {url} is in use by process {os.getpid()} on"
        ):
            sweep(url)
        assert at(url).keys() == {HOLDER}
    assert at(url) == {}


def test_a_race_and_a_search_live_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = memory()
    options = FEW | {"lr": "auto", "lr_trials": 3, "backbone": backbone()}
    done = pt.compare_until(tiny.data(120), TWO, [0, 1], out=url, **options)
    there = at(url)
    assert {"race.json", "lr-search/lr-search.json", "sweep.json", "lr-search/sweep.json"} <= there.keys()
    machine(monkeypatch, tmp_path / "two")
    monkeypatch.setattr("paretune.training.loop.gradients", None)  # nothing is trained again
    again = pt.compare_until(tiny.data(120), TWO, [0, 1], out=url, **options)
    assert again.conditions[0].race == done.conditions[0].race
    assert {name: there[name] for name in there if name.endswith("DONE")} == {
        name: content for name, content in at(url).items() if name.endswith("DONE")
    }
    assert len(load_runs(url)) == len(
        [name for name in there if name.endswith("DONE") and "lr-search" not in name]
    )


def test_a_store_that_cannot_be_written_is_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paretune.training.loop.gradients", None)

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", forbidden)
    with pytest.raises(
        PermissionError, match=r"memory://runs cannot be written \(PermissionError: Forbidden\); check"
    ):
        sweep("memory://runs")


@pytest.mark.parametrize(
    ("out", "missing", "error", "says"),
    [
        ("nope://x/y", "", ValueError, "nope://x/y is no URL that fsspec knows"),
        ("s3://bucket/runs", "s3fs", ImportError, "s3://bucket/runs needs a package that is missing"),
        ("s3://bucket/runs", "fsspec", ImportError, r"pip install 'paretune\[storage\]'"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(
    out: str, missing: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(error, match=says):
        sweep(out)


def test_the_memory_of_this_process_is_no_place_for_runs_of_others() -> None:
    with pytest.raises(ValueError, match=r"out='memory://shared' is in the memory of this process"):
        pt.sweep("digits", "BitFit", [0], out="memory://shared", img_size=16, limit=100, points=1, workers=1)
    assert not [name for name in at("memory://shared") if name.endswith("points.jsonl")]


def test_where_a_url_is_not_taken_it_is_refused(tmp_path: Path) -> None:
    for call in (
        lambda: tiny.run(Path("s3://bucket/run")),
        lambda: run_all([], "s3://bucket/run"),
        lambda: pt.write_report(tmp_path, "s3://bucket/report.html"),
        lambda: check_local("out", "s3://bucket"),
    ):
        with pytest.raises(ValueError, match=r"(out|path)='s3://bucket.*' is a URL, which paretune compare"):
            call()


def test_a_url_is_not_watched() -> None:
    with (
        pytest.raises(
            ValueError, match="directory='s3://bucket/runs' is a URL: watch the directory of this machine"
        ),
        watching("s3://bucket/runs"),
    ):
        pass


def test_what_is_not_there_is_named_by_its_url() -> None:
    with pytest.raises(FileNotFoundError, match="memory://none/runs has no run directory in it"):
        load_runs("memory://none/runs")


def small(tmp_path: Path, url: str, *more: str) -> list[str]:
    words = command(tmp_path, "unused", *more)
    words[words.index("--out") + 1] = url
    return words


@pytest.mark.slow
def test_a_plan_and_a_report_read_what_is_at_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, few = f"file://{tmp_path}/store", ("--epochs", "1", "--points", "1", "--strategies", "bitfit")
    words = small(tmp_path, url, *few, "--workers", "1")[3:]
    assert main(words) == 0
    assert f"report: {url}/report.html" in capsys.readouterr().out
    first = at(url)
    assert {"report.html", "report.svg", "areas.csv", "sweep.json"} <= first.keys()
    machine(monkeypatch, tmp_path / "two")
    assert main(["plan", *words[1:]]) == 0
    assert "all runs are finished" in capsys.readouterr().out
    assert main(["report", url, "--title", "Anew", "--tables", "true"]) == 0
    assert f"tables: {url}/tables.md" in capsys.readouterr().out
    assert b"Anew" in at(url)["report.html"]
    assert at(url).keys() == first.keys() | {"tables.md", "tables.tex"}


@pytest.mark.thorough
def test_of_processes_that_are_killed_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On S3, with a machine that is lost with its disk."""
    url = "s3://bucket/some/runs"
    words, log = small(tmp_path, url, "--workers", "2"), tmp_path / "log"
    with s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with started(words, log) as driver:
            until(lambda: lines(url) >= 4, driver, log)
            refused = subprocess.run(words, capture_output=True, text=True, check=False)
            assert refused.returncode == 2
            assert f"out='{url}'" in refused.stderr
            assert f"in use by process {driver.pid}" in refused.stderr
            driver.kill()
            driver.wait()
        shutil.rmtree(tmp_path / "one")
        machine(monkeypatch, tmp_path / "two")
        assert not all(run.done for run in load_runs(url))
        for name in [HOLDER, *(f"{run.path.name}/{HOLDER}" for run in load_runs(url))]:
            Objects(url).remove(name)  # as time does
        assert subprocess.run(words, capture_output=True, check=False).returncode == 0
        machine(monkeypatch, tmp_path / "three")
        assert_as_made_here(local_copy(url), tmp_path)
        unknown = subprocess.run(
            small(tmp_path, "s3://none/runs"), capture_output=True, text=True, check=False
        )
        assert unknown.returncode == 2
        assert (
            "s3://none/runs cannot be written (FileNotFoundError: The specified bucket does not exist)"
            in unknown.stderr
        )


@pytest.mark.slow
def test_machines_of_a_cluster_share_nothing_but_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/runs"
    with s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = subprocess.run(
            small(tmp_path, url, "--on", "ray"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        machine(monkeypatch, tmp_path / "two")
        assert_as_made_here(local_copy(url), tmp_path)


def lines(url: str) -> int:
    return sum(content.count(b"\n") for content in at(url, "points.jsonl").values())

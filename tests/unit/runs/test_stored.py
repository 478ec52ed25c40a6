"""A run that is sent while it is made: whenever a machine dies, another one ends it with the same rows, nothing doubled."""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.runs.holding import HOLDER
from paretune.runs.objects import Objects
from paretune.runs.rows import CHECKPOINT
from paretune.runs.store import load_runs
from paretune.runs.stored import Stored, sending
from paretune.sweeps.config import RunConfig
from paretune.sweeps.executors.job import Job
from tests import tiny, together
from tests.buckets import at, machine, memory
from tests.unit.training.test_loop import same_run


class Died(BaseException):
    """What no handler of errors sees."""


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stored:
    machine(monkeypatch, tmp_path / "one")
    return Stored(memory(), "run")


def make(stored: Stored, *, resume: bool = True) -> None:
    with sending(stored, resume=resume) as sink:
        tiny.run(stored.path, sinks=[sink], resume=resume)


def dying(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """The machine dies before its ``fatal``-th change of the store."""
    count = 0

    def fatally(change: Any) -> Any:
        def counting(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count >= fatal:
                raise Died
            return change(*arguments)

        return counting

    for name in ("put", "remove"):
        monkeypatch.setattr(Objects, name, fatally(getattr(Objects, name)))


def died(stored: Stored, fatal: int, **options: Any) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, fatal)
        try:
            make(stored, **options)
        except Died:
            return True
    return False


def whenever(
    stored: Stored, places: Iterable[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    """After a machine has died at each of these ``places``, another one ends the run as one that nothing disturbed."""
    tiny.run(tmp_path / "undisturbed")
    objects, before = Objects(stored.root), at(stored.root)
    for fatal in places:
        for cache in ("first", "reader", "next"):
            shutil.rmtree(tmp_path / cache, ignore_errors=True)
        for name in at(stored.root):
            objects.remove(name)
        for name, content in before.items():
            objects.write(name, content)
        machine(monkeypatch, tmp_path / "first")
        if not died(stored, fatal, **options):
            assert fatal > 20
            break
        stored.release()  # as time does
        machine(monkeypatch, tmp_path / "reader")
        if objects.names():
            load_runs(stored.root)  # finds no fault with it
        machine(monkeypatch, tmp_path / "next")
        make(stored)
        machine(monkeypatch, tmp_path / "reader")
        (run,) = load_runs(stored.root)
        assert run.done
        same_run(run.path, tmp_path / "undisturbed")
        assert f"run/{CHECKPOINT}" not in at(stored.root)


def test_a_machine_that_dies_loses_nothing(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whenever(stored, (1, 9, 14), tmp_path, monkeypatch)


@pytest.mark.slow
def test_whenever_a_machine_dies_nothing_is_lost(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whenever(stored, range(1, 100), tmp_path, monkeypatch)


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("finished", [False, True])
def test_nor_when_it_starts_a_run_over(
    stored: Stored, finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if finished:
        make(stored)
    else:
        assert died(stored, 12)
        stored.release()
    whenever(stored, range(1, 100), tmp_path, monkeypatch, resume=False)


def test_a_store_that_fails_in_the_middle_stops_nothing_and_the_next_call_sends_what_it_lacks(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put, count = Objects.put, 0

    def full(objects: Objects, path: Path, name: str) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(f"{objects.url} cannot be written (no space)")
        put(objects, path, name)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Objects, "put", full)
        with pytest.raises(
            OSError, match=rf"no space\). Nothing is lost: the run is in {stored.path}, and the same call"
        ):
            make(stored)
    assert "run: memory://" in caplog.text
    assert "The run goes on in" in caplog.text
    assert load_runs(stored.path)[0].done
    assert "run/DONE" not in at(stored.root)
    stored.fetch()  # which does not take away what is further here
    assert load_runs(stored.path)[0].done
    monkeypatch.setattr("paretune.training.loop.gradients", None)  # nothing is trained
    stored.settle()
    assert "run/DONE" in at(stored.root)
    here = stored.path
    machine(monkeypatch, tmp_path / "two")
    (copy,) = load_runs(stored.root)
    same_run(copy.path, here)


def test_what_was_removed_at_the_url_is_forgotten_here(stored: Stored) -> None:
    make(stored)
    objects = Objects(stored.root)
    for name in at(stored.root):
        objects.remove(name)
    stored.fetch()
    assert not stored.path.exists()
    assert load_runs(stored.path.with_name(".run.gone"))[0].done  # in case that was a mistake


def test_what_another_machine_has_made_further_takes_the_place_of_what_is_here(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert died(stored, 12)
    stored.release()
    machine(monkeypatch, tmp_path / "two")
    make(stored)
    machine(monkeypatch, tmp_path / "one")
    assert (stored.path / CHECKPOINT).exists()
    stored.fetch()
    assert not (stored.path / CHECKPOINT).exists()
    assert load_runs(stored.path)[0].done


def test_a_glance_takes_what_tells_how_far_another_machine_is_and_leaves_runs_of_this_one_alone(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert died(stored, 12)
    (stored.path / "log.jsonl").write_text("this one\n")
    stored.glance(["log.jsonl"])
    assert (stored.path / "log.jsonl").read_text() == "this one\n"
    machine(monkeypatch, tmp_path / "two")
    job = Job(config=RunConfig(strategy=pt.BitFit()), path=stored.path, stored=stored)
    job.glance()
    assert {file.name for file in stored.path.iterdir()} == {"config.json", "points.jsonl", "log.jsonl"}
    assert len((stored.path / "log.jsonl").read_text().splitlines()) >= 4


def test_two_machines_do_not_work_on_one_run(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sending(stored, resume=True):
        machine(monkeypatch, tmp_path / "two")
        assert stored.at_work() is not None
        with pytest.raises(BlockingIOError, match="/run is in use by process"), sending(stored, resume=True):
            pass
        stored.release()
        assert stored.at_work() is None


def test_who_was_taken_over_sends_no_more(stored: Stored) -> None:
    objects = Objects(stored.root)

    def work() -> None:
        with sending(stored, resume=True) as sink:
            told = json.loads(objects.read(f"run/{HOLDER}") or b"")
            objects.write(f"run/{HOLDER}", json.dumps(told | {"token": "another"}).encode())
            (stored.path / "config.json").write_text("{}")
            sink.send([])  # which the log has

    with pytest.raises(BlockingIOError, match="was taken over by process"):
        work()
    assert objects.names() == set()


def test_a_run_of_several_tasks_is_sent_as_a_whole(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sending(stored, resume=True) as sink:
        together.run(stored.path, sinks=[sink])
    machine(monkeypatch, tmp_path / "two")
    copies = load_runs(stored.root)
    assert len(copies) == 2
    assert all(run.done for run in copies)
    stored.fetch()
    assert {
        file.relative_to(stored.path).as_posix() for file in stored.path.rglob("*") if file.is_file()
    } == {name.removeprefix("run/") for name in at(stored.root)}

"""What is handed out, taken back, and handed out again, with machines that do what a test says."""

import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paretune.runs.holding import HOLDER
from paretune.runs.lock import alone
from paretune.runs.objects import Objects
from paretune.runs.progress import Status
from paretune.runs.stored import Stored
from paretune.sweeps.config import SearchConfig
from paretune.sweeps.executors import cluster
from paretune.sweeps.executors.cluster import Distant, Lost, only_driver
from paretune.sweeps.executors.job import Job, Outcome, remotely, steps_done
from paretune.sweeps.grid import directory_name, run_all
from paretune.sweeps.searching import with_rates
from paretune.training.guards import TrainingDiverged
from paretune.watch.progress import Watcher
from tests.buckets import machine, memory
from tests.unit.commands.test_cli import weights  # noqa: F401  # a fixture
from tests.unit.training.test_points import small


class Scripted(Distant):
    """Ends each run by the next of ``script``: an outcome, or what is raised; an empty script finishes it."""

    def __init__(
        self, script: dict[int, list[Outcome | Exception]], places: int = 1, retries: int = 2
    ) -> None:
        self.script, self.there, self.handed = script, places, list[int]()
        super().__init__(None, 1, retries)

    def places(self) -> int:
        return self.there

    def hand_out(self, jobs: Sequence[Job]) -> Sequence[Any]:
        first = len(self.handed)
        self.handed += [job.config.seed for job in jobs]
        return [(first + number, job.config.seed) for number, job in enumerate(jobs)]

    def ended(self, handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        return handles[:1]

    def outcome(self, handle: Any) -> Outcome:
        left = self.script.get(handle[1], [])
        came = left.pop(0) if left else Outcome([])
        if isinstance(came, Exception):
            raise came
        return came


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paretune.sweeps.executors.cluster._LOOK", 0.01)


def jobs(out: Path, count: int, **options: Any) -> list[Job]:
    configs = [small("w.pth", seed=seed) for seed in range(count)]
    return [Job(config=config, path=out / directory_name(config), **options) for config in configs]


def make(crew: Distant, made: list[Job]) -> None:
    crew.make(made, names=[job.path.name for job in made], progress=False)


def test_a_run_that_is_lost_is_handed_out_again_before_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crew = Scripted({0: [Lost("its node died. See the logs."), Lost("again")]})
    with caplog.at_level(logging.WARNING):
        make(crew, jobs(tmp_path, 2))
    assert crew.handed == [0, 0, 0, 1]
    assert "has lost its worker (its node died); it goes on from step 0 on another one" in caplog.text


def test_a_run_that_is_lost_without_coming_further_is_given_up(tmp_path: Path) -> None:
    crew = Scripted({0: [Lost("killed")] * 3})
    with pytest.raises(
        RuntimeError, match="has lost its worker 3 times in a row without coming further than step 0"
    ):
        make(crew, jobs(tmp_path, 2))
    assert crew.handed == [0, 0, 0]


def test_one_that_comes_further_each_time_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(100))
    monkeypatch.setattr("paretune.sweeps.executors.cluster.steps_done", lambda *_: next(steps))
    crew = Scripted({0: [Lost("killed")] * 7})
    make(crew, jobs(tmp_path, 1))
    assert crew.handed == [0] * 8


def test_the_first_error_is_raised_and_waiting_runs_are_not_started(tmp_path: Path) -> None:
    error = TrainingDiverged("step 3")
    crew = Scripted({1: [Outcome([], error)]}, places=2)
    with pytest.raises(TrainingDiverged, match="step 3") as raised:
        make(crew, jobs(tmp_path, 4))
    assert raised.value is error
    assert crew.handed == [0, 1, 2]  # 2 took the place of 0


def test_what_runs_log_goes_through_the_loggers_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = logging.LogRecord("paretune.some", logging.WARNING, "", 0, "said there", None, None)
    make(Scripted({0: [Outcome([record])], 1: [Outcome([record])]}), jobs(tmp_path, 2))
    assert caplog.messages == ["said there"]


def test_a_run_that_another_process_is_at_work_on_is_waited_for(tmp_path: Path) -> None:
    """A driver that was killed may have left it."""
    crew, made = Scripted({}, places=2), jobs(tmp_path, 2)
    with alone(made[0].path):
        thread = threading.Thread(target=make, args=(crew, made))
        thread.start()
        thread.join(timeout=1)
        assert thread.is_alive()
        assert crew.handed == [1]
    thread.join(timeout=60)
    assert crew.handed == [1, 0]


def test_one_that_began_elsewhere_meanwhile_is_waited_for_too(tmp_path: Path) -> None:
    crew = Scripted({0: [Outcome([], BlockingIOError("in use"))]})
    make(crew, jobs(tmp_path, 1))
    assert crew.handed == [0, 0]


def test_what_is_to_start_over_does_so_once(tmp_path: Path, weights: str) -> None:  # noqa: F811
    config = small(weights, points=2)
    job = Job(config=config, path=tmp_path / "run", resume=False)
    config.run(job.path, progress=False)
    seen = []

    class Looking(Scripted):
        def hand_out(self, jobs: Sequence[Job]) -> Sequence[Any]:
            seen.append((jobs[0].resume, steps_done(jobs[0].path, jobs[0].places)))
            return super().hand_out(jobs)

    make(Looking({0: [Lost("killed")]}), [job])
    assert seen == [(True, 0)] * 2


def test_there_is_one_driver_in_a_directory(tmp_path: Path) -> None:
    with only_driver(tmp_path):
        with pytest.raises(BlockingIOError, match=r"\.driver is in use by process"), only_driver(tmp_path):
            pass
        assert (tmp_path / ".driver").exists()
    assert not (tmp_path / ".driver").exists()


@pytest.fixture
def handlers() -> Any:
    kept = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers = kept


@pytest.mark.usefixtures("handlers")
def test_errors_and_lines_of_a_run_come_back_as_they_are(tmp_path: Path, weights: str) -> None:  # noqa: F811
    config = small(weights, points=1)
    outcome = remotely(Job(config=config, path=tmp_path / "run"), 1, {})
    assert outcome.error is None
    assert any("transfer failure" in record.getMessage() for record in outcome.records)
    other = small(weights, points=1, seed=1)
    refused = remotely(Job(config=other, path=tmp_path / "run"), 1, {})
    assert isinstance(refused.error, ValueError)
    assert "holds a run with another configuration" in str(refused.error)
    assert "Traceback" in refused.error.__notes__[0]


def test_of_a_run_at_a_url_that_is_lost_another_machine_may_go_on_at_once_from_what_was_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = small(weights, points=2)
    stored = Stored(memory(), "run")
    objects = Objects(stored.root)

    class Killed(BaseException):
        pass

    def killed(status: Status) -> None:
        if status.clean is not None:
            raise Killed

    machine(monkeypatch, tmp_path / "worker")
    with pytest.raises(Killed):
        Job(config=config, path=stored.path, stored=stored).make(killed)
    left = {"machine": "worker", "token": "", "host": "there", "process": 7, "time": time.time()}
    objects.write(f"run/{HOLDER}", json.dumps(left).encode())
    machine(monkeypatch, tmp_path / "driver")
    job = Job(config=config, path=stored.path, stored=stored)
    assert job.in_use()
    hand = cluster._Hand(job, Watcher(job.path), 0.0)
    again = Scripted({})._again(hand, Lost("killed"))
    assert isinstance(again, cluster._Hand)
    assert again.step > 0
    assert again.lost == 1
    assert not job.in_use()


@pytest.mark.parametrize("out", ["s3://bucket/runs", "memory://runs"])
def test_a_url_is_refused_below_the_front_door(out: str) -> None:
    with pytest.raises(ValueError, match=r"is a URL, which paretune compare, .*sweep and compare_until take"):
        run_all([small("w.pth")], out)
    with pytest.raises(ValueError, match="is a URL"):
        with_rates([small("w.pth")], SearchConfig(lr="auto"), out)

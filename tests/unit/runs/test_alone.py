"""Two processes never write in one directory; the second one is told who is there."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import paretune as pt
from paretune.runs.lock import alone
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import announce, directory_name
from tests import tiny
from tests.unit.evaluation.test_evaluation_state import PGD, split
from tests.unit.training.test_loop import ROOT, same_run

HOLD = """
import sys, time
from pathlib import Path
from paretune.runs.lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A process that is at work in ``run``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_a_second_process_is_refused_by_name_until_the_first_has_ended(tmp_path: Path, holder: Any) -> None:
    message = rf"run is in use by process {holder.pid} on .*choose another directory"
    with pytest.raises(BlockingIOError, match=message):
        tiny.run(tmp_path / "run")
    with pytest.raises(BlockingIOError, match=message):
        tiny.run(tmp_path / "run", resume=False)
    assert {each.name for each in (tmp_path / "run").iterdir()} == {".lock", ".lock-holder"}
    model, data = split()
    with pytest.raises(BlockingIOError, match=message):
        pt.evaluate(model, data, [PGD], state=tmp_path / "run")
    holder.kill()
    holder.wait()
    assert tiny.run(tmp_path / "run").done
    assert not list((tmp_path / "run").rglob(".*"))


def test_a_run_is_free_again_after_an_error(tmp_path: Path) -> None:
    def fail(status: Any) -> None:
        raise LookupError(status.step)

    with pytest.raises(LookupError) as kept:
        tiny.run(tmp_path / "run", progress=fail)
    assert tiny.run(tmp_path / "run").done
    assert kept.value.args == (1,)


def test_a_second_thread_is_refused_too(tmp_path: Path) -> None:
    seen: list[BaseException] = []

    def second(status: Any) -> None:
        def train() -> None:
            try:
                tiny.run(tmp_path / "run")
            except BaseException as error:
                seen.append(error)

        if status.step == 5:
            thread = threading.Thread(target=train)
            thread.start()
            thread.join()

    tiny.run(tmp_path / "run", progress=second)
    assert [type(error) for error in seen] == [BlockingIOError]
    same_run(tmp_path / "run", tiny.run(tmp_path / "alone").path)


def test_what_killed_processes_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "bits").mkdir(parents=True)
    (run / ".config.json.1.tmp").write_text("half")
    (run / "bits/.step-000004.safetensors.1.tmp").write_text("half")
    (run / ".adapter.abc.tmp").mkdir()
    (run / ".adapter.abc.tmp/adapter_model.safetensors").write_text("half")
    (run / ".lock-holder").write_text("process 1 on another machine")
    assert tiny.run(run).done
    assert not list(run.rglob(".*"))
    model, data = split()
    (tmp_path / "state").mkdir()
    (tmp_path / "state/.plan.json.1.tmp").write_text("half")
    pt.evaluate(model, data, [PGD], state=tmp_path / "state")
    assert not list((tmp_path / "state").glob(".*"))


def test_where_the_file_system_has_no_locks_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(tmp_path / "run"):
        pass
    assert "cannot be locked" in caplog.text
    assert "take care that no other process writes there" in caplog.text


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        tiny.run(tmp_path / "file")


@pytest.mark.slow
def test_of_several_that_start_at_once_one_trains_and_the_others_are_refused(tmp_path: Path) -> None:
    """And the run is whole."""
    code = "import sys; from pathlib import Path; from tests import tiny; tiny.run(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    alike = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the bits depend on the number
    racers = [
        subprocess.Popen(command, cwd=ROOT, env=alike, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    errors = [racer.communicate()[1] for racer in racers]
    for racer, error in zip(racers, errors, strict=True):
        assert racer.returncode == 0 or "BlockingIOError" in error.splitlines()[-1]
    assert any(racer.returncode == 0 for racer in racers)
    tiny.run(tmp_path / "whole")
    same_run(tmp_path / "run", tmp_path / "whole")


def test_sweeps_that_start_at_once_all_announce_their_runs(tmp_path: Path) -> None:
    """What was there before is kept; a damaged file, which serves those who watch alone, is made again."""
    (tmp_path / "sweep.json").write_text("{")
    configs = [RunConfig(seed=seed) for seed in range(8)]

    def begin(config: RunConfig) -> None:
        with alone(tmp_path, patience=60):
            announce(tmp_path, [config])

    threads = [threading.Thread(target=begin, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    announced = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert set(announced) == {directory_name(config) for config in configs}
    assert {each.name for each in tmp_path.iterdir()} == {"sweep.json"}

"""``--log-level`` decides what each command tells on standard error while it works."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paretune.commands.cli import TOLD, main

NAMES = ("paretune", *TOLD)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in NAMES}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_is_that_of_the_package(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--log-level", level]) == 0
    assert {logging.getLogger(name).level for name in NAMES} == {getattr(logging, level.upper())}
    assert main(["info"]) == 0  # the next call has its own
    assert [logging.getLogger(name).level for name in NAMES] == [logging.NOTSET, *[logging.INFO] * len(TOLD)]
    assert capsys.readouterr().err == ""


def test_another_level_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--log-level", "Debug"]) == 2
    assert "--log-level must be one of debug, info, warning, error" in capsys.readouterr().err


def test_it_may_come_from_a_file_and_is_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("log_level: warning\n")
    assert main(["info", "--config", str(tmp_path / "c.yaml")]) == 0
    assert logging.getLogger("paretune").level == logging.WARNING
    assert main(["info", "--loglevel", "debug"]) == 2
    assert "there is no option --loglevel; info takes --log-level" in capsys.readouterr().err


@pytest.mark.slow
def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    def complained(*more: str) -> str:
        command = [sys.executable, "-m", "paretune", "report", "nowhere", *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr

    assert complained().count("\n") == 1
    told = complained("--log-level", "debug")
    assert "Traceback (most recent call last)" in told
    assert told.splitlines()[-1] == complained().strip()


@pytest.mark.slow
def test_workers_of_a_sweep_listen_as_their_parent_does() -> None:
    started = (
        "import logging, queue; from paretune.sweeps.executors.local import _start\n"
        "_start(queue.Queue(), None, 1, {'': 40, 'paretune': 30, 'paretune.attacks.copy': 30})\n"
        "print(logging.getLogger('paretune.attacks.copy').level)"
    )
    done = subprocess.run([sys.executable, "-c", started], capture_output=True, text=True, check=True)
    assert done.stdout == "30\n"

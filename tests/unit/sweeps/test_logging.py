"""What workers log reaches the loggers of the process that started them."""

import logging
import queue
import re
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.runs.progress import Status
from paretune.sweeps.executors.display import levels, shown
from paretune.sweeps.grid import directory_name, run_all
from tests.unit.commands.test_cli import weights  # noqa: F401  # a fixture
from tests.unit.training.test_points import small


def lines(caplog: pytest.LogCaptureFixture, out: Path) -> set[tuple[str, int, str]]:
    """What paretune logged, without the directory and what tells processes apart."""
    found = {
        (
            record.name,
            record.levelno,
            re.sub(r"[\d.]+ ms", "MS", record.getMessage().replace(str(out), "OUT")),
        )
        for record in caplog.records
        if record.name.startswith("paretune")
    }
    caplog.clear()
    return found


@pytest.mark.thorough
def test_a_sweep_says_what_its_runs_would_say_here_alone(
    tmp_path: Path,
    weights: str,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "paretune")
    monkeypatch.setattr(logging.getLogger("paretune.backbones.weights"), "level", logging.ERROR)
    configs = [
        small(weights, points=1, precision="auto", strategy=strategy, epochs=0.2)
        for strategy in (pt.BitFit(), pt.LoRA(rank=2))
    ]
    run_all(configs, tmp_path / "sweep", workers=2, progress=False)
    together = lines(caplog, tmp_path / "sweep")
    for config in configs:
        quiet: list[Status] = []
        config.run(tmp_path / "here" / directory_name(config), progress=quiet.append)
    alone = lines(caplog, tmp_path / "here")
    assert together == alone
    assert {name for name, _, _ in alone} > {"paretune.training.processes"}
    assert not any(name == "paretune.backbones.weights" for name, _, _ in alone)


def test_lines_that_are_alike_come_once_and_through_the_loggers_of_their_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    messages: queue.Queue[Any] = queue.Queue()
    worker = QueueHandler(messages)
    refusing = logging.getLogger("paretune.refusing")
    refusing.addFilter(lambda record: False)
    with shown(messages, ["run"], enabled=False):
        for name, text, value in (
            ("paretune.one", "it is %d", 3),
            ("paretune.one", "it is %d", 3),
            ("paretune.one", "it is %d", 4),
            ("paretune.two", "it is %d", 3),
            ("paretune.refusing", "it is %d", 3),
        ):
            worker.handle(logging.LogRecord(name, logging.WARNING, "", 0, text, (value,), None))
        messages.put(("run", None))
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("paretune.one", "it is 3"),
        ("paretune.one", "it is 4"),
        ("paretune.two", "it is 3"),
    ]


def test_the_levels_of_loggers_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.ERROR)
    monkeypatch.setattr(logging.getLogger("paretune.some"), "level", logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("paretune.other"), "level", logging.NOTSET)
    known = levels()
    assert (known[""], known["paretune.some"]) == (logging.ERROR, logging.DEBUG)
    assert "paretune.other" not in known

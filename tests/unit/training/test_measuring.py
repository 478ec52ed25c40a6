"""The numbers of many steps are read from the device at once, and nothing else changes by that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paretune.runs.progress import Status
from paretune.training import Natural, measuring
from paretune.training.guards import TrainingDiverged
from paretune.training.measuring import Readings
from paretune.training.optimizers import AdamW
from tests import tiny
from tests.unit.training.test_loop import same_run


class Waits(TorchDispatchMode):
    """Counts what an accelerator would be waited for: a number that Python asks for, and a copy to the CPU's side."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Readings.__init__

    def slow(self: Readings, record: Any, device: torch.device) -> None:
        original(self, record, device)
        self.every = 3

    monkeypatch.setattr(measuring.Readings, "__init__", slow)


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_a_run_whose_numbers_are_read_now_and_then_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom: list[Status] = []
    run = tiny.run(tmp_path / "seldom", steps=8, eval_every=4, progress=seldom.append)
    monkeypatch.undo()
    always: list[Status] = []
    same_run(run.path, tiny.run(tmp_path / "always", steps=8, eval_every=4, progress=always.append).path)
    assert seldom == always


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_a_loss_that_is_no_number_stops_the_run_at_the_next_reading_and_names_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Natural.loss

    def spoilt(self: Natural, model: Any, copy: Any, batch: Any) -> Any:
        loss, logits = original(self, model, copy, batch)
        spoilt.calls += 1  # type: ignore[attr-defined]
        return (loss * float("nan") if spoilt.calls == 5 else loss), logits  # type: ignore[attr-defined]

    spoilt.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Natural, "loss", spoilt)
    with pytest.raises(TrainingDiverged, match="NaN or infinity at step 5"):
        tiny.run(tmp_path / "run", objective=Natural(), steps=8, eval_every=4)
    assert (tmp_path / "run/checkpoint.safetensors").exists()


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_between_readings_the_loop_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an attack, whose checks wait; torch's AdamW asks its step counters, which are on the CPU on a GPU too."""
    at: list[tuple[int, int]] = []
    waits = Waits()
    original = Readings.add

    def noted(self: Readings, step: int, *rest: Any) -> None:
        at.append((step, waits.seen))
        original(self, step, *rest)

    monkeypatch.setattr(Readings, "add", noted)
    monkeypatch.setattr(AdamW, "build", lambda self, parameters, lr: torch.optim.SGD([*parameters], lr=lr))
    with waits:
        tiny.run(tmp_path / "run", objective=Natural(), steps=9, eval_every=9)
    seen = dict(at)
    highest = 1  # the largest label, read before the labels go to the device
    assert [seen[step + 1] - seen[step] for step in (4, 5, 7)] == [highest] * 3

"""The numbers of many steps are read from the device at once, and nothing else changes by that."""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import paretune as pt
from paretune.attacks import APGD, FGSM, L1, NFGSM, Attack
from paretune.attacks.copy import twin
from paretune.runs.progress import Status
from paretune.runs.store import load_runs
from paretune.training import Natural, measuring
from paretune.training.guards import TrainingDiverged
from paretune.training.measuring import Readings
from paretune.training.objectives import TrainingBatch
from paretune.training.optimizers import AdamW
from tests import tiny
from tests.unit.attacks.copy.test_captured import recorded
from tests.unit.training.test_loop import same_run

__all__ = ["recorded"]  # a fixture


TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
aten = torch.ops.aten
INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)  # which a mask makes wait


class Waits(TorchDispatchMode):
    """Counts what an accelerator would be waited for: a number that Python asks for, a shape made of values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in INDEXING:
            self.seen += any(index is not None and index.dtype == torch.bool for index in args[1])
        else:
            self.seen += any(tag in func.tags for tag in TAGS)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (measuring, twin):
        monkeypatch.setattr(module, "runs_ahead", lambda device: True)
    monkeypatch.setattr(measuring, "WAIT_EVERY", 3)


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

    def spoilt(self: Natural, model: Any, batch: Any, attacked: Any) -> Any:
        loss, logits = original(self, model, batch, attacked)
        spoilt.calls += 1  # type: ignore[attr-defined]
        return (loss * float("nan") if spoilt.calls == 5 else loss), logits  # type: ignore[attr-defined]

    spoilt.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Natural, "loss", spoilt)
    with pytest.raises(TrainingDiverged, match="NaN or infinity at step 5"):
        tiny.run(tmp_path / "run", objective=Natural(), steps=8, eval_every=4)
    assert (tmp_path / "run/checkpoint.safetensors").exists()


LINF = pt.Linf(4 / 255)
ATTACKS: list[Attack] = [
    pt.PGD(LINF, steps=2),
    pt.PGD(pt.L2(0.5), steps=2),
    pt.PGD(L1(5), steps=2),
    pt.PGD(LINF, steps=2, momentum=1.0),
    FGSM(LINF),
    NFGSM(LINF),
    APGD(LINF, steps=5, loss="dlr"),
    APGD(L1(5), steps=5, eot=2),
]


@pytest.mark.parametrize("inner", [None, *ATTACKS], ids=repr)
@pytest.mark.usefixtures("as_on_an_accelerator")
def test_between_readings_the_loop_waits_for_nothing(
    inner: Attack | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_waits(inner, tmp_path, monkeypatch)


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_a_graph_of_an_attack_waits_for_nothing(
    recorded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_waits(ATTACKS[0], tmp_path, monkeypatch, engine="graph")
    assert recorded.count("replay") >= 11


@pytest.mark.slow  # it compiles
@pytest.mark.usefixtures("as_on_an_accelerator")
def test_a_compiled_attack_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    check_waits(ATTACKS[0], tmp_path, monkeypatch, engine="compiled")


def check_waits(
    inner: Attack | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    """torch's AdamW asks its step counters, which are on the CPU on a GPU too."""
    monkeypatch.setattr(measuring, "WAIT_EVERY", 10)
    at: list[tuple[int, int]] = []
    waits = Waits()
    original = Readings.add

    def noted(self: Readings, step: int, *rest: Any) -> None:
        at.append((step, waits.seen))
        original(self, step, *rest)

    monkeypatch.setattr(Readings, "add", noted)

    def sgd(self: AdamW, model: pt.Backbone, lr: float) -> torch.optim.Optimizer:
        trained = [*pt.strategies.trainable_parameters(model).values()]
        return torch.optim.SGD([{"params": trained, "factor": 1.0}], lr=lr)

    monkeypatch.setattr(AdamW, "build", sgd)
    with waits:
        tiny.run(
            tmp_path / "run",
            objective=Natural() if inner is None else pt.AdversarialTraining(inner),
            steps=12,
            eval_every=12,
            epsilon=pt.EpsilonSchedule.fixed(),
            **options,
        )
    seen = dict(at)
    labels = 2  # the smallest and the largest, read before they go to the device
    steps = (3, 4, 5, 6, 7, 8, 9, 11)  # of the second, a tenth of training, transfer is looked at
    assert [seen[step + 1] - seen[step] for step in steps] == [labels] * len(steps)


class Root(nn.Module):
    """Of the first pixels, whose gradient is NaN at 0.3."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)[:, :10].sub(0.3).abs().sqrt())


def spoilt_run(
    out: Path, spoil: Callable[[pt.Backbone, Tensor, Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of eight steps and two points; ``spoil`` changes the batch, or the model, at the fifth."""
    on, count = TrainingBatch.on, itertools.count(1)
    model = pt.adapt(
        pt.Backbone(Root(), image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, head="fc"), pt.FullFineTune()
    )

    def load(device: torch.device, images: Tensor, labels: Tensor, *rest: Any, **more: Any) -> TrainingBatch:
        images = images.clone()
        if next(count) == 5:
            spoil(model, images, labels)
        return on(device, images, labels, *rest, **more)

    monkeypatch.setattr(TrainingBatch, "on", load)
    inner = pt.PGD(LINF, steps=2, random_start=False)
    tiny.run(
        out,
        model=model,
        objective=pt.AdversarialTraining(inner),
        epsilon=pt.EpsilonSchedule.fixed(),
        steps=8,
        eval_every=4,
    )


def spoil_weights(model: pt.Backbone, *_: Tensor) -> None:
    with torch.no_grad():
        model.module.fc.weight.fill_(float("nan"))


def spoil_both(model: pt.Backbone, images: Tensor, labels: Tensor) -> None:
    spoil_weights(model)
    images.mul_(255)


@pytest.mark.parametrize("together", [False, True], ids=["at once", "together"])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda model, images, labels: images.mul_(255),
            ValueError,
            "images must lie in .0, 1., got values from",
        ),
        (lambda model, images, labels: images.fill_(float("nan")), ValueError, "images hold NaN"),
        (
            lambda model, images, labels: images.fill_(0.3),
            ValueError,
            "the model's loss or its gradient is NaN",
        ),
        (spoil_weights, TrainingDiverged, "NaN or infinity at step 5 "),
        (spoil_both, TrainingDiverged, "NaN or infinity at step 5 "),
        (lambda model, images, labels: labels.fill_(10), ValueError, "below the model's 10 classes, got 10"),
        (
            lambda model, images, labels: labels.fill_(-1),
            ValueError,
            "labels must be class indices from 0, got -1",
        ),
    ],
    ids=["range", "NaN", "gradient", "weights", "weights and range", "high label", "low label"],
)
def test_every_check_of_an_attack_fires_in_training_and_names_its_step(
    spoil: Any, error: type[Exception], message: str, together: bool, tmp_path: Path, request: Any
) -> None:
    if together:
        request.getfixturevalue("as_on_an_accelerator")
    with pytest.raises(error, match=message) as raised:
        spoilt_run(tmp_path / "run", spoil, request.getfixturevalue("monkeypatch"))
    at_once = not together or "class" in message or error is TrainingDiverged
    assert str(raised.value).startswith("step 5: ") != at_once
    log = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 4
    assert load_runs(tmp_path / "run")[0].points["step"].unique().tolist() == [4]
    assert (tmp_path / "run/checkpoint.safetensors").exists()


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_an_error_at_once_does_not_hide_what_went_wrong_in_a_step_that_nobody_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = pt.AdversarialTraining.loss, itertools.count(1)

    def fails(self: Any, model: Any, copy: Any, batch: Any) -> Any:
        if next(count) == 6:
            raise ValueError("no more")
        return original(self, model, copy, batch)

    monkeypatch.setattr(pt.AdversarialTraining, "loss", fails)
    with pytest.raises(ValueError, match="step 5: images hold NaN"):
        spoilt_run(tmp_path / "run", lambda model, images, labels: images.fill_(float("nan")), monkeypatch)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_batch_moves_without_a_wait_where_its_memory_is_pinned(
    pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Any] = []
    monkeypatch.setattr(Tensor, "is_pinned", lambda self: pinned)
    monkeypatch.setattr(Tensor, "to", lambda self, *where, **how: moves.append((*where, how)) or self)
    cuda = torch.device("cuda")
    batch = TrainingBatch.on(
        cuda, torch.rand(2, 3, 4, 4), torch.tensor([4, 1]), *[torch.arange(2)] * 2, epsilon=0.1, seed=0
    )
    assert moves == [(cuda, {"non_blocking": pinned})] * 2
    assert (batch.lowest_class, batch.highest_class) == (1, 4)

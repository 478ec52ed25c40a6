"""What train and evaluate do on a CUDA device reaches the launcher; simulated threads stand in for the GPU."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import paretune as pt
from paretune import kernels
from paretune.attacks import FGSM, attack_copy
from paretune.attacks.copy import captured
from paretune.kernels import launch
from paretune.kernels.launch import Launch
from tests import tiny
from tests.kernels.pretending import pretend_cuda
from tests.kernels.simulator import Simulator

TRAINED = "paretune::linf_step<float,float,true,4>"  # gradient at the network's input, and its next input
SEARCHED = "paretune::linf_step<float,paretune::Nothing,false,4>"  # gradient at the images


class Device:
    """A driver of simulated threads that counts what is launched."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.launched: Counter[str] = Counter()

    def load(self, program: tuple[str, ...], device: torch.device) -> None:
        """All is built already."""

    def processors(self, device: torch.device) -> int:
        return self.simulator.processors(device)

    def run(self, launches: Sequence[Launch], device: torch.device) -> None:
        self.launched.update(each.kernel for each in launches)
        self.simulator.run(launches, device)


@pytest.fixture
def device(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Device]]:
    """From its call on, tensors are on a CUDA device, as far as paretune looks."""

    def plug_in() -> Device:
        kernels._not_loaded.cache_clear()
        pretended = Device(simulator)
        monkeypatch.setattr(launch, "driver", lambda: pretended)
        pretend_cuda(monkeypatch.setattr)
        return pretended

    yield plug_in
    kernels._not_loaded.cache_clear()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """A stand-in for the recording of a graph, whose replay runs the loop again on its buffers."""
    events: Counter[str] = Counter()

    def record(
        warm_up: Callable[[], Tensor], loop: Callable[[], Tensor], device: torch.device
    ) -> tuple[Callable[[], None], Tensor]:
        events["record"] += 1
        result = loop().clone()  # no view

        def replay() -> None:
            events["replay"] += 1
            with torch.enable_grad():  # the backward pass of what was replayed, not of what was recorded
                result.detach_().copy_(loop())

        return replay, result

    monkeypatch.setattr(captured, "record_graph", record)
    monkeypatch.setattr(captured, "seconds_of", lambda run, device: (1.0, 1.0))
    return events


def adapter_of(run: Any) -> dict[str, Tensor]:
    return load_file(run.path / "adapter" / "adapter_model.safetensors")


def train(path: Path, **options: Any) -> Any:
    """Two steps of training at full strength, with an attack of three steps."""
    return pt.train(
        tiny.backbone(pt.FullFineTune(bn="adapt")),
        tiny.data(60),
        pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=3)),
        out=path,
        steps=2,
        batch_size=4,
        epsilon=pt.EpsilonSchedule.fixed(),
        attacks=[pt.PGD(pt.Linf(4 / 255), steps=2)],
        progress=False,
        **options,
    )


def test_training_takes_the_fused_step_and_gives_the_bits_of_plain_pytorch(
    device: Callable[[], Device], tmp_path: Path
) -> None:
    plain = train(tmp_path / "plain")
    launched = device().launched
    fused = train(tmp_path / "fused", engine="eager")
    assert launched[TRAINED] == 2 * 3
    assert launched[SEARCHED] > 0  # of the evaluation
    assert fused.points.robust.equals(plain.points.robust)
    wanted = adapter_of(plain)
    assert all(torch.equal(value, wanted[name]) for name, value in adapter_of(fused).items())


def test_training_takes_a_graph_of_fused_steps_by_default(
    device: Callable[[], Device], recorded: Counter[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train(tmp_path / "plain")
    caplog.set_level("INFO")
    launched = device().launched
    graph = train(tmp_path / "graph")
    assert recorded == {"record": 1, "replay": 3 + 2}  # three to compare, then each step of the training
    assert launched[TRAINED] > 0
    assert "attack copy: graph steps; the model is on cuda:0" in caplog.text
    assert "attack copy: a graph of 3 steps for (4, 3, 8, 8)" in caplog.text
    assert graph.key == plain.key
    wanted = adapter_of(plain)
    assert all(torch.equal(value, wanted[name]) for name, value in adapter_of(graph).items())


def test_where_no_graph_can_be_captured_training_goes_on_with_the_same_bits(
    device: Callable[[], Device], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train(tmp_path / "plain")
    launched = device().launched
    eager = train(tmp_path / "eager", engine="graph")  # there is no GPU: the capture itself fails
    assert "no graph of them" in caplog.text
    assert launched[TRAINED] > 0
    wanted = adapter_of(plain)
    assert all(torch.equal(value, wanted[name]) for name, value in adapter_of(eager).items())


@pytest.mark.parametrize(
    ("attack", "kernel"),
    [
        (pt.PGD(pt.Linf(0.03), steps=3), "linf_step"),
        (pt.PGD(pt.Linf(0.03), steps=3, keep="last"), "linf_step"),
        (FGSM(pt.Linf(0.03)), "linf_step"),
        (pt.PGD(pt.L2(0.5), steps=3), "l2_step"),
        (pt.PGD(pt.L2(0.5), steps=3, keep="last"), "l2_step"),
    ],
    ids=repr,
)
def test_evaluation_takes_the_fused_step(
    attack: Any, kernel: str, device: Callable[[], Device], recorded: Counter[str]
) -> None:
    model, split = tiny.backbone(pt.LoRA(rank=2)), tiny.data(60).report
    plain = pt.evaluate(model, split, [attack])
    launched = device().launched
    found = pt.evaluate(model, split, [attack])
    assert {name.partition("<")[0] for name in launched} == {f"paretune::{kernel}"}
    assert (recorded["record"] == 1) == (
        getattr(attack, "keep", "best") == "last" and attack != FGSM(attack.threat)
    )
    if kernel == "linf_step":  # bit for bit; L2 within the rule of the kernel's tests
        assert (found.robust[attack] == plain.robust[attack]).all()


def test_an_attack_by_itself_takes_the_fused_step(device: Callable[[], Device]) -> None:
    model = tiny.backbone(pt.LoRA(rank=2))
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    attack = pt.PGD(pt.Linf(0.03), steps=2, keep="last")
    wanted = attack(model, images, labels, seed=0)
    pretended = device()
    assert torch.equal(attack(attack_copy(model, engine="eager"), images, labels, seed=0), wanted)
    assert pretended.launched == {TRAINED: 2}

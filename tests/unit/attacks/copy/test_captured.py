"""What surrounds a CUDA graph, with a stand-in for the recording itself; that needs a GPU."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import L2, Linf, Threat, attack_copy
from paretune.attacks.copy import captured
from paretune.attacks.threats import THREATS
from paretune.kernels import Norm
from paretune.selftest import on_gpu
from paretune.selftest.comparing import NORMS
from tests.unit.attacks.copy.test_steps import batch, lora_vit, shake_adapter


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replays run the loop again on the recorded buffers and write to the recorded result, as a graph does."""
    events: list[str] = []

    def record(
        warm_up: Callable[[], Tensor], loop: Callable[[], Tensor], device: torch.device
    ) -> tuple[Callable[[], None], Tensor]:
        events.append("record")
        warm_up()
        result = loop()

        def replay() -> None:
            events.append("replay")
            result.copy_(loop())

        return replay, result

    monkeypatch.setattr(captured, "record_graph", record)
    monkeypatch.setattr(captured, "check_capturable", lambda images: None)
    return events


def test_images_on_the_cpu_are_refused() -> None:
    victim = attack_copy(lora_vit(), precision="fp32", cuda_graph=True)
    images, start, goals = batch()
    with pytest.raises(ValueError, match="a CUDA graph needs images on a CUDA device, got cpu"):
        victim.ascend(Linf(0.03), images, start, goals, step_size=0.01)


def test_a_graph_of_compiled_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="compile=True and cuda_graph=True exclude each other"):
        attack_copy(lora_vit(), compile=True, cuda_graph=True)


def test_a_threat_without_a_fused_step_is_refused(recorded: list[str]) -> None:
    victim = attack_copy(lora_vit(), precision="fp32", cuda_graph=True)
    images, start, goals = batch()
    with pytest.raises(ValueError, match=r"can hold steps under Linf, L2, got L1\(.*cuda_graph=False"):
        victim.ascend(THREATS["L1"](8.0), images, start, goals, step_size=2.0)


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.5)], ids=repr)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replay_takes_new_images_weights_step_sizes_and_radii(
    threat: Threat, precision: Any, recorded: list[str]
) -> None:
    model = lora_vit()
    plain, graph = (attack_copy(model, precision=precision, cuda_graph=each) for each in (False, True))
    results = []
    for factor in (1.0, 0.5, 0.25):
        now = threat.with_epsilon(factor * threat.epsilon)
        images, start, goals = batch()
        start = now.project(start, images)
        arguments = now, images, start, goals
        found = graph.ascend(*arguments, step_size=0.3 * now.epsilon, steps=3)
        expected = plain.ascend(*arguments, step_size=0.3 * now.epsilon, steps=3)
        # Tensors of one value and numbers round alike in the step, and differ by a last place in the radius.
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
        results.append((found, found.clone()))
        shake_adapter(model)
        plain.refresh()
        graph.refresh()
    assert recorded == ["record", "replay", "replay", "replay"]
    assert all(torch.equal(found, copy) for found, copy in results)  # no replay wrote to an earlier result


def test_a_graph_is_recorded_for_each_shape_up_to_four(recorded: list[str]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    plain, graph = (attack_copy(network, precision="fp32", cuda_graph=each) for each in (False, True))
    for count in (3, 4, 5, 6, 7, 3):
        images, start, goals = batch(count, size=4)
        found = graph.ascend(Linf(0.1), images, start, goals, step_size=0.02)
        expected = plain.ascend(Linf(0.1), images, start, goals, step_size=0.02)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert recorded.count("record") == 4
    assert recorded.count("replay") == 5


def test_a_model_with_other_tensors_is_recorded_anew(recorded: list[str]) -> None:
    model = lora_vit()
    victim = attack_copy(model, precision="fp32", cuda_graph=True)
    images, start, goals = batch()
    victim.ascend(Linf(0.03), images, start, goals, step_size=0.01)
    pt.remove_adapter(model)
    victim.refresh()
    found = victim.ascend(Linf(0.03), images, start, goals, step_size=0.01)
    expected = attack_copy(model, precision="fp32").ascend(Linf(0.03), images, start, goals, step_size=0.01)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert recorded.count("record") == 2


def test_errors_are_told_although_a_graph_has_none(recorded: list[str]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    victim = attack_copy(network, precision="fp32", cuda_graph=True)
    images, start, goals = batch(size=4)
    victim.ascend(Linf(0.1), images, start, goals, step_size=0.02)
    with pytest.raises(ValueError, match="below the model's 5 classes, got 5"):
        victim.ascend(Linf(0.1), images, start, goals + 2, step_size=0.02)
    with torch.no_grad():
        network[1].weight.fill_(float("inf"))
    victim.refresh()
    with pytest.raises(ValueError, match="gradient is NaN or infinite"):
        victim.ascend(Linf(0.1), images, start, goals, step_size=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_the_self_test_sees_what_a_replay_does_not_take(
    norm: Norm, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = "same as without, another batch, another epsilon, earlier result kept, other weights"
    assert on_gpu._graph(torch.device("cpu"), norm) == (True, everything)
    fill = captured._Graph._fill
    monkeypatch.setattr(
        captured._Graph,
        "_fill",
        lambda self, ascent, images_adv: fill(self, ascent, images_adv) if self.result is None else None,
    )
    assert on_gpu._graph(torch.device("cpu"), norm) == (False, "another batch, another epsilon")


class OnCuda:
    """What the refusals look at, of a tensor on a GPU."""

    is_cuda = True
    device = "cuda:0"

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def test_an_empty_batch_or_a_second_capture_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = OnCuda(0, 3, 4, 4)
    something: Any = OnCuda(2, 3, 4, 4)
    with pytest.raises(ValueError, match="at least one image"):
        captured.check_capturable(nothing)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="being captured already"):
        captured.check_capturable(something)

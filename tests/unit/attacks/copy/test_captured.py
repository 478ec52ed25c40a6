"""What surrounds a CUDA graph, with a stand-in for the recording itself; that needs a GPU."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import L2, AttackCopy, Engine, Linf, Threat, attack_copy
from paretune.attacks.copy import captured
from paretune.attacks.copy.options import CopyOptions
from paretune.attacks.threats import THREATS
from paretune.attacks.waiting import deferring
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
        result = loop().clone()  # no view

        def replay() -> None:
            events.append("replay")
            with torch.enable_grad():  # the backward pass of what was replayed, not of what was recorded
                result.detach_().copy_(loop())

        return replay, result

    monkeypatch.setattr(captured, "record_graph", record)
    monkeypatch.setattr(captured, "seconds_of", lambda run, device: (1.0, 1.1))
    choose = CopyOptions.choose_engine
    monkeypatch.setattr(
        CopyOptions,
        "choose_engine",
        lambda self, device, draws: choose(self, torch.device("cuda", 0), draws=draws),
    )
    return events


def engines(model: nn.Module, engine: Engine = "graph", **options: Any) -> tuple[AttackCopy, AttackCopy]:
    return attack_copy(model, engine="eager", **options), attack_copy(model, engine=engine, **options)


def climb(victim: AttackCopy, threat: Threat = Linf(0.1), count: int = 4) -> Tensor:  # noqa: B008
    with torch.random.fork_rng():
        torch.manual_seed(count)
        images, start, goals = batch(count, size=4)
    return victim.ascend(threat, images, start, goals, step_size=threat.epsilon / 4, steps=3)


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


# ---- what is chosen, and said -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "device", "draws", "chosen", "reason"),
    [
        ("auto", "cpu", False, "eager", "no launches to save on a cpu"),
        ("auto", "cuda", False, "graph", "the model is on cuda"),
        ("auto", "cuda", True, "eager", "draws random numbers"),
        ("auto", "mps", False, "eager", "no launches to save on a mps"),
        ("eager", "cuda", False, "eager", "asked for"),
        ("graph", "cuda", False, "graph", "asked for"),
        ("graph", "cpu", False, "eager", "needs a CUDA device, and the model is on cpu"),
        ("graph", "cuda", True, "eager", "draws random numbers"),
        ("compiled", "cpu", False, "compiled", "asked for"),
        ("compiled", "cuda", True, "eager", "draws random numbers"),
    ],
)
def test_the_engine_follows_from_the_wish_the_device_and_the_model(
    engine: Engine, device: str, draws: bool, chosen: str, reason: str
) -> None:
    found, why = CopyOptions(engine=engine).choose_engine(torch.device(device), draws=draws)
    assert found == chosen
    assert reason in why


def test_an_unknown_engine_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ValueError, match="engine must be one of 'auto', 'eager', 'compiled', 'graph', got 'jit'"
    ):
        attack_copy(small(), engine="jit")  # type: ignore[arg-type]


def test_a_graph_on_the_cpu_is_eager_steps_and_the_log_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    plain, graph = engines(small())
    assert graph.engine == "graph"
    for _ in range(2):
        assert torch.equal(climb(graph), climb(plain))
    assert graph.engine == "eager"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "eager steps; a CUDA graph needs a CUDA device, and the model is on cpu" in caplog.text


def test_by_default_the_cpu_takes_eager_steps_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "paretune.attacks.copy")
    plain, auto = engines(small(), "auto")
    assert torch.equal(climb(auto), climb(plain))
    assert auto.engine == "eager"
    assert "attack copy: eager steps; there are no launches to save on a cpu" in caplog.text


def test_by_default_a_cuda_device_takes_a_graph(
    recorded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    plain, auto = engines(small(), "auto")
    assert torch.equal(climb(auto), climb(plain))
    assert auto.engine == "graph"
    assert "attack copy: a graph of 3 steps for (4, 3, 4, 4)" in caplog.text


def test_where_the_gpu_is_busy_anyway_only_a_wish_takes_a_graph(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(captured, "seconds_of", lambda run, device: (0.004, 0.020))
    model = small()
    plain, auto = engines(model, "auto")
    assert torch.equal(climb(auto), climb(plain))
    assert auto.engine == "eager"
    assert "Python sends one in 4.0 ms, the GPU needs 20.0 ms for it" in caplog.text
    asked = attack_copy(model, engine="graph")
    climb(asked)
    assert asked.engine == "graph"


def test_a_capture_that_fails_leaves_eager_steps_and_the_reason_in_the_log(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captured, "record_graph", refuse)
    plain, graph = engines(small())
    for _ in range(2):
        assert torch.equal(climb(graph), climb(plain))
    assert graph.engine == "eager"
    assert caplog.text.count("operation not permitted when stream is capturing)") == 1


@pytest.mark.parametrize("stale", ["images", "images_adv", "goals", "step_size", "epsilon"])
def test_a_graph_that_does_not_read_what_it_is_given_is_not_used(
    stale: str, recorded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill = captured._Graph._fill

    def forget(self: Any, ascent: Any, images_adv: Tensor) -> None:
        kept = getattr(self, stale).clone()
        fill(self, ascent, images_adv)
        if self.result is not None:
            getattr(self, stale).copy_(kept)

    monkeypatch.setattr(captured._Graph, "_fill", forget)
    plain, graph = engines(small())
    assert torch.equal(climb(graph), climb(plain))
    assert graph.engine == "eager"
    assert "gave other bits" in caplog.text


class KeepsWhatItMakesOfItsWeights(nn.Module):
    """As LeViT and TinyViT do in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(5, 48))
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Any:
        self.kept = {}
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        if "doubled" not in self.kept:
            self.kept["doubled"] = 2 * self.weight.detach()
        return images.flatten(1) @ self.kept["doubled"].T


def test_a_model_that_keeps_what_it_makes_of_its_weights_is_not_recorded(
    recorded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = KeepsWhatItMakesOfItsWeights()
    plain, graph = engines(model)
    for _ in range(2):
        assert torch.equal(climb(graph), climb(plain))
        with torch.no_grad():
            model.weight.neg_()
        plain.refresh()
        graph.refresh()
    assert recorded == []
    assert "eager steps for (4, 3, 4, 4); kept keeps tensors beside its parameters" in caplog.text


@pytest.mark.parametrize(("name", "size"), [("levit_128s", 224), ("test_vit", 32), ("test_resnet", 32)])
def test_only_a_network_that_keeps_tensors_is_found(name: str, size: int) -> None:
    model = timm.create_model(name, num_classes=5, pretrained=False).eval()
    with torch.no_grad():
        model(torch.rand(1, 3, size, size))
    assert ("attention_bias_cache" in (captured.keeper(model) or "")) == (name == "levit_128s")


# ---- the graph --------------------------------------------------------------------------------------------------


def test_a_threat_without_a_fused_step_is_taken_as_it_is(recorded: list[str]) -> None:
    plain, graph = engines(small())
    threat = THREATS["L1"](8.0)
    assert torch.equal(climb(graph, threat), climb(plain, threat))
    assert recorded == []


@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.5)], ids=repr)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replay_takes_new_images_weights_step_sizes_and_radii(
    threat: Threat, precision: Any, recorded: list[str]
) -> None:
    model = lora_vit()
    plain, graph = engines(model, precision=precision)
    results = []
    for factor in (1.0, 0.5, 0.25):
        now = threat.with_epsilon(factor * threat.epsilon)
        images, start, goals = batch()
        start = now.project(start, images)
        arguments = now, images, start, goals
        found = graph.ascend(*arguments, step_size=0.3 * now.epsilon, steps=3)
        assert torch.equal(found, plain.ascend(*arguments, step_size=0.3 * now.epsilon, steps=3))
        results.append((found, found.clone()))
        shake_adapter(model)
        plain.refresh()
        graph.refresh()
    assert recorded == ["record", *["replay"] * 6]  # three to compare
    assert all(torch.equal(found, copy) for found, copy in results)  # no replay wrote to an earlier result


def test_a_graph_is_recorded_for_each_shape_up_to_four(recorded: list[str]) -> None:
    plain, graph = engines(small())
    for count in (3, 4, 5, 6, 7, 3):
        assert torch.equal(climb(graph, count=count), climb(plain, count=count))
    assert recorded.count("record") == 4
    assert recorded.count("replay") == 3 * 4 + 5


def test_a_model_with_other_tensors_is_recorded_anew(recorded: list[str]) -> None:
    model = lora_vit()
    victim = attack_copy(model, engine="graph")
    images, start, goals = batch()
    victim.ascend(Linf(0.03), images, start, goals, step_size=0.01)
    pt.remove_adapter(model)
    victim.refresh()
    found = victim.ascend(Linf(0.03), images, start, goals, step_size=0.01)
    expected = attack_copy(model, engine="eager").ascend(Linf(0.03), images, start, goals, step_size=0.01)
    assert torch.equal(found, expected)
    assert recorded.count("record") == 2


def test_errors_are_told_although_a_graph_has_none(recorded: list[str]) -> None:
    network = small()
    victim = attack_copy(network, engine="graph")
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
    everything = (
        "same as without, another batch, another epsilon, earlier result kept, other weights, by a graph"
    )
    assert on_gpu._graph(torch.device("cpu"), norm) == (True, everything)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no capture")

    monkeypatch.setattr(captured, "record_graph", refuse)
    assert on_gpu._graph(torch.device("cpu"), norm) == (False, "by a graph")


@pytest.mark.parametrize("norm", NORMS)
def test_the_self_test_makes_the_attack_of_training_by_the_default_engine(
    norm: Norm, recorded: list[str]
) -> None:
    assert on_gpu._attack(torch.device("cpu"), norm) == (True, "same as eager steps, by graph")
    assert recorded == ["record", *["replay"] * 4]


@pytest.mark.parametrize("norm", NORMS)
def test_the_self_test_says_whether_the_steps_were_compiled(
    norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    passed, detail = on_gpu._compiled(torch.device("cpu"), norm)
    assert passed
    assert detail.startswith("compiled, ")

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    assert on_gpu._compiled(torch.device("cpu"), norm) == (False, "eager, differs by 0.0e+00")


def test_what_a_graph_is_compared_on_is_no_error_of_the_images(recorded: list[str]) -> None:
    """The gradient is NaN at 0, hence where the comparison turns images of ones around."""

    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :5].abs().sqrt()

    images, goals = torch.ones(3, 3, 4, 4), torch.arange(3)
    plain, graph = engines(Root())
    found, wanted = [], []
    for victim, into in ((graph, found), (plain, wanted)):
        with deferring(goals, (0, 2)) as checks:
            into.append(victim.ascend(Linf(0.1), images, images, goals, step_size=0.02, steps=2))
        assert checks
        assert all(ok for ok, _ in checks)
    assert torch.equal(found[0], wanted[0])
    assert graph.engine == "eager"

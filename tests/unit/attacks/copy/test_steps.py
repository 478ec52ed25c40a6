from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import paretune as pt
from paretune.attacks import L2, AttackCopy, Linf, Threat, attack_copy
from paretune.attacks.copy.steps import Ascent
from paretune.attacks.copy.twin import Twin
from paretune.attacks.threats import THREATS
from tests.unit.attacks.copy.test_engine import timm_model


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def lora_vit() -> pt.Backbone:
    return pt.adapt(pt.Backbone(timm_model("test_vit", img_size=32), image_size=32), pt.LoRA(rank=2))


def batch(count: int = 4, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, a start in the ball of radius 0.02, and labels."""
    images = torch.rand(count, 3, size, size)
    start = (images + 0.02 * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    return images, start, torch.arange(count) % 5


def by_hand(
    victim: AttackCopy,
    threat: Threat,
    images: Tensor,
    start: Tensor,
    goals: Tensor,
    step_size: float,
    steps: int,
) -> Tensor:
    """The loop in the words of the threat."""
    for _ in range(steps):
        leaf = start.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(victim(leaf), goals, reduction="sum"), leaf)
        start = threat.project(threat.step(start.detach(), gradient, step_size), images)
    return start


# ---- the steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["backbone", "plain"])
@pytest.mark.parametrize("norm", sorted(THREATS))
def test_steps_are_those_of_the_threat(norm: str, model: str) -> None:
    threat = THREATS[norm]({"Linf": 0.03, "L2": 0.5, "L1": 8.0}[norm])
    backbone = lora_vit()
    victim = attack_copy(backbone if model == "backbone" else backbone.module, precision="fp32")
    images, start, goals = batch()
    start = threat.project(start, images)
    step_size = 0.4 * threat.epsilon
    expected = by_hand(victim, threat, images, start, goals, step_size, 3)
    found = victim.ascend(threat, images, start, goals, step_size=step_size, steps=3)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    # Exact for Linf, where only signs count; lengths are summed in another order for L2.
    assert torch.allclose(found, expected, rtol=0, atol=0 if norm == "Linf" else 1e-5)
    one_by_one = start
    for _ in range(3):
        one_by_one = victim.ascend(threat, images, one_by_one, goals, step_size=step_size)
    assert torch.equal(one_by_one, found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.5)], ids=repr)
def test_steps_climb_the_loss_or_descend_to_a_target_inside_the_ball(threat: Threat, precision: Any) -> None:
    victim = attack_copy(lora_vit(), precision=precision)
    images, _, goals = batch(8)
    losses = [
        float(F.cross_entropy(victim.exact(images_adv), goals))
        for images_adv in (
            victim.ascend(
                threat, images, images, goals, step_size=0.3 * threat.epsilon, steps=5, targeted=targeted
            )
            for targeted in (True, False)
        )
    ]
    clean = float(F.cross_entropy(victim.exact(images), goals))
    assert losses[0] < clean < losses[1]
    images_adv = victim.ascend(threat, images, images, goals, step_size=threat.epsilon, steps=2)
    assert float(threat.distance(images_adv, images).max()) <= threat.epsilon * (1 + 1e-6)
    assert 0 <= float(images_adv.min()) <= float(images_adv.max()) <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_k_steps_are_exactly_k_forward_and_backward_passes(precision: Any) -> None:
    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            passes["forward"] += 1
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            passes["backward"] += 1
            return gradient

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(Counting.apply(images.flatten(1)))

    passes = {"forward": 0, "backward": 0}
    victim = attack_copy(pt.Backbone(Network(), image_size=4), precision=precision)
    images, start, goals = batch(size=4)
    victim(images)
    for steps in (1, 7):
        passes.update(forward=0, backward=0)
        victim.ascend(Linf(0.1), images, start, goals, step_size=0.02, steps=steps)
        assert passes == {"forward": steps, "backward": steps}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_steps_work_where_gradients_are_off(context: Callable[[], Any]) -> None:
    victim = attack_copy(lora_vit(), precision="fp32")
    images, start, goals = batch()
    expected = victim.ascend(Linf(0.03), images, start, goals, step_size=0.01, steps=2)
    with context():
        assert torch.equal(victim.ascend(Linf(0.03), images, start, goals, step_size=0.01, steps=2), expected)


def test_arguments_stay_as_they_are() -> None:
    victim = attack_copy(lora_vit(), precision="fp32")
    images, start, goals = batch()
    copies = images.clone(), start.clone(), goals.clone()
    victim.ascend(Linf(0.03), images, start, goals, step_size=0.01, steps=2)
    assert all(torch.equal(a, b) for a, b in zip((images, start, goals), copies, strict=True))
    assert not start.requires_grad


@pytest.mark.parametrize("make", [lambda: lora_vit(), lambda: lora_resnet()], ids=["vit", "resnet"])
@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.5)], ids=repr)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_kernels_way_through_a_step_gives_the_same_images(
    make: Callable[[], nn.Module], threat: Threat, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = attack_copy(make(), precision=precision)
    images, start, goals = batch()
    expected = victim.ascend(threat, images, start, goals, step_size=0.01, steps=3)
    layouts = []
    logits = Twin.logits
    monkeypatch.setattr(
        Twin, "logits", lambda self, entered: layouts.append(entered.stride()) or logits(self, entered)
    )
    monkeypatch.setattr(Ascent, "_takes_kernel", True)
    found = victim.ascend(threat, images, start, goals, step_size=0.01, steps=3)
    if threat == L2(0.5) and victim.channels_last:  # lengths are summed in the order of the layout
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    else:
        assert torch.equal(found, expected)
    assert len(layouts) == 3
    assert len(set(layouts)) == 1  # the layout in which the network is fastest, in each step


class NotDifferentiable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)).detach()


class InfiniteGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head((images.flatten(1) * 0).sqrt())


class MaskedNaN(nn.Module):
    """NaN for some images, behind a mask whose gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).mean(dim=1, keepdim=True) > 0.5
        return self.head(images.flatten(1)).masked_fill(bright, torch.nan)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("network", "goal", "message"),
    [
        (NotDifferentiable(), 0, "no gradient with respect to its images"),
        (InfiniteGradient(), 0, "gradient is NaN or infinite"),
        (MaskedNaN(), 0, "loss or its gradient is NaN"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 5, "below the model's 5 classes, got 5"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), 0, "each of at least 2 classes"),
    ],
    ids=["no gradient", "infinite", "masked", "too few classes", "one logit"],
)
def test_a_victim_that_cannot_be_attacked_is_an_error(
    network: nn.Module, goal: int, message: str, engine: Any, eager: list[Any]
) -> None:
    victim = attack_copy(network, precision="fp32", engine=engine)
    images, start, goals = batch(size=4)
    goals[-1] = goal
    with pytest.raises(ValueError, match=message):
        victim.ascend(Linf(0.1), images, start, goals, step_size=0.02)


# ---- compiled ---------------------------------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compile with dynamo and autograd's tracing, but without the code generation that takes a minute."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    return [counter]


def shake_adapter(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


def compacter_vit() -> pt.Backbone:
    return pt.adapt(
        pt.Backbone(timm_model("test_vit", img_size=32), image_size=32), pt.Compacter(reduction=8)
    )


def lora_resnet() -> pt.Backbone:
    return pt.adapt(pt.Backbone(timm_model("test_resnet"), image_size=32), pt.LoRA(rank=2))


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("make", "norm"),
    [
        (lora_vit, "Linf"),
        (lora_vit, "L2"),
        (lora_resnet, "Linf"),
        pytest.param(compacter_vit, "Linf", marks=pytest.mark.slow),  # tracing its einsums takes ten seconds
    ],
)
def test_a_step_is_one_graph_and_neither_weights_nor_radius_compile_it_again(
    make: Callable[[], nn.Module], norm: str, eager: list[Any]
) -> None:
    model = make()
    plain, compiled = (attack_copy(model, precision="fp32", engine=each) for each in ("eager", "compiled"))
    images, start, goals = batch()
    for radius in (0.03, 0.02, 0.01):
        threat = THREATS[norm](radius if norm == "Linf" else 20 * radius)
        arguments = threat, images, threat.project(start, images), goals
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = compiled.ascend(*arguments, step_size=0.3 * threat.epsilon, steps=2)
        expected = plain.ascend(*arguments, step_size=0.3 * threat.epsilon, steps=2)
        # The compiler may add in another order, which can turn the sign of a gradient that is nearly zero.
        assert float(((found - expected).abs() > 1e-5).float().mean()) < 1e-3
        assert not torch.equal(found, start)
        shake_adapter(model)
        plain.refresh()
        compiled.refresh()
    assert eager[0].frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_bfloat16_step_is_one_graph_too(eager: list[Any]) -> None:
    victim = attack_copy(lora_vit(), precision="bf16", engine="compiled")
    images, _, goals = batch(8)
    images_adv = victim.ascend(Linf(0.03), images, images, goals, step_size=0.01, steps=4)
    assert eager[0].frame_count == 1
    assert images_adv.dtype == torch.float32
    assert float(F.cross_entropy(victim.exact(images_adv), goals)) > float(
        F.cross_entropy(victim.exact(images), goals)
    )


def test_many_batch_shapes_are_not_all_compiled(eager: list[Any]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    plain, compiled = (attack_copy(network, precision="fp32", engine=each) for each in ("eager", "compiled"))
    for count in (3, 4, 5, 6, 7, 8, 3):
        images, start, goals = batch(count, size=4)
        found = compiled.ascend(Linf(0.1), images, start, goals, step_size=0.02)
        assert torch.equal(found, plain.ascend(Linf(0.1), images, start, goals, step_size=0.02))
    assert eager[0].frame_count == 4


def test_a_threat_without_a_fused_step_runs_uncompiled(eager: list[Any]) -> None:
    plain, compiled = (
        attack_copy(lora_vit(), precision="fp32", engine=each) for each in ("eager", "compiled")
    )
    images, _, goals = batch()
    threat = THREATS["L1"](8.0)
    found = compiled.ascend(threat, images, images, goals, step_size=2.0)
    assert float(threat.distance(found, images).max()) > 0
    assert eager[0].frame_count == 0
    assert plain.precision == compiled.precision
    assert compiled.engine == "eager"


def test_what_cannot_be_compiled_is_taken_as_it_is_and_the_log_says_why(
    eager: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    class LooksAtValues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 5)

        def forward(self, images: Tensor) -> Tensor:
            scale = 2.0 if float(images.detach().mean()) > 0 else 1.0
            return scale * self.head(images.flatten(1))

    model = LooksAtValues()
    plain, compiled = (attack_copy(model, precision="fp32", engine=each) for each in ("eager", "compiled"))
    images, start, goals = batch(size=4)
    for _ in range(2):
        found = compiled.ascend(Linf(0.1), images, start, goals, step_size=0.02, steps=3)
        assert torch.equal(found, plain.ascend(Linf(0.1), images, start, goals, step_size=0.02, steps=3))
    assert compiled.engine == "eager"
    assert caplog.text.count("eager steps; they cannot be compiled") == 1


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_generated_code_does_what_the_steps_do(precision: Any) -> None:
    model = lora_vit()
    torch._dynamo.reset()
    plain, compiled = (attack_copy(model, precision=precision, engine=each) for each in ("eager", "compiled"))
    images, _, goals = batch(16)
    for radius in (0.03, 0.01):
        threat = Linf(radius)
        found, expected = (
            each.ascend(threat, images, images, goals, step_size=radius / 4, steps=6)
            for each in (compiled, plain)
        )
        # Equal loss, to what the precision can tell apart.
        losses = [float(F.cross_entropy(plain.exact(each), goals)) for each in (found, expected)]
        clean = float(F.cross_entropy(plain.exact(images), goals))
        assert abs(losses[0] - losses[1]) <= (1e-3 if precision == "fp32" else 2e-2) * (losses[1] - clean)
        shake_adapter(model)
        plain.refresh()
        compiled.refresh()
    assert len(torch._dynamo.utils.counters["graph_break"]) == 0

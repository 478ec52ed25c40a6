"""Several adapters on one backbone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.strategies import Strategy, adaptation_of
from tests import tiny
from tests.contracts import backbones
from tests.contracts.backbones import images
from tests.contracts.contract import logits

# Every kind of change: of weights, in place, inserted, at the input, reading the stream, two at once.
ON_VIT: tuple[Strategy, ...] = (
    pt.LoRA(rank=2),
    pt.LoRA(rank=2),
    pt.LoRA(rank=2, alpha=6.0, targets=("q", "v")),
    pt.IA3(),
    pt.BitFit(),
    pt.FullFineTune(where="last:2"),
    pt.Compacter(),
    pt.Compacter(),
    pt.Compacter(reads="sum", placement="mlp"),
    pt.Adapter(style="parallel"),
    pt.VisualPrompt(size=4),
    pt.VisualPrompt(kind="deep", size=2),
    pt.LoRA(rank=2) + pt.BitFit(),
)
ON_CONVNET: tuple[Strategy, ...] = (
    pt.LoRA(rank=2),
    pt.IA3(),
    pt.strategies.NormTune(bn="adapt"),
    pt.FullFineTune(bn="adapt"),
    pt.Compacter(),
    pt.Adapter(kernel=3),
)
VIT, CONVNET = "deit3_small_patch16_224", "convnet"
BOTH = pytest.mark.parametrize(("arch", "strategies"), [(VIT, ON_VIT), (CONVNET, ON_CONVNET)])


def make(arch: str) -> pt.Backbone:
    """A vision transformer of two blocks, or a residual block of a convolution and a batch norm; always the same weights."""
    if arch != CONVNET:
        return backbones.make(arch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = pt.Backbone(tiny.network(), image_size=8, sites=["1.norm"])
    for name, buffer in made.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.0, generator=torch.Generator().manual_seed(1))
    return made.eval()


def with_adapters(model: nn.Module, *strategies: Strategy) -> pt.interchange.AdapterSet:
    """Adapters a0, a1, … of random values, none of them active."""
    adapters = pt.interchange.AdapterSet(model)
    for number, strategy in enumerate(strategies):
        adapters.add(f"a{number}", strategy, seed=number)
        adapters.activate(f"a{number}")
        draw(model, number)
    adapters.activate(None)
    return adapters


def draw(model: nn.Module, seed: int) -> None:
    """Move the active adapter, and the statistics of batch norms if they adapt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        adaptation = adaptation_of(model)
        if adaptation is not None and adaptation.strategy.bn == "adapt":
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.mul_(1 + 0.1 * torch.rand(buffer.shape, generator=generator))


def close(found: Tensor, expected: Tensor) -> None:
    """Up to the rounding of float32 in another order of sums, and of batches of another size."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def batch(model: pt.Backbone, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, model.image_size, model.image_size, generator=generator)


@BOTH
def test_switching_gives_each_adapter_its_own_logits_back_and_removing_all_gives_the_base(
    arch: str, strategies: tuple[Strategy, ...]
) -> None:
    model = make(arch)
    x = images(model.image_size)
    before = logits(model, x)
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.module.named_parameters()}
    adapters = with_adapters(model, *strategies)
    alone = {}
    for number, strategy in enumerate(strategies):
        single = pt.adapt(make(arch), strategy, seed=number)
        draw(single, number)
        alone[f"a{number}"] = logits(single, x)
    for name in (*adapters.names, *reversed(adapters.names)):
        adapters.activate(name)
        assert adapters.active == name
        assert torch.equal(logits(model, x), alone[name]), name
    for name in adapters.names:
        adapters.remove(name)
    assert adapters.names == ()
    assert adapters.active is None
    assert adaptation_of(model) is None
    now = model.module.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert {name: parameter.requires_grad for name, parameter in model.module.named_parameters()} == flags
    assert torch.equal(logits(model, x), before)


@BOTH
def test_a_mixed_batch_has_the_logits_of_each_image_alone_whatever_is_active(
    arch: str, strategies: tuple[Strategy, ...]
) -> None:
    model = make(arch)
    adapters = with_adapters(model, *strategies)
    names = [*adapters.names, None, *adapters.names[::-1]]
    x = batch(model, len(names))
    expected = []
    for image, name in zip(x, names, strict=True):
        adapters.activate(name)
        expected.append(logits(model, image[None])[0])
    weights = {name: 0.2 for name in adapters.names if adapters_combine(strategies[int(name[1:])])}
    for active in (None, "a0", names[-2], weights):
        adapters.activate(active)
        under = logits(model, x)
        with torch.no_grad():
            found = adapters(x, names)
        for number in range(len(names)):
            close(found[number], expected[number])
        assert torch.equal(logits(model, x), under)
        assert adapters.active == active


def adapters_combine(strategy: Strategy) -> bool:
    return not (isinstance(strategy, pt.VisualPrompt) and strategy.kind == "deep")


class Counting:
    """A compiler that compiles nothing and counts how often it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, _example: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        forward: Callable[..., Any] = graph.forward
        return forward


@pytest.mark.some(1)
@pytest.mark.parametrize("strategy", [pt.LoRA(rank=2), pt.Compacter()], ids=lambda s: type(s).__name__)
def test_switching_between_adapters_of_one_strategy_does_not_compile_again(strategy: Strategy) -> None:
    model = make(VIT)
    x = images(model.image_size)
    adapters = with_adapters(model, strategy, strategy, strategy)
    torch.compiler.reset()
    counting = Counting()
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    outcomes = []
    for name in ("a0", "a1", "a2", "a0"):
        adapters.activate(name)
        outcomes.append(logits(compiled, x))
        close(outcomes[-1], logits(model, x))
    assert counting.count == 1
    assert torch.equal(outcomes[0], outcomes[3])
    assert not torch.equal(outcomes[0], outcomes[1])
    for weights in ({"a0": 0.5, "a1": 0.5}, {"a2": 0.9, "a0": 0.1}, {"a1": 0.2, "a2": 0.8}):
        adapters.activate(weights)
        close(logits(compiled, x), logits(model, x))
    assert counting.count == 2


def test_merged_switches_between_other_strategies_do_not_compile_again() -> None:
    model = make(VIT)
    x = images(model.image_size)
    adapters = with_adapters(
        model, pt.LoRA(rank=2), pt.IA3(), pt.BitFit(), pt.LoRA(rank=4, targets=("q", "v"))
    )
    torch.compiler.reset()
    counting = Counting()
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    for name in (*adapters.names, "a1"):
        adapters.activate({name: 1.0})
        close(logits(compiled, x), logits(model, x))
    adapters.activate({"a0": 0.5, "a3": 0.5})
    close(logits(compiled, x), logits(model, x))
    assert counting.count == 1


@BOTH
def test_an_attack_copy_follows_every_switch_when_refreshed(
    arch: str, strategies: tuple[Strategy, ...]
) -> None:
    model = make(arch)
    x = images(model.image_size)
    adapters = with_adapters(model, *strategies)
    victim = pt.attacks.attack_copy(model, precision="fp32")
    combination = {name: 0.3 for name in adapters.names if adapters_combine(strategies[int(name[1:])])}
    for active in (*adapters.names, combination, {"a1": 0.5, "a0": 0.5}, None):
        adapters.activate(active)
        victim.refresh()
        expected = logits(model, x)
        slack = 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(victim(x), expected, rtol=1e-3, atol=slack)


def test_an_attack_copy_sees_another_scale_of_tensors_of_the_same_shape() -> None:
    model = make(VIT)
    x = images(model.image_size)
    adapters = with_adapters(model, pt.LoRA(rank=2, alpha=2.0), pt.LoRA(rank=2, alpha=20.0))
    adapters.activate("a0")
    victim = pt.attacks.attack_copy(model, precision="fp32")
    victim(x)
    adapters.activate("a1")
    victim.refresh()
    close(victim(x), logits(model, x))


def test_training_changes_the_active_adapter_alone() -> None:
    model = make(VIT)
    x = images(model.image_size)
    adapters = with_adapters(model, pt.LoRA(rank=2), pt.LoRA(rank=2), pt.Compacter())
    before = {}
    for name in adapters.names:
        adapters.activate(name)
        before[name] = logits(model, x)
    adapters.activate("a1")
    model(x).square().sum().backward()
    torch.optim.SGD(pt.strategies.trainable_parameters(model).values(), lr=0.01).step()
    stepped = logits(model, x)
    assert not torch.equal(stepped, before["a1"])
    adapters.activate("a0")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(logits(model, x), before["a0"])
    adapters.activate("a2")
    assert torch.equal(logits(model, x), before["a2"])
    with torch.no_grad():
        close(adapters(x, ["a1", "a1"]), stepped)
    adapters.activate("a1")
    assert torch.equal(logits(model, x), stepped)


@pytest.mark.slow
@BOTH
def test_each_name_is_saved_and_added_again(
    arch: str, strategies: tuple[Strategy, ...], tmp_path: Path
) -> None:
    model = make(arch)
    x = images(model.image_size)
    adapters = with_adapters(model, *strategies)
    adapters.activate("a1")
    others: Any = make(arch)
    loaded = pt.interchange.AdapterSet(others.module)  # the plain timm model
    for name in adapters.names:
        adapters.save(name, tmp_path / name, notes={"name": name})
        loaded.add(name, tmp_path / name)
    assert (adapters.active, loaded.active) == ("a1", None)
    for name in adapters.names:
        adapters.activate(name)
        loaded.activate(name)
        assert torch.equal(logits(others, x), logits(model, x)), name
        fresh = make(arch)
        pt.load_adapter(fresh, tmp_path / name)
        assert torch.equal(logits(fresh, x), logits(model, x))


def test_the_adapter_that_a_model_carries_gets_a_name() -> None:
    model = pt.adapt(make(VIT), pt.LoRA(rank=2))
    draw(model, 0)
    x = images(model.image_size)
    expected = logits(model, x)
    parameters = list(pt.strategies.trainable_parameters(model).values())
    adapters = pt.interchange.AdapterSet(model)
    with pytest.raises(
        ValueError, match=r"carries LoRA\(rank=2\), which has no name here; give it one with add\(NAME\)"
    ):
        adapters.activate(None)
    adapters.add("first")
    adapters.add("second", pt.Compacter())
    assert (adapters.active, adapters.names) == ("first", ("first", "second"))
    assert all(
        a is b for a, b in zip(parameters, pt.strategies.trainable_parameters(model).values(), strict=True)
    )
    adapters.activate("second")
    adapters.activate("first")
    assert torch.equal(logits(model, x), expected)


def test_gradients_of_a_mixed_batch_reach_the_images_and_nothing_else() -> None:
    model = make(VIT)
    adapters = with_adapters(model, pt.LoRA(rank=2), pt.Compacter())
    x = batch(model, 3)
    expected = []
    for image, name in zip(x, ("a1", None, "a0"), strict=True):
        adapters.activate(name)
        leaf = image[None].clone().requires_grad_()
        expected.append(torch.autograd.grad(model.eval()(leaf).square().sum(), leaf)[0][0])
    leaf = x.clone().requires_grad_()
    adapters(leaf, ["a1", None, "a0"]).square().sum().backward()
    assert leaf.grad is not None
    for found, alone in zip(leaf.grad, expected, strict=True):
        close(found, alone)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_mixed_batch_follows_the_model_to_another_precision() -> None:
    model = make(VIT)
    adapters = with_adapters(model, pt.LoRA(rank=2), pt.BitFit())
    x = batch(model, 2)
    with torch.no_grad():
        before = adapters(x, ["a0", "a1"])
        model.double()
        after = adapters(x.double(), ["a0", "a1"])
    assert after.dtype == torch.float64
    close(after.float(), before)


def test_two_sets_of_adapters_on_copies_do_not_touch_each_other() -> None:
    model = make(VIT)
    adapters = with_adapters(model, pt.BitFit(), pt.BitFit())
    x = images(model.image_size)
    adapters.activate("a0")
    before = logits(model, x)
    other = copy.deepcopy(adapters)
    other.activate("a1")
    draw(other.model, 9)
    other.remove("a0")
    assert torch.equal(logits(model, x), before)
    adapters.activate("a1")
    assert not torch.equal(logits(model, x), logits(other.model, x))


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = make(VIT)
    x = images(model.image_size)
    adapters = with_adapters(
        model, pt.LoRA(rank=2), pt.VisualPrompt(kind="deep", size=2), pt.FullFineTune(where="last:1")
    )
    adapters.activate("a0")
    before = logits(model, x)
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: adapters.add("a0", pt.LoRA()), "there is an adapter 'a0' already"),
        (lambda: adapters.add("", pt.LoRA()), "name must be a text of at least one letter"),
        (lambda: adapters.add("b"), "is 'a0' already"),
        (lambda: adapters.add("b", pt.LoRA(targets=("nothing",))), "matches no Linear"),
        (lambda: adapters.activate("b"), "there is no adapter 'b'; there are a0, a1, a2"),
        (lambda: adapters.activate({"a0": 1.0, "b": 1.0}), "there is no adapter 'b'"),
        (lambda: adapters.activate({}), "the combination is empty"),
        (lambda: adapters.activate({"a0": float("nan")}), "must be a finite number"),
        (lambda: adapters.activate({"a0": 1.0}, head="a2"), "head must be one of a0, got 'a2'"),
        (lambda: adapters.activate("a2", head="a0"), "is for combinations"),
        (lambda: adapters.activate({"a0": 0.5, "a1": 0.5}), "prompt tokens take no part in combinations"),
        (lambda: adapters.remove("b"), "there is no adapter 'b'"),
        (lambda: adapters(x, ["a0"]), "one entry an image, and at least one: got 1 for 2"),
        (lambda: adapters(x, ["a0", "b"]), "there is no adapter 'b'"),
    ]
    for act, message in refused:
        with pytest.raises(ValueError, match=message):
            act()
        assert (adapters.active, adapters.names) == ("a0", ("a0", "a1", "a2"))
        assert torch.equal(logits(model, x), before)
    adapters.activate({"a0": 0.5, "a2": 0.5})
    with pytest.raises(ValueError, match="it can be neither saved as one nor trained; activate one name"):
        pt.save_adapter(model, tmp_path / "combination")
    assert not (tmp_path / "combination").exists()
    pt.remove_adapter(model)
    with pytest.raises(ValueError, match="without this set; make a new one"):
        adapters.activate("a0")


def test_statistics_that_would_have_a_negative_variance_are_refused() -> None:
    model = make(CONVNET)
    adapters = with_adapters(model, pt.strategies.NormTune(bn="adapt"), pt.strategies.NormTune(bn="adapt"))
    x = images(model.image_size)
    adapters.activate("a0")
    before = logits(model, x)
    with pytest.raises(
        ValueError, match=r"would make a variance in .* negative; for adapters with bn='adapt'"
    ):
        adapters.activate({"a0": -30.0, "a1": 1.0}, head="a0")
    assert torch.equal(logits(model, x), before)


def test_adapters_of_peft_switch_and_mix_but_do_not_combine() -> None:
    model = make("hf_vit")
    names = [name for name, part in model.module.named_modules() if name.endswith(("q_proj", "fc1"))]
    loha = pt.strategies.Peft({"peft_type": "LOHA", "r": 2, "target_modules": names})
    adapters = with_adapters(model, loha, loha, pt.LoRA(rank=2))
    x = images(model.image_size)
    expected = []
    for image, name in zip(x, ("a1", "a2"), strict=True):
        adapters.activate(name)
        expected.append(logits(model, image[None])[0])
    with torch.no_grad():
        found = adapters(x, ["a1", "a2"])
    for row, alone in zip(found, expected, strict=True):
        close(row, alone)
    with pytest.raises(ValueError, match="takes no part in combinations, because peft alone knows"):
        adapters.activate({"a0": 0.5, "a1": 0.5})

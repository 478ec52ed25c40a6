"""Weighted combinations of the adapters of a set."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from tests.contracts.backbones import images
from tests.contracts.contract import logits
from tests.unit.interchange.test_adapter_set import CONVNET, VIT, close, draw, make, with_adapters


@pytest.mark.parametrize("arch", [VIT, CONVNET])
def test_a_combination_is_the_weighted_sum_of_what_each_adapter_does_to_the_weights(arch: str) -> None:
    strategies = (pt.LoRA(rank=2), pt.LoRA(rank=3), pt.IA3(), pt.BitFit(), pt.FullFineTune(bn="adapt"))
    weights = dict(zip(("a0", "a1", "a2", "a3", "a4"), (0.4, 0.1, 0.2, 0.2, 0.1), strict=True))
    model = make(arch)
    adapters = with_adapters(model, *strategies)
    plain = make(arch).module.state_dict()
    deltas: dict[str, Tensor] = {
        name: torch.zeros_like(value, dtype=torch.float64) for name, value in plain.items()
    }
    for number, weight in enumerate(weights.values()):
        merged = pt.adapt(make(arch), strategies[number], seed=number)
        draw(merged, number)
        for own, value in pt.merge_adapter(merged).state_dict().items():
            own = own.removeprefix("module.")
            deltas[own] += weight * (value.double() - plain[own].double())
    adapters.activate(weights)
    found = model.module.state_dict()
    assert list(found) == list(plain)
    for name, delta in deltas.items():
        torch.testing.assert_close(found[name].double(), plain[name].double() + delta, rtol=1e-5, atol=1e-6)
    x = images(model.image_size)
    combined = logits(model, x)
    pt.merge_adapter(model)
    assert torch.equal(logits(model, x), combined)


def test_a_combination_of_inserted_modules_adds_their_changes_at_each_place() -> None:
    strategies = (
        pt.Compacter(),
        pt.Adapter(style="pfeiffer"),
        pt.Compacter(reads="sum"),
        pt.VisualPrompt(size=4),
    )
    weights = (0.5, 0.25, 0.25, -0.5)
    model = make(VIT)
    adapters = with_adapters(model, *strategies)
    adapters.activate({f"a{number}": weight for number, weight in enumerate(weights)}, head="a1")

    # By hand: hooks that call the modules of models with one adapter each.
    singles = []
    for number, strategy in enumerate(strategies):
        single = pt.adapt(make(VIT), strategy, seed=number)
        draw(single, number)
        singles.append(single.module)
    plain: Any = make(VIT)
    plain.module.head.load_state_dict(singles[1].head.state_dict())
    streams: dict[str, Tensor] = {}

    def change(site: pt.backbones.Site) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _args: Any, h: Tensor) -> Tensor:
            first, second, third = (single.get_submodule(site.module) for single in singles[:3])
            total = h + weights[0] * (first.compacter(h) - h)
            if site.branch == "mlp":
                total = total + weights[1] * (second.bottleneck(h) - h)
            stream = streams[f"{site.block}.norm{1 if site.branch == 'attention' else 2}"]
            return total + weights[2] * (third.compacter(h + stream, h) - h)

        return hook

    for name, part in plain.module.named_modules():
        if name.startswith("blocks.") and name.endswith(("norm1", "norm2")):
            part.register_forward_pre_hook(lambda _m, args, name=name: streams.__setitem__(name, args[0]))
    for site in plain.sites:
        plain.module.get_submodule(site.module).register_forward_hook(change(site))
    border: Any = singles[3].prompt
    plain.module.register_forward_pre_hook(
        lambda _m, args: (args[0] + weights[3] * (border(args[0]) - args[0]),)
    )
    x = images(model.image_size)
    close(logits(model, x), logits(plain, x))
    with pytest.raises(ValueError, match="cannot be merged: it holds inserted modules"):
        pt.merge_adapter(model)


def test_the_head_of_a_combination_is_the_mean_of_the_heads_or_the_one_named() -> None:
    model = make(VIT)
    adapters = with_adapters(model, pt.LinearProbe(), pt.BitFit())
    heads = []
    for name in adapters.names:
        adapters.activate(name)
        heads.append(model.module.head.weight.detach().clone())
    adapters.activate({"a0": 3.0, "a1": 1.0})
    torch.testing.assert_close(model.module.head.weight, nn.Parameter(0.75 * heads[0] + 0.25 * heads[1]))
    adapters.activate({"a0": 1.0, "a1": -1.0}, head="a1")
    assert torch.equal(model.module.head.weight, heads[1])
    with pytest.raises(
        ValueError, match="give no mean of the adapters' heads; say whose head to use: head='a0'"
    ):
        adapters.activate({"a0": 1.0, "a1": -1.0})


def test_a_combination_of_one_with_weight_1_is_that_adapter_merged() -> None:
    model = make(VIT)
    x = images(model.image_size)
    adapters = with_adapters(model, pt.LoRA(rank=2) + pt.BitFit())
    adapters.activate("a0")
    alone = logits(model, x)
    adapters.activate({"a0": 1.0})
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    close(logits(model, x), alone)
    adapters.activate("a0")
    assert torch.equal(logits(model, x), alone)

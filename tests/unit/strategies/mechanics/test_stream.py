"""Bottlenecks that read the residual stream compute their equation, and leave nothing behind."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.backbones.sites import first_of
from paretune.strategies import Strategy
from paretune.strategies.adapter import Bottleneck
from tests.contracts.backbones import images, make
from tests.contracts.contract import check, logits, perturb

READING = (
    pt.Adapter(style="pfeiffer", reads="stream"),
    pt.Adapter(reads="sum", activation="leaky_relu"),
    pt.Compacter(placement="mlp", reads="sum"),
    pt.Compacter(shared_rule=False, activation="tanh"),
    pt.Compacter(reads="stream") + pt.Adapter(reads="sum"),
)


@pytest.mark.some(2)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", READING, ids=repr)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hf_vit", "hf_dinov2"])
def test_they_keep_the_contract_of_every_strategy(name: str, strategy: Strategy, tmp_path: Path) -> None:
    check(make(name), strategy, tmp_path / "adapter")


@pytest.mark.parametrize("reads", ["branch", "stream", "sum"])
@pytest.mark.parametrize("kind", [pt.Adapter, pt.Compacter])
def test_the_change_is_a_function_of_what_is_read(kind: type[Strategy], reads: str) -> None:
    backbone = make("vit_tiny_patch16_224")
    model = pt.adapt(backbone, kind(reads=reads, where="first:1"))
    perturb(model, 0.2)
    block = backbone.module.blocks[0]
    seen = {}
    hooks = [
        block.register_forward_pre_hook(lambda _module, args: seen.__setitem__("x", args[0])),
        block.ls1.register_forward_hook(lambda _module, _args, output: seen.__setitem__("attention", output)),
        block.ls2.register_forward_hook(lambda _module, _args, output: seen.__setitem__("mlp", output)),
        block.register_forward_hook(lambda _module, _args, output: seen.__setitem__("after", output)),
    ]
    logits(model, images(backbone.image_size))
    for hook in hooks:
        hook.remove()

    def changed(place: torch.nn.Module, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        own = getattr(place, "bottleneck", None) or getattr(place, "compacter", None)
        z = {"branch": h, "stream": x, "sum": h + x}[reads]
        assert own is not None
        return h + own(z) - z

    stream = seen["x"] + changed(block.drop_path1, seen["attention"], seen["x"])
    expected = stream + changed(block.drop_path2, seen["mlp"], stream)
    torch.testing.assert_close(seen["after"], expected, rtol=1e-4, atol=1e-4)


def test_no_activation_is_kept_and_removal_takes_the_hooks_of_the_norms_too() -> None:
    backbone = make("vit_tiny_patch16_224")
    pt.adapt(backbone, pt.Adapter(reads="sum"))
    backbone(images(backbone.image_size)).sum().backward()
    copy.deepcopy(backbone)  # which fails on a kept activation, as it is no leaf of autograd
    pt.remove_adapter(backbone)
    for part in backbone.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


@pytest.mark.parametrize("name", ["resnet18", "swinv2_tiny_window8_256", "hf_convnext"])
@pytest.mark.parametrize("strategy", [pt.Adapter(reads="sum"), pt.Compacter(reads="stream")], ids=repr)
def test_a_block_whose_stream_is_not_known_is_refused(name: str, strategy: Strategy) -> None:
    backbone = make(name)
    before = list(backbone.module.state_dict())
    with pytest.raises(ValueError, match=r"reads: the residual stream in front of .* is not known"):
        pt.adapt(backbone, strategy)
    assert list(backbone.module.state_dict()) == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.modules())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reads": "all"}, "reads must be 'branch', 'stream' or 'sum', got 'all'"),
        ({"reads": "sum", "style": "parallel"}, "style='parallel' reads the input of the MLP"),
        ({"activation": "cube"}, "activation must be one of gelu"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pt.Adapter(**fields)


def test_a_compacter_is_part_of_a_union() -> None:
    """Its shared rule, which several adapters name, trains once."""
    model = pt.adapt(make("hf_vit"), pt.Compacter() + pt.BitFit())
    assert sum(name.endswith("rule") for name in pt.strategies.trainable_parameters(model)) == 1


def test_rules_of_their_own_are_one_for_each_projection() -> None:
    model = pt.adapt(make("hf_vit"), pt.Compacter(shared_rule=False))
    rules = [
        value for name, value in pt.strategies.trainable_parameters(model).items() if name.endswith("rule")
    ]
    assert len(rules) == 2 * len(model.sites)
    assert len({rule.data_ptr() for rule in rules}) == len(rules)


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "swin_tiny_patch4_window7_224",
        "tv_vit",
        "tv_swin",
        "hf_beit",
        "hf_dinov2",
        "hf_swin",
    ],
)
def test_what_is_read_is_what_a_block_returns_without_its_branches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make(name)
    blocks = {site.block for site in base.sites}
    style: Any = "pfeiffer" if name == "hf_swin" else "houlsby"
    model = pt.adapt(base, pt.Adapter(style=style, reads="stream"))
    read: list[Tensor] = []
    compared = []

    def without_branch(_adapter: Bottleneck, x: Tensor, branch: Tensor) -> Tensor:
        read.append(x)
        return torch.zeros_like(branch)

    def compare(_block: nn.Module, _args: Any, output: Any) -> None:
        for stream in read:
            torch.testing.assert_close(stream.reshape(first_of(output).shape), first_of(output))
        compared.append(len(read))
        read.clear()

    monkeypatch.setattr(Bottleneck, "forward", without_branch)
    for block in blocks:
        model.module.get_submodule(block).register_forward_hook(compare)
    logits(model, images(base.image_size))
    assert compared == [2 if style == "houlsby" else 1] * len(blocks)

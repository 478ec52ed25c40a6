"""SSF scales and shifts the output of each operation, keeps to what has an effect, and merges into weights and biases."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.interchange import save_loralib
from paretune.strategies import SSF, Strategy
from paretune.strategies.ssf import ScaleDelta, ShiftDelta
from tests.contracts.attention import make_attention
from tests.contracts.backbones import images, make
from tests.contracts.contract import check, logits, perturb
from tests.contracts.tied import TIES, make_tied

EVERY_LAYER = nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d


def adapted(base: pt.Backbone, strategy: Strategy | None = None) -> pt.Backbone:
    model = pt.adapt(copy.deepcopy(base), strategy or SSF()).double()
    perturb(model, 0.3)
    return model


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """γ and β of each channel that ``layer`` outputs."""
    scale, shift = layer.weight.new_ones(len(layer.weight)), layer.weight.new_zeros(len(layer.weight))
    for delta in (delta for each in layer.parametrizations.values() for delta in each):
        if isinstance(delta, ScaleDelta):
            scale = delta.rows.spread(delta.ssf_scale, 1.0)
        else:
            assert isinstance(delta, ShiftDelta)
            shift = delta.rows.spread(delta.ssf_shift, 0.0)
    return scale, shift


@pytest.mark.parametrize(
    "arch", ["test_vit", "hf_vit", "swin_tiny_patch4_window7_224", "resnet18", "convnext_atto"]
)
def test_each_operation_is_scaled_and_shifted(arch: str) -> None:
    base = make(arch)
    model = adapted(base)
    plain = copy.deepcopy(base).double().module
    merged = pt.merge_adapter(copy.deepcopy(model)).module  # type: ignore[attr-defined]
    seen = set()

    def compare(name: str, layer: nn.Module) -> Any:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            scale, shift = factors(layer)
            after = plain.get_submodule(name)(*args)
            channels = 1 if "2d" in type(layer).__name__ else -1
            expected = after.movedim(channels, -1) * scale + shift
            torch.testing.assert_close(output.movedim(channels, -1), expected)
            torch.testing.assert_close(merged.get_submodule(name)(*args), output)
            seen.add(name)

        return hook

    for name, layer in model.module.named_modules():
        if isinstance(layer, EVERY_LAYER) and name != base.head:
            layer.register_forward_hook(compare(name, layer))
    logits(model, images(base.image_size).double())
    layers = {name for name, layer in plain.named_modules() if isinstance(layer, EVERY_LAYER)}
    assert seen == layers - {base.head}


ATTENTIONS = (
    "test_vit", "hf_vit", "pvt_v2_b0", "coatnet_pico_rw_224", "xcit_nano_12_p16_224", "mobilevitv2_050", "cait_xxs24_224",
)  # fmt: skip


@pytest.mark.some(5)
@pytest.mark.parametrize("arch", [*ATTENTIONS, "poolformer_s12", "mixer_s32_224", "maxvit_rmlp_pico_rw_256"])
def test_nothing_undoes_a_shift(arch: str) -> None:
    base = make(arch)
    model = adapted(base)
    x = torch.rand(2, 3, base.image_size, base.image_size, generator=torch.Generator().manual_seed(1))
    shifts = {
        name: p for name, p in pt.strategies.trainable_parameters(model).items() if name.endswith("ssf_shift")
    }
    slopes = torch.autograd.grad(model(x.double()).square().sum(), list(shifts.values()))
    largest = max(float(slope.abs().max()) for slope in slopes)
    for name, slope in zip(shifts, slopes, strict=True):
        # Rectifiers may silence some units.
        assert float(slope.abs().median()) > 1e-12 * largest, name
        if arch in ATTENTIONS and re.search("attn|attention", name):
            assert float(slope.abs().min()) > 1e-14 * largest, name


def test_queries_and_keys_that_are_normalised_by_channel_are_shifted_but_not_scaled() -> None:
    model = adapted(make("xcit_nano_12_p16_224"))
    qkv: Any = model.module.get_submodule("blocks.0.attn.qkv")
    scale, shift = factors(qkv)
    assert [bool((part != 1).all()) for part in scale.chunk(3)] == [False, False, True]
    assert shift.all()
    x = images(32).double()
    before = logits(model, x)
    with torch.no_grad():  # why: the norms undo it
        for tensor in (
            qkv.parametrizations.weight.original,
            qkv.parametrizations.bias.original,
            shift_of(qkv),
        ):
            tensor.chunk(3)[1].mul_(5.0)
    torch.testing.assert_close(logits(model, x), before)


def shift_of(layer: Any) -> nn.Parameter:
    found: nn.Parameter = layer.parametrizations.bias[1].ssf_shift
    return found


def shifts(model: nn.Module) -> dict[str, int]:
    """Number of shifted channels of each layer."""
    named = model.named_parameters()
    return {
        name.split(".parametrizations")[0]: len(each) for name, each in named if name.endswith("ssf_shift")
    }


def test_keys_are_scaled_but_not_shifted() -> None:
    model = adapted(make("test_vit"))
    qkv: Any = model.module.get_submodule("blocks.0.attn.qkv")
    scale, shift = factors(qkv)
    assert not (scale == 1).any()
    assert [bool(part.any()) for part in shift.chunk(3)] == [True, False, True]
    x = images(160).double()
    before = logits(model, x)
    with torch.no_grad():
        qkv.parametrizations.bias.original.chunk(3)[1].add_(5.0)  # why: the softmax undoes it
    torch.testing.assert_close(logits(model, x), before)
    hugging_face = shifts(adapted(make("hf_vit")))
    assert not [name for name in hugging_face if name.endswith(("key", "k_proj"))]
    assert [name for name in hugging_face if name.endswith(("query", "q_proj"))]


def test_projections_of_an_attention_module_keep_to_it_too() -> None:
    for name, count in (("pooler", 2), ("pooler of another width", 1)):
        model = adapted(make_attention(name))
        attention: Any = model.module.attn
        before = make_attention(name).double().module.get_parameter("attn.in_proj_bias")
        pt.merge_adapter(model)
        after = attention.in_proj_bias
        deltas = pt.adapt(make_attention(name), SSF()).module.attn.parametrizations.in_proj_bias  # type: ignore[union-attr]
        shifted = [delta.rows.parts for delta in deltas if isinstance(delta, ShiftDelta)]
        assert shifted == (
            [(True, False, True)] if count == 2 else [(True, False, False), (False, False, True)]
        )
        ratio = after.chunk(3)[1] / before.chunk(3)[1]
        assert not torch.allclose(ratio, torch.ones_like(ratio))  # scaled


def test_keys_that_are_normalised_are_shifted() -> None:
    options: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}
    net = timm.create_model("vit_tiny_patch16_224", qk_norm=True, **options)
    base = pt.Backbone(net.eval(), image_size=32)
    found = shifts(pt.adapt(copy.deepcopy(base), SSF()).module)
    assert found["blocks.0.attn.qkv"] == 3 * 24
    assert "blocks.0.attn.q_norm" in found
    assert "blocks.0.attn.k_norm" not in found
    model = adapted(base)
    shift = model.module.get_parameter("blocks.0.attn.qkv.parametrizations.bias.1.ssf_shift")
    x = images(32).double()
    (slope,) = torch.autograd.grad(model(x).square().sum(), shift)
    assert float(slope.abs().min()) > 1e-9 * float(slope.abs().max())


def test_a_layer_without_a_bias_is_scaled_only() -> None:
    model = pt.adapt(make("resnet18"), SSF())
    convolution, norm = (
        set(pt.strategies.trainable_parameters(model)) & {*names}
        for names in (
            (f"conv1.parametrizations.{each}" for each in ("weight.0.ssf_scale", "bias.1.ssf_shift")),
            (f"bn1.parametrizations.{each}" for each in ("weight.0.ssf_scale", "bias.1.ssf_shift")),
        )
    )
    assert len(convolution) == 1
    assert len(norm) == 2
    assert not any("bias" in name for name, _ in model.module.get_submodule("conv1").named_parameters())


def test_where_selects_and_finds_nothing() -> None:
    model = pt.adapt(make("test_vit"), SSF(where="last:1 & mlp"))
    assert {
        name.split(".parametrizations")[0] for name in pt.strategies.trainable_parameters(model, head=False)
    } == {
        "blocks.5.mlp.fc1",
        "blocks.5.mlp.fc2",
    }
    with pytest.raises(
        ValueError, match=r"SSF: no Linear, Conv2d or norm outside the head 'head' lies in where="
    ):
        pt.adapt(make("test_vit"), SSF(where="head"))


def test_batch_norms_that_would_undo_the_scale_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SSF: a scale of 'conv1' has no effect, because with bn='adapt'"):
        pt.adapt(make("resnet18"), SSF(bn="adapt"))
    model = pt.adapt(make("resnet18"), SSF(bn="adapt", where="*bn*"))
    assert all(".bn" in f".{name}" for name in pt.strategies.trainable_parameters(model, head=False))


def test_a_bias_of_two_weights_is_refused_and_nothing_changes() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    net[1].bias = net[0].bias  # type: ignore[assignment]
    base = pt.Backbone(net.eval(), image_size=8, head="4")
    names = list(base.module.state_dict())
    with pytest.raises(
        ValueError, match="SSF: '1' shares its bias with another layer, which is scaled in another way"
    ):
        pt.adapt(base, SSF())
    assert list(base.module.state_dict()) == names
    pt.adapt(base, SSF(where="0"))


@pytest.mark.parametrize("tie", [tie for tie in TIES if not tie.startswith("bias")])
def test_layers_that_share_a_weight_share_its_scale(tie: str, tmp_path: Path) -> None:
    check(make_tied(tie), SSF(), tmp_path / "adapter")


@pytest.mark.parametrize(
    "strategy", [SSF(), pt.IA3() + SSF(), SSF() + pt.IA3(), pt.LoRA(rank=2) + SSF()], ids=repr
)
def test_formats_that_have_no_such_strategy_say_so(strategy: Strategy, tmp_path: Path) -> None:
    model = pt.adapt(make("test_vit"), strategy)
    perturb(model)
    x = images(160)
    expected = logits(model, x)
    pt.save_adapter(model, tmp_path / "adapter")
    reason = json.loads((tmp_path / "adapter" / "paretune.json").read_text())["peft_reason"]
    assert "peft has no tuner for" in reason
    assert "SSF()" in reason
    assert torch.equal(logits(pt.load_adapter(make("test_vit"), tmp_path / "adapter"), x), expected)
    with pytest.raises(ValueError, match="loralib has LoRA only"):
        save_loralib(model, tmp_path / "lora.pt")

"""State dicts of loralib come in and go out; loralib itself is the judge."""

import copy
from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import paretune as pt
from paretune.interchange import import_adapter, save_loralib
from paretune.strategies import Strategy
from tests.contracts.backbones import make
from tests.unit.interchange.helpers import MULTIPLIED_OUT, adapted, apart, assert_same, logits

QV = [True, False, True]


def with_loralib(arch: str, layers: dict[str, dict[str, Any]]) -> tuple[pt.Backbone, nn.Module]:
    """The plain model, and one with layers of loralib in the places named, unmerged; every factor has moved."""
    base = make(arch)
    model = copy.deepcopy(base.module)
    draw = torch.Generator().manual_seed(1)
    for name, options in layers.items():
        old: Any = model.get_submodule(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            new = layer_of_loralib(old, dict(options))
        for key, value in old.state_dict().items():
            (new.conv if isinstance(old, nn.Conv2d) else new).get_parameter(key).data.copy_(value)
        new.lora_B.data.copy_(0.05 * torch.randn(new.lora_B.shape, generator=draw))
        model.set_submodule(name, new)
    return base, model.train()  # its training mode is the unmerged one


def layer_of_loralib(old: Any, options: dict[str, Any]) -> Any:
    if isinstance(old, nn.Conv2d):
        geometry = {
            key: getattr(old, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        bias = old.bias is not None
        return loralib.Conv2d(
            old.in_channels, old.out_channels, old.kernel_size[0], bias=bias, **geometry, **options
        )
    kind = loralib.MergedLinear if "enable_lora" in options else loralib.Linear
    return kind(old.in_features, old.out_features, bias=old.bias is not None, **options)


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save(tensors, path)
    return path


CASES: dict[str, tuple[str, dict[str, dict[str, Any]], dict[str, Any]]] = {
    "linear": (
        "test_vit",
        {"blocks.0.mlp.fc1": {"r": 2, "lora_alpha": 6}, "blocks.1.mlp.fc1": {"r": 4, "lora_alpha": 6}},
        {"alpha": 6},
    ),
    "q and v of a fused layer": (
        "test_vit",
        {
            "blocks.0.attn.qkv": {"r": 2, "lora_alpha": 6, "enable_lora": QV},
            "blocks.2.attn.qkv": {"r": 3, "lora_alpha": 6, "enable_lora": QV},
            "blocks.0.attn.proj": {"r": 3, "lora_alpha": 6},
        },
        {"alpha": 6, "enable_lora": QV},
    ),
    "all parts of a fused layer": (
        "test_vit",
        {"blocks.0.attn.qkv": {"r": 2, "lora_alpha": 6, "enable_lora": [True] * 3}},
        {"alpha": 6},
    ),
    "halves of a layer that is not q, k, v": (
        "test_vit",
        {"blocks.0.mlp.fc1": {"r": 2, "lora_alpha": 6, "enable_lora": [False, True]}},
        {"alpha": 6, "enable_lora": [False, True]},
    ),
    "pointwise convolutions": (
        "convnext_atto",
        {"stages.0.blocks.0.mlp.fc1": {"r": 2, "lora_alpha": 6}},
        {"alpha": 6},
    ),
    "3 × 3 convolutions": (
        "resnet26d",
        {"layer1.0.conv2": {"r": 2, "lora_alpha": 6}, "layer4.0.conv2": {"r": 1, "lora_alpha": 6}},
        {"alpha": 6},
    ),
    "a depthwise convolution": (
        "convnext_atto",
        {"stages.0.blocks.0.conv_dw": {"r": 1, "lora_alpha": 6}},
        {"alpha": 6},
    ),
    "a grouped convolution": ("resnext50_32x4d", {"layer1.0.conv2": {"r": 2, "lora_alpha": 6}}, {"alpha": 6}),
    "the head": ("test_vit", {"head": {"r": 2, "lora_alpha": 6}}, {"alpha": 6}),
}
# Here the importer multiplies factors out.
ROUNDED = {"a depthwise convolution", "a grouped convolution", "3 × 3 convolutions", "the head"}


@pytest.mark.some(6)
@pytest.mark.parametrize(
    ("name", "bias"),
    [*((name, "none") for name in CASES)]
    + [(name, bias) for name in ("linear", "3 × 3 convolutions") for bias in ("all", "lora_only")],
)
def test_what_loralib_saved_has_the_same_logits_here(name: str, bias: str, tmp_path: Path) -> None:
    arch, layers, options = CASES[name]
    base, theirs = with_loralib(arch, layers)
    if bias != "none":
        loralib.mark_only_lora_as_trainable(theirs, bias=bias)
        for key, parameter in theirs.named_parameters():
            if key.endswith("bias") and parameter.requires_grad:
                parameter.data.add_(0.01)
    path = save(loralib.lora_state_dict(theirs, bias=bias), tmp_path / "lora.pt")
    model = import_adapter(make(arch), path, **options)
    expected = logits(theirs, base)
    assert apart(expected, logits(base, base))
    assert_same(logits(model, base), expected, MULTIPLIED_OUT if name in ROUNDED else 1e-10)


@pytest.mark.parametrize("merged", [False, True])
def test_a_whole_state_dict_is_read_merged_or_not(merged: bool, tmp_path: Path) -> None:
    """loralib merges when a layer is put into evaluation mode, and its state dict then holds merged weights and factors."""
    arch, layers, options = CASES["q and v of a fused layer"]
    base, theirs = with_loralib(arch, layers)
    expected = logits(theirs, base)
    theirs.train(not merged)
    state = theirs.state_dict()
    assert (
        torch.equal(state["blocks.0.attn.qkv.weight"], base.module.state_dict()["blocks.0.attn.qkv.weight"])
        != merged
    )
    model = import_adapter(make(arch), save(state, tmp_path / "all.pt"), **options)
    assert_same(logits(model, base), expected)


def test_a_whole_state_dict_of_another_base_is_refused(tmp_path: Path) -> None:
    arch, layers, options = CASES["linear"]
    _, theirs = with_loralib(arch, layers)
    model = make(arch, seed=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = save(theirs.state_dict(), tmp_path / "all.pt")
    with pytest.raises(ValueError, match=r"is of another base: \d+ tensors"):
        import_adapter(model, path, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {}, "do not hold lora_alpha; pass alpha="),
        ("linear", {"alpha": -1}, "a number above 0; got -1"),
        ("q and v of a fused layer", {"alpha": 6}, "2 of 3 parts are enabled; pass enable_lora="),
        (
            "q and v of a fused layer",
            {"alpha": 6, "enable_lora": [True, True, True]},
            "2 of 3 parts are enabled",
        ),
        (
            "3 × 3 convolutions",
            {"alpha": 6, "format": "peft"},
            "alpha and enable_lora are for files of loralib",
        ),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arch, layers, _ = CASES[name]
    _, theirs = with_loralib(arch, layers)
    path = save(loralib.lora_state_dict(theirs), tmp_path / "lora.pt")
    with pytest.raises(ValueError, match=message):
        import_adapter(make(arch), path, **options)


WRITTEN: dict[str, tuple[str, Strategy, dict[str, Any]]] = {
    "linear": ("test_vit", pt.LoRA(rank=2, alpha=3, targets=("fc1", "fc2")), {"fc": {}}),
    "parts": ("test_vit", pt.LoRA(rank=2, targets=("q", "v", "*.attn.proj")), {"qkv": {"enable_lora": QV}, "proj": {}}),
    "rslora": ("test_vit", pt.LoRA(rank=4, rslora=True, targets="fc1", rank_pattern={"blocks.0.*": 2}), {"fc1": {}}),
    "biases": ("test_vit", pt.LoRA(rank=2, targets=("fc1",)) + pt.BitFit(), {"fc1": {}}),
    "convolutions": ("resnet26d", pt.LoRA(rank=2, targets=("*.conv?", "conv1.0")), {"conv": {}}),
    "depthwise": ("convnext_atto", pt.LoRA(rank=2, targets=("*.conv_dw",)), {"conv_dw": {}}),
}  # fmt: skip


@pytest.mark.some(4)
@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, ".safetensors") for name in WRITTEN), ("parts", ".pt")]
)
def test_what_we_write_loads_into_loralib_and_comes_back(name: str, suffix: str, tmp_path: Path) -> None:
    """The names are loralib's, its model has the same logits, and so has ours after the way back."""
    arch, strategy, options = WRITTEN[name]
    ours = adapted(arch, strategy)
    path = tmp_path / f"lora{suffix}"
    alpha = save_loralib(ours, path)
    tensors = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)

    layers = {}
    for key, value in tensors.items():
        if key.endswith(".lora_B"):
            layer = key.removesuffix(".lora_B")
            which = next(own for part, own in options.items() if part in layer)
            kernel: int = getattr(make(arch).module.get_submodule(layer), "kernel_size", (1,))[0]
            layers[layer] = {"r": value.shape[1] // kernel, "lora_alpha": alpha, **which}
    base, theirs = with_loralib(arch, layers)
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert not [key for key in missing if "lora_" in key]
    expected = logits(ours, base)
    # B holds what is left of each layer's own alpha / rank, rounded.
    assert_same(logits(theirs, base), expected, MULTIPLIED_OUT if name in ("rslora", "depthwise") else 1e-10)

    said = {} if suffix == ".safetensors" else {"alpha": alpha} | options.get("qkv", {})
    back = import_adapter(make(arch), path, **said)
    assert_same(logits(back, base), logits(theirs, base), MULTIPLIED_OUT if name == "depthwise" else 1e-10)
    kept = {"linear", "parts", "biases", "convolutions"}
    if name in kept:  # the same factors, not only the same product
        mine, again = (
            {key: value for key, value in model.module.state_dict().items() if "lora_" in key}
            for model in (ours, back)
        )
        assert mine.keys() == again.keys()
        assert all(torch.equal(mine[key], again[key]) for key in mine)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (pt.BitFit(), r"loralib has LoRA only, and the model carries BitFit\(\)"),
        (pt.IA3(), "carries something else"),
        (pt.LoRA(rank=2) + pt.strategies.NormTune(), "loralib has no place for blocks.0.norm1.weight"),
        (pt.LoRA(rank=2, bn="adapt"), "running statistics"),
    ],
    ids=str,
)
def test_what_loralib_has_not_is_refused(strategy: Strategy, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_loralib(adapted("test_vit", strategy), tmp_path / "lora.pt")
    assert not list(tmp_path.iterdir())


def test_the_name_says_the_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.pt"):
        save_loralib(adapted("test_vit", pt.LoRA(rank=2)), tmp_path / "lora.bin")

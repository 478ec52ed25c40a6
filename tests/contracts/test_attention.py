"""Projections that an attention module holds itself are weights like any other."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import paretune as pt
from paretune.interchange import save_loralib
from paretune.strategies import SSF, Strategy
from tests.contracts.attention import ATTENTION, make_attention
from tests.contracts.backbones import images
from tests.contracts.contract import check, logits, perturb

STRATEGIES = [
    pt.LoRA(rank=2),
    pt.LoRA(rank=2, targets=("q", "v")),
    pt.LoRA(rank=2, targets="k", dropout=0.2),
    pt.IA3(targets=("k", "v")),
    pt.IA3(targets=("q", "v", "o")),
    SSF(),
    pt.BitFit(),
    pt.FullFineTune(),
    pt.LoRA(rank=2, targets="v") + pt.LoRA(rank=1, targets="o") + pt.IA3(targets=("v",)) + pt.BitFit(),
]
KNOWN = [name for name in ATTENTION if name != "unknown"]


@pytest.mark.some
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("name", KNOWN)
def test_the_contract_holds(name: str, strategy: Strategy, tmp_path: Path) -> None:
    base = make_attention(name)
    without_bias = isinstance(strategy, pt.BitFit) and name == "pooler without biases"
    check(base, strategy, tmp_path / "adapter")
    model = pt.adapt(copy.deepcopy(base), strategy)
    outside = pt.strategies.trainable_parameters(model, head=False)
    assert without_bias or any("attn" in key for key in outside), outside


@pytest.mark.some
@pytest.mark.parametrize(
    "strategy", [pt.LoRA(rank=2, targets=("q", "v")), pt.IA3(targets=("q", "v"))], ids=repr
)
@pytest.mark.parametrize("name", KNOWN)
def test_the_parts_that_are_not_named_stay_as_they_are(name: str, strategy: Strategy) -> None:
    base = make_attention(name)
    model = pt.adapt(copy.deepcopy(base), strategy)
    perturb(model, 0.5)
    merged = pt.merge_adapter(model).module.state_dict()
    for key, before in base.module.state_dict().items():
        parts = {}
        if key.endswith(("in_proj_weight", "in_proj_bias")):
            parts = dict(zip("qkv", zip(before.chunk(3), merged[key].chunk(3), strict=True), strict=True))
        elif key.endswith("_proj_weight"):
            parts = {key[-len("q_proj_weight")]: (before, merged[key])}
        changes = {part for part, (old, new) in parts.items() if not torch.equal(old, new)}
        bias_stays = key.endswith("bias") and isinstance(strategy, pt.LoRA)
        assert changes == (set() if bias_stays else set(parts) & {"q", "v"}), key


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["encoder", "encoder, norm first"])
def test_the_fused_layer_of_torch_sees_the_adapter(name: str, grad: bool) -> None:
    base, x = make_attention(name), images(32)
    model = pt.adapt(copy.deepcopy(base), pt.LoRA(rank=2, targets=("q", "k", "v", "o", "fc1", "fc2")))
    perturb(model, 0.5)
    with torch.set_grad_enabled(grad):
        found = model(x).detach()
    assert not torch.allclose(found, logits(base, x), atol=1e-3)
    torch.testing.assert_close(found, logits(pt.merge_adapter(model), x))


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("encoder.layers.0.self_attn", {"encoder.layers.0.self_attn"}),
        ("*.self_attn.in_proj_weight", {"encoder.layers.0.self_attn", "encoder.layers.1.self_attn"}),
        ("fc1", {"encoder.layers.0.linear1", "encoder.layers.1.linear1"}),
        ("conv", {"stem"}),
    ],
)
def test_a_pattern_names_the_attention_or_its_projection(target: str, names: set[str]) -> None:
    strategy = pt.LoRA(rank=2, targets=target, rank_pattern={target: 3} if "." in target else {})
    model = pt.adapt(make_attention("encoder"), strategy)
    outside = pt.strategies.trainable_parameters(model, head=False)
    assert {name.partition(".parametrizations.")[0] for name in outside} == names
    if "." in target:
        assert {value.shape[0] for name, value in outside.items() if name.endswith("lora_A")} == {3}


def test_hidden_units_of_an_mlp_that_is_a_row_of_layers_have_scales() -> None:
    model = pt.adapt(make_attention("open_clip"), pt.IA3(targets="hidden"))
    outside = pt.strategies.trainable_parameters(model, head=False)
    assert {name.partition(".parametrizations.")[0] for name in outside} == {
        "blocks.0.mlp.3",
        "blocks.1.mlp.3",
    }
    assert all(value.shape == (24,) for value in outside.values())


def test_bitfit_trains_the_biases_of_keys_and_values() -> None:
    model = pt.adapt(make_attention("pooler with biases of keys and values"), pt.BitFit())
    assert {"attn.bias_k", "attn.bias_v", "attn.in_proj_bias"} <= pt.strategies.trainable_parameters(
        model
    ).keys()


def test_what_a_strategy_leaves_alone_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    model = pt.adapt(make_attention("unknown"), pt.LoRA(rank=2))
    info, warning = caplog.records
    assert info.levelname == "INFO"
    assert "blocks.*.attn.w_qkv, blocks.*.attn.relative_position_bias_table" in info.getMessage()
    assert "proj.weight" not in info.getMessage()
    assert warning.levelname == "WARNING"
    assert warning.getMessage().endswith(": blocks.*.attn.w_qkv")
    caplog.clear()
    pt.save_adapter(model, tmp_path / "adapter")
    pt.load_adapter(make_attention("unknown"), tmp_path / "adapter")
    pt.adapt(make_attention("encoder"), pt.LoRA(rank=2))
    pt.adapt(make_attention("unknown"), pt.BitFit())
    assert not caplog.records
    pt.adapt(make_attention("encoder"), pt.LoRA(rank=2, targets="q"))
    assert [record.levelname for record in caplog.records] == ["INFO"]


def peft_logits(model: nn.Module, base: pt.Backbone) -> torch.Tensor:
    x = (images(32) - base.mean) / base.std
    return logits(copy.deepcopy(model).double().eval(), x.double())


EXPRESSIBLE = [
    ("encoder, tokens first", pt.LoRA(rank=2)),
    ("encoder, tokens first", pt.LoRA(rank=2, alpha=3.0, rslora=True, targets=("encoder.*",))),
    ("encoder, tokens first", pt.LoRA(rank=2, targets=("*.self_attn*",), rank_pattern={"*.1.self_attn*": 3})),
    ("pooler", pt.LoRA(rank=2, targets=("attn*",))),
]


@pytest.mark.parametrize(("name", "strategy"), EXPRESSIBLE, ids=repr)
def test_peft_reads_what_we_write_and_we_read_it_back(name: str, strategy: Strategy, tmp_path: Path) -> None:
    base = make_attention(name)
    model = pt.adapt(copy.deepcopy(base), strategy)
    perturb(model, 0.5)
    pt.save_adapter(model, tmp_path)
    expected = logits(copy.deepcopy(model).double(), images(32).double())
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base.module), tmp_path)
    torch.testing.assert_close(peft_logits(theirs, base), expected, rtol=1e-9, atol=1e-9)
    ours = pt.load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(ours, images(32)), logits(model, images(32)))
    again = pt.import_adapter(copy.deepcopy(base), tmp_path, format="peft")
    torch.testing.assert_close(logits(again.double(), images(32).double()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("targets", [["attn"], ["attn", "stem"], "attn|stem"])
@pytest.mark.parametrize("name", ["pooler", "pooler with biases of keys and values"])
def test_an_adapter_of_peft_has_its_logits(name: str, targets: Any, tmp_path: Path) -> None:
    """Also where peft adds the difference of the output projection twice."""
    base = make_attention(name)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(base.module), config)
    theirs.save_pretrained(tmp_path)
    ours = pt.import_adapter(copy.deepcopy(base), tmp_path).double()
    found = logits(ours, images(32).double())
    torch.testing.assert_close(found, peft_logits(theirs, base), rtol=1e-9, atol=1e-9)
    pt.merge_adapter(ours)
    torch.testing.assert_close(logits(ours, images(32).double()), found)


@pytest.mark.parametrize(
    ("name", "strategy", "reason"),
    [
        ("encoder", pt.LoRA(rank=2), "never calls 'encoder.layers.0.linear1'"),
        ("encoder", pt.strategies.NormTune(), "fails when its layers are wrapped"),
        ("pooler", pt.LoRA(rank=2, targets=("q", "v")), "in_proj_weight and out_proj"),
        ("pooler", pt.LoRA(rank=2, targets="o"), "never calls 'attn.out_proj'"),
        (
            "pooler",
            pt.LoRA(rank=2, rank_pattern={"attn.out_proj": 3}),
            "one rank and alpha for all of 'attn'",
        ),
        ("pooler of another width", pt.LoRA(rank=2), "in_proj_weight and out_proj"),
        ("open_clip", pt.LoRA(rank=2), "in_proj_weight and out_proj"),
        ("pooler", pt.IA3(targets="k"), "not the in_proj_weight of 'attn'"),
    ],
    ids=repr,
)
def test_what_peft_cannot_express_has_a_reason(
    name: str, strategy: Strategy, reason: str, tmp_path: Path
) -> None:
    model = pt.adapt(make_attention(name), strategy)
    pt.save_adapter(model, tmp_path)
    assert reason in json.loads((tmp_path / "paretune.json").read_text())["peft_reason"]
    assert not (tmp_path / "adapter_config.json").exists()


def test_a_tuner_of_peft_that_the_fused_layer_passes_by_is_refused() -> None:
    for targets in (["linear1"], ["stem", "linear1"]):
        with pytest.raises(ValueError, match=r"have no effect|passes peft's layers by"):
            pt.adapt(
                make_attention("encoder"),
                pt.strategies.Peft({"peft_type": "LOHA", "r": 2, "target_modules": targets}),
            )
    pt.adapt(
        make_attention("encoder, tokens first"),
        pt.strategies.Peft({"peft_type": "LOHA", "r": 2, "target_modules": ["stem", "linear1"]}),
    )


def test_an_adapter_of_peft_without_effect_is_refused(tmp_path: Path) -> None:
    base = make_attention("encoder")
    config = peft.LoraConfig(r=2, target_modules=["self_attn"], init_lora_weights=False)
    peft.get_peft_model(copy.deepcopy(base.module), config).save_pretrained(tmp_path)
    expected = logits(base, images(32))
    with pytest.raises(ValueError, match=r"never calls: it reads the weight"):
        pt.import_adapter(base, tmp_path)
    assert torch.equal(logits(base, images(32)), expected)


def test_loralib_has_no_attention(tmp_path: Path) -> None:
    model = pt.adapt(make_attention("pooler"), pt.LoRA(rank=2))
    with pytest.raises(ValueError, match="'attn' carries something else"):
        save_loralib(model, tmp_path / "lora.pt")


def test_named_adapters_combine() -> None:
    base, x = make_attention("encoder"), images(32)
    adapters = pt.interchange.AdapterSet(copy.deepcopy(base))
    expected = {}
    for name, strategy in (("one", pt.LoRA(rank=2)), ("two", pt.IA3(targets=("k", "v")))):
        adapters.add(name, strategy)
        adapters.activate(name)
        perturb(adapters.model, 0.3)  # type: ignore[arg-type]
        expected[name] = logits(adapters.model, x)
    mixed = adapters(x, ["one", "two"])
    torch.testing.assert_close(mixed, torch.stack([expected["one"][0], expected["two"][1]]))
    for name, after in expected.items():
        adapters.activate({name: 1.0})
        torch.testing.assert_close(logits(adapters.model, x), after)
    adapters.activate(None)
    assert torch.equal(logits(adapters.model, x), logits(base, x))


def test_a_tuner_of_peft_that_could_not_be_taken_off_an_attention_is_refused() -> None:
    base = make_attention("pooler")
    names, expected = list(base.module.state_dict()), logits(base, images(32))
    with pytest.raises(ValueError, match=r"replaces tensors of nn\.MultiheadAttention"):
        pt.adapt(base, pt.strategies.Peft({"peft_type": "LORA", "r": 2, "target_modules": ["attn"]}))
    assert list(base.module.state_dict()) == names
    assert torch.equal(logits(base, images(32)), expected)

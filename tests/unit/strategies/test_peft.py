"""Tuners of peft run through peft, and what it gets wrong on a model is refused."""

from pathlib import Path

import peft
import pytest
import torch

import paretune as pt
from tests.contracts.backbones import images, make
from tests.contracts.contract import check, logits, perturb


@pytest.mark.some(2)
@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # of timm's LayerNorm
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=["qkv", "fc1"], use_dora=True),
        peft.LoKrConfig(r=2, target_modules="all-linear"),
        peft.OFTConfig(oft_block_size=4, target_modules=["fc1"]),
        peft.LNTuningConfig(target_modules=["norm1"]),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_contract_holds_for_tuners_of_peft(config: peft.PeftConfig, tmp_path: Path) -> None:
    check(make("test_vit"), pt.strategies.Peft(config), tmp_path / "adapter")


def test_only_what_differs_from_the_defaults_is_kept() -> None:
    strategy = pt.strategies.Peft(peft.LoHaConfig(r=4, target_modules=["fc1", "fc2"]))
    assert repr(strategy) == "Peft({'peft_type': 'LOHA', 'r': 4, 'target_modules': ('fc1', 'fc2')})"
    assert strategy == pt.strategies.Peft({"peft_type": "LOHA", "r": 4, "target_modules": ["fc1", "fc2"]})


def test_the_logits_are_those_of_peft_itself() -> None:
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["qkv"]}
    model = pt.adapt(make("test_vit"), pt.strategies.Peft(config))
    perturb(model)
    reference = make("test_vit")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["qkv"]), reference.module)
    reference.module.load_state_dict(model.module.state_dict())
    x = images(160)
    assert torch.equal(logits(model, x), logits(reference.eval(), x))


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer")
@pytest.mark.parametrize(
    ("arch", "config", "message"),
    [
        ("eva02_tiny_patch14_224", {"peft_type": "LORA", "target_modules": ["qkv"]}, "have no effect in Eva"),
        ("test_vit", {"peft_type": "LOHA", "target_modules": ["head"], "exclude_modules": []}, "peft"),
        ("test_vit", {"peft_type": "LOHA", "target_modules": ["nothing"]}, "peft refuses VisionTransformer"),
        ("test_vit", {"peft_type": "NOTHING"}, "peft refuses VisionTransformer"),
        (
            "test_vit",
            {"peft_type": "LORA", "target_modules": ["fc1"], "init_lora_weights": False},
            "before any training",
        ),
        (
            "test_vit",
            {"peft_type": "LORA", "target_modules": ["fc1"], "init_lora_weights": "pissa"},
            "rewrites the weights",
        ),
        (
            "test_vit",
            {"peft_type": "LORA", "target_modules": ["fc1"], "modules_to_save": ["head"]},
            "not needed",
        ),
        ("mobilenetv3_small_050", {"peft_type": "LORA", "r": 3, "target_modules": ["conv_dw"]}, "groups"),
    ],
)
def test_what_peft_gets_wrong_is_refused_and_the_model_stays(
    arch: str, config: dict[str, object], message: str
) -> None:
    backbone = make(arch)
    state = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        pt.adapt(backbone, pt.strategies.Peft(config))
    now = backbone.module.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert not hasattr(backbone.module, "peft_config")


def test_a_merge_that_peft_gets_wrong_is_refused_and_the_model_stays() -> None:
    """Of weight-standardised convolutions peft standardises its own factors too."""
    backbone = make("resnetv2_50x1_bit")
    model = pt.adapt(backbone, pt.strategies.Peft({"peft_type": "LORA", "r": 2, "target_modules": ["conv2"]}))
    perturb(model)
    x = images(64)
    before = logits(model, x)
    with pytest.raises(ValueError, match="peft merges this adapter wrongly"):
        pt.merge_adapter(model)
    assert torch.equal(logits(model, x), before)


def test_a_configuration_without_a_type_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a peft_type"):
        pt.strategies.Peft({"r": 4})
    with pytest.raises(TypeError, match=r"must be a peft\.PeftConfig or a mapping"):
        pt.strategies.Peft("LORA")


def test_without_peft_the_error_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'paretune\[peft\]'"):
        pt.adapt(make("test_vit"), pt.strategies.Peft({"peft_type": "LOHA", "target_modules": ["qkv"]}))

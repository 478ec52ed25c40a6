"""Adapters travel to peft and back; peft itself is the judge."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import paretune as pt
from paretune.interchange import import_adapter, save_peft
from paretune.strategies import Strategy
from tests.contracts.backbones import EVERY, images, make
from tests.unit.interchange.helpers import LARGEST, MULTIPLIED_OUT, adapted, apart, assert_same, logits

HUGGING_FACE = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated"
)  # raised inside peft
pytestmark = [
    HUGGING_FACE,
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
]  # of timm's LayerNorm


EXPRESSIBLE = [
    ("test_vit", pt.LoRA(rank=2)),
    (
        "test_vit",
        pt.LoRA(rank=4, alpha=3.0, rslora=True, rank_pattern={"blocks.1.*": 2}, alpha_pattern={"*.fc1": 5.0}),
    ),
    ("test_vit", pt.LoRA(rank=2, targets=("q", "v", "fc2"))),
    ("test_vit", pt.LoRA(rank=2) + pt.BitFit()),
    ("test_vit", pt.LoRA(rank=2, targets=("fc1",)) + pt.BitFit(where="*.fc1")),
    ("test_vit", pt.LoRA(rank=2) + pt.strategies.NormTune()),
    ("test_vit", pt.strategies.NormTune()),
    ("test_vit", pt.IA3()),
    pytest.param(
        "coatnet_pico_rw_224", pt.IA3(), marks=pytest.mark.slow
    ),  # heads first, and 1 × 1 convolutions for q, k, v
    ("test_vit", pt.strategies.Peft({"peft_type": "LOKR", "r": 2, "target_modules": ["fc1"]})),
    (
        "test_vit",
        pt.strategies.Peft({"peft_type": "LORA", "r": 2, "target_modules": ["qkv"], "use_dora": True}),
    ),
    ("convnext_atto", pt.LoRA(rank=2, targets=("stem.0", "*.mlp.fc?"))),
    pytest.param("convnext_atto", pt.IA3(), marks=pytest.mark.slow),
    ("resnet26d", pt.LoRA(rank=2)),
    ("resnet26d", pt.LoRA(rank=2, bn="adapt")),
    pytest.param(
        "resnet18", pt.LoRA(rank=2, targets="conv1"), marks=pytest.mark.slow
    ),  # the end of other names too
    ("resnet26d", pt.strategies.NormTune(bn="adapt")),
    pytest.param(
        "tf_efficientnetv2_b0",  # pads by the size of its input
        pt.LoRA(rank=2, targets=("conv_stem", "blocks.*.conv_pwl"), bn="adapt"),
        marks=pytest.mark.slow,
    ),
    ("hf_vit", pt.LoRA(rank=2)),
    ("hf_vit", pt.IA3()),
    ("hf_vit", pt.LoRA(rank=2, targets=("q", "v")) + pt.BitFit()),
]


@pytest.mark.some(7)
@pytest.mark.parametrize(("arch", "strategy"), EXPRESSIBLE, ids=lambda value: str(value))
def test_our_directory_is_one_of_peft(arch: str, strategy: Strategy, tmp_path: Path) -> None:
    """Stock peft loads it onto the plain model without a warning, and so do we, from our files and from peft's alone."""
    model = adapted(arch, strategy)
    expected = logits(model, model)
    assert apart(expected, logits(make(arch), model))
    pt.save_adapter(model, tmp_path / "ours")
    description = json.loads((tmp_path / "ours/paretune.json").read_text())
    assert description["peft_reason"] == ""

    assert_same(logits(load_with_peft(arch, tmp_path / "ours"), model), expected)
    again = make(arch)
    pt.load_adapter(again.module, tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(images(again.image_size)), model(images(model.image_size)))

    save_peft(model, tmp_path / "theirs")
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    back = make(arch)
    pt.load_adapter(back, tmp_path / "theirs")
    assert_same(logits(back, model), expected)


@pytest.mark.thorough
@pytest.mark.parametrize("arch", EVERY)
@pytest.mark.parametrize(
    "strategy",
    [
        pt.LoRA(rank=2),
        pt.LoRA(rank=2, targets="linear", bn="adapt"),
        pt.IA3(),
        pt.strategies.NormTune(bn="adapt"),
    ],
    ids=str,
)
def test_on_every_architecture_peft_has_our_logits_or_no_files(
    arch: str, strategy: Strategy, tmp_path: Path
) -> None:
    torch.manual_seed(0)  # some have dropped branches while their statistics were taken
    try:
        model = adapted(arch, strategy)
    except ValueError:  # the table of support lists what a strategy refuses
        return
    pt.save_adapter(model, tmp_path / "a")
    torch.manual_seed(0)
    if (tmp_path / "a/adapter_config.json").exists():
        assert_same(logits(load_with_peft(arch, tmp_path / "a"), model), logits(model, model))
    else:
        assert json.loads((tmp_path / "a/paretune.json").read_text())["peft_reason"]
    torch.manual_seed(0)
    again = pt.load_adapter(make(arch), tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(again(images(again.image_size)), model(images(model.image_size)))


def load_with_peft(arch: str, directory: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|key).*")
        found: nn.Module = peft.PeftModel.from_pretrained(make(arch).module, directory).eval()
    return found


@pytest.mark.parametrize(
    ("arch", "strategy", "reason"),
    [
        ("test_vit", pt.BitFit(), "no tuner for such a strategy"),
        ("test_vit", pt.Compacter(), "no Compacter"),
        ("test_vit", pt.LoRA(rank=2) + pt.IA3(), "several at once"),
        ("test_vit", pt.IA3() + pt.BitFit(), "IA3 trains no biases"),
        (
            "test_vit",
            pt.LoRA(rank=2) + pt.BitFit(where="*.norm1"),
            "trains all biases, those of the targeted layers, or none",
        ),
        ("convnext_atto", pt.LoRA(rank=2), "groups=40"),
        pytest.param("resnetv2_50x1_bit", pt.LoRA(rank=2), "StdConv2d", marks=pytest.mark.slow),
        ("eva02_tiny_patch14_224", pt.LoRA(rank=2), "never calls 'blocks.0.attn.qkv'"),
        ("hf_mobilenet_v1", pt.IA3(), "fails when its layers are wrapped as peft does"),
    ],
    ids=lambda value: str(value),
)
def test_what_peft_cannot_express_is_no_directory_of_peft(
    arch: str, strategy: Strategy, reason: str, tmp_path: Path
) -> None:
    model = adapted(arch, strategy)
    pt.save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a/adapter_config.json").exists()
    description = json.loads((tmp_path / "a/paretune.json").read_text())
    assert description["peft"] is None
    assert reason in description["peft_reason"]
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        save_peft(model, tmp_path / "b")
    again = pt.load_adapter(make(arch), tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(again(images(again.image_size)), model(images(model.image_size)))


def test_the_files_have_nothing_that_peft_does_not_know(tmp_path: Path) -> None:
    """Each field of the config is one of peft's, and each tensor one that peft would save itself."""
    model = adapted("test_vit", pt.LoRA(rank=2, targets=("q", "v", "fc1")) + pt.BitFit())
    pt.save_adapter(model, tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert set(config) <= set(peft.LoraConfig(target_modules=["x"]).to_dict())
    loaded = load_with_peft("test_vit", tmp_path / "a")
    assert isinstance(loaded, peft.PeftModel)
    loaded.save_pretrained(tmp_path / "by-peft")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "by-peft"))
    assert set(ours) <= set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


FROM_PEFT = {
    "lora": (
        "test_vit",
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=["qkv", "fc1"], modules_to_save=["head"]),
    ),
    "lora without a head": ("test_vit", peft.LoraConfig(r=3, target_modules=["qkv"])),
    "lora of the head too": ("test_vit", peft.LoraConfig(r=3, target_modules="all-linear")),
    "rank and alpha patterns": (
        "test_vit",
        peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=r"blocks\.[0-3]\..*(qkv|proj)",
            rank_pattern={r"blocks\.1\.attn\.qkv": 2, "proj": 3},
            alpha_pattern={"^blocks.2.attn.qkv": 7},
        ),
    ),
    "rslora": (
        "test_vit",
        peft.LoraConfig(r=4, use_rslora=True, target_modules=["fc2"], modules_to_save=["head"]),
    ),
    "all biases": (
        "test_vit",
        peft.LoraConfig(r=2, bias="all", target_modules=["qkv"], modules_to_save=["head"]),
    ),
    "biases of the targets": (
        "test_vit",
        peft.LoraConfig(r=2, bias="lora_only", target_modules=["qkv", "fc1"]),
    ),
    "biases of the factors": (
        "test_vit",
        peft.LoraConfig(r=2, lora_bias=True, target_modules=["qkv", "fc1"]),
    ),
    "norms saved whole": (
        "test_vit",
        peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head", "norm1", "patch_embed.proj"]),
    ),
    "a rank above the width": ("test_vit", peft.LoraConfig(r=80, target_modules=["blocks.0.attn.proj"])),
    "convolutions": ("resnet26d", peft.LoraConfig(r=2, target_modules=["conv1.3", "conv2", "downsample.1"])),
    "batch norms saved whole": (
        "resnet26d",
        peft.LoraConfig(
            r=2,
            target_modules=["conv2"],
            modules_to_save=["bn1", "bn2", "bn3", "conv1.1", "conv1.4", "downsample.2", "fc"],
        ),
    ),
    "a grouped convolution": (
        "convnext_atto",
        peft.LoraConfig(r=40, target_modules=["stages.0.blocks.0.conv_dw"]),
    ),
    "dora": (
        "test_vit",
        peft.LoraConfig(r=2, use_dora=True, target_modules=["qkv"], modules_to_save=["head"]),
    ),
    "loha": ("test_vit", peft.LoHaConfig(r=2, target_modules=["qkv"], modules_to_save=["head"])),
    "ia3": ("test_vit", peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"])),
    "ia3 of outputs": (
        "convnext_atto",
        peft.IA3Config(target_modules=["fc2", "conv_dw"], feedforward_modules=[]),
    ),
    "ia3 of the inputs of fc1": (
        "test_vit",
        peft.IA3Config(target_modules=["fc1"], feedforward_modules=["fc1"]),
    ),
    "a head with a norm": (
        "convnext_atto",
        peft.LoraConfig(r=2, target_modules=["fc1"], modules_to_save=["head"]),
    ),
    "ln tuning": (
        "test_vit",
        peft.LNTuningConfig(target_modules=["norm1", "norm2"], modules_to_save=["head"]),
    ),
    "hugging face": (
        "hf_vit",
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    ),
}


def by_peft(arch: str, config: peft.PeftConfig, directory: Path) -> nn.Module:
    """A model of peft whose every trainable parameter has moved, saved by peft."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        torch.manual_seed(2)
        warnings.simplefilter("ignore")  # of ranks that are not divisible, and of biases
        model: Any = peft.get_peft_model(make(arch).module, copy.deepcopy(config))
        model.train()
        draw = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
            if "batch norms" in str(directory):
                model(torch.rand(2, 3, 64, 64, generator=draw))
        model.eval().save_pretrained(directory)
    found: nn.Module = model
    return found


@pytest.mark.some(8)
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer")  # what peft says of grouped ones
@pytest.mark.parametrize("name", FROM_PEFT)
def test_what_peft_saved_has_the_same_logits_here(name: str, tmp_path: Path) -> None:
    """And what we then save is loaded again, bit for bit."""
    arch, config = FROM_PEFT[name]
    theirs = by_peft(arch, config, tmp_path / name)
    base = make(arch)
    assert apart(logits(theirs, base), logits(base, base))
    model = import_adapter(make(arch), tmp_path / name)
    rounded = name in ("lora of the head too", "biases of the factors", "a rank above the width")
    assert_same(logits(model, base), logits(theirs, base), MULTIPLIED_OUT if rounded else LARGEST)
    pt.save_adapter(model, tmp_path / "ours")
    again = pt.load_adapter(make(arch), tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(images(base.image_size)), model(images(base.image_size)))
    pt.remove_adapter(model)
    assert_same(logits(model, base), logits(base, base))


@pytest.mark.parametrize("name", ["lora", "all biases", "ia3", "ln tuning", "convolutions"])
def test_a_plain_module_takes_an_adapter_of_peft(name: str, tmp_path: Path) -> None:
    arch, config = FROM_PEFT[name]
    theirs = by_peft(arch, config, tmp_path / "a")
    base = make(arch)
    plain = base.module
    assert pt.load_adapter(plain, tmp_path / "a") is plain
    assert_same(logits(plain, base), logits(theirs, base))


def test_strategies_read_from_peft_say_what_they_are(tmp_path: Path) -> None:
    """The layers are named by patterns, as a person would."""
    expected = {
        "lora": "LoRA(rank=3, alpha=5, targets=('blocks.*.attn.qkv', 'blocks.*.mlp.fc1'))",
        "all biases": "LoRA(rank=2, alpha=8, targets=('blocks.*.attn.qkv',)) + BitFit()",
        "ia3": "IA3(where=('blocks.*.attn.qkv', 'blocks.*.mlp.fc2'), targets=('blocks.*.attn.qkv', 'hidden'))",
        "ln tuning": "NormTune(where=('blocks.*.norm1', 'blocks.*.norm2'))",
    }
    for name, call in expected.items():
        arch, config = FROM_PEFT[name]
        by_peft(arch, config, tmp_path / name)
        pt.save_adapter(import_adapter(make(arch), tmp_path / name), tmp_path / "ours")
        assert json.loads((tmp_path / "ours/paretune.json").read_text())["call"] == call


def test_names_of_transformers_4_are_understood(tmp_path: Path) -> None:
    """An adapter trained before ViT's layers were renamed fits the renamed model."""
    theirs = by_peft(
        "hf_vit", peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj", "fc1", "fc2"]), tmp_path / "a"
    )
    old = {
        "vit.layers.": "vit.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    path = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(path)
    for new, former in old.items():
        tensors = {name.replace(new, former): value for name, value in tensors.items()}
    assert any("intermediate.dense" in name for name in tensors)
    from safetensors.torch import save_file

    save_file(tensors, path)
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    config["target_modules"] = ["query", "attention.output.dense", "intermediate.dense", "output.dense"]
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    base = make("hf_vit")
    assert_same(logits(import_adapter(make("hf_vit"), tmp_path / "a"), base), logits(theirs, base))


def test_a_layer_that_peft_passes_by_is_refused(tmp_path: Path) -> None:
    """EVA-02 reads the weight of ``qkv``: in peft its adapter does nothing, here it would."""
    arch = "eva02_tiny_patch14_224"
    theirs = by_peft(arch, peft.LoraConfig(r=2, target_modules=["qkv"]), tmp_path / "a")
    base = make(arch)
    assert_same(logits(theirs, base), logits(base, base))
    with pytest.raises(ValueError, match=r"adapts 'blocks\.0\.attn\.qkv', which the model never calls"):
        import_adapter(make(arch), tmp_path / "a")


def test_older_files_of_peft_are_read(tmp_path: Path) -> None:
    """``adapter_model.bin``, as before safetensors; nothing in it is executed."""
    arch, config = FROM_PEFT["lora"]
    theirs = by_peft(arch, config, tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    base = make(arch)
    assert_same(logits(pt.load_adapter(make(arch), tmp_path / "a"), base), logits(theirs, base))

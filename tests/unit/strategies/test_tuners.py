"""One law for every tuner of peft: what can be adapted can be saved, loaded here and in peft, and imported."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file
from torch import Tensor, nn

import paretune as pt
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits, perturb

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:Sparse"),
]

# What a tuner cannot do without; the others act on fc1.
NEEDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "CPT": {"task_type": "CAUSAL_LM"},
    "IA3": {"target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]},
    "LN_TUNING": {"target_modules": ["norm1"]},
    "OFT": {"oft_block_size": 4},
}
TUNERS = {
    kind.value: {"peft_type": kind.value}
    | (
        {"target_modules": ["fc1"]}
        if "target_modules" in PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
        else {}
    )
    | NEEDED.get(kind.value, {})
    for kind in peft.PeftType
}
QKV = r"blocks\.\d+\.attn\.qkv"
OPTIONS: dict[str, dict[str, Any]] = {
    **{
        f"initialised by {name}": {
            "peft_type": "LORA",
            "r": 4,
            "target_modules": ["fc1"],
            "init_lora_weights": name,
        }
        for name in (
            "gaussian",
            "pissa",
            "pissa_niter_2",
            "olora",
            "eva",
            "corda",
            "orthogonal",
            "loftq",
            "lora_ga",
        )
    },
    "DoRA": {"peft_type": "LORA", "r": 2, "target_modules": QKV, "use_dora": True},
    "rsLoRA with patterns": {
        "peft_type": "LORA",
        "target_modules": ["fc1", "qkv"],
        "use_rslora": True,
        "rank_pattern": {r"blocks\.1\.mlp\.fc1": 2},
        "alpha_pattern": {"fc1": 3},
    },
    "a bias of LoRA": {"peft_type": "LORA", "r": 2, "target_modules": ["fc1"], "lora_bias": True},
    "biases": {"peft_type": "LORA", "r": 2, "target_modules": ["fc1"], "bias": "all"},
    "some layers": {"peft_type": "LOHA", "r": 2, "target_modules": ["fc1"], "layers_to_transform": [1]},
    "layers by name": {
        "peft_type": "LOKR",
        "r": 2,
        "target_modules": ["fc1"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "blocks",
    },
    "but some": {"peft_type": "LOHA", "r": 2, "target_modules": ["fc1"], "exclude_modules": r"blocks\.0\..*"},
    "a convolution": {"peft_type": "LOHA", "r": 2, "target_modules": ["patch_embed.proj"]},
    "all layers": {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"},
    "parameters": {"peft_type": "LORA", "r": 2, "target_parameters": ["blocks.0.mlp.fc1.weight"]},
    "a saved module": {"peft_type": "LORA", "r": 2, "target_modules": ["fc1"], "modules_to_save": ["norm"]},
    "IA3 of outputs": {
        "peft_type": "IA3",
        "target_modules": ["qkv", "fc1", "fc2"],
        "feedforward_modules": [],
    },
    "IA3 of inputs of fc1": {
        "peft_type": "IA3",
        "target_modules": ["qkv", "fc1"],
        "feedforward_modules": ["fc1"],
    },
    "IA3 of inputs of qkv": {
        "peft_type": "IA3",
        "target_modules": ["qkv", "fc1"],
        "feedforward_modules": ["qkv", "fc1"],
    },
    "IA3 by patterns": {
        "peft_type": "IA3",
        "target_modules": r".*(qkv|fc\d)",
        "feedforward_modules": r".*\.qkv",
    },
    "SHiRA of a rank": {"peft_type": "SHIRA", "r": 3, "target_modules": ["qkv"]},
    "SHiRA at random": {"peft_type": "SHIRA", "r": 3, "target_modules": ["qkv"], "init_weights": False},
    "RandLora without bases": {"peft_type": "RANDLORA", "target_modules": ["fc1"], "save_projection": False},
    "supertuning by weights": {
        "peft_type": "SUPERTUNING",
        "target_modules": ["fc1"],
        "save_precomputed_indices": False,
    },
    "OFT of shared blocks": {
        "peft_type": "OFT",
        "oft_block_size": 4,
        "target_modules": ["fc1"],
        "block_share": True,
    },
    "DoRA with biases": {
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["fc1"],
        "use_dora": True,
        "bias": "lora_only",
    },
    "BOFT with its biases": {
        "peft_type": "BOFT",
        "boft_block_size": 4,
        "target_modules": ["fc1"],
        "bias": "boft_only",
    },
    "OFT with all biases": {
        "peft_type": "OFT",
        "oft_block_size": 4,
        "target_modules": ["fc1"],
        "bias": "all",
    },
    "MiSS of bat": {"peft_type": "MISS", "r": 4, "target_modules": ["fc1"], "init_weights": "bat"},
}
CASES = TUNERS | OPTIONS
# Which of them must not be adapted, and the reason; every other one must.
PROMPTS = ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
REFUSED = {
    **dict.fromkeys((*PROMPTS, "ADAPTION_PROMPT", "SHADOW"), "does not support prompt learning"),
    **dict.fromkeys(("FROD", "PVERA", "TINYLORA", "UNILORA", "VBLORA", "VERA"), "uses shared state"),
    **dict.fromkeys(
        ("C3A", "FOURIERFT", "SHiRA at random"),
        "change the logits .* before any training",
    ),
    **dict.fromkeys(
        [f"initialised by {name}" for name in ("pissa", "pissa_niter_2", "olora")], "rewrites the weights"
    ),
    "TRAINABLE_TOKENS": "layers fail",
    "POLY": "task_ids should not be None",
    "XLORA": "would load other adapters",
    "initialised by corda": "preprocess_corda",
    "initialised by loftq": "loftq_config",
    "some layers": "No modules were targeted",
    "a saved module": "modules_to_save is not needed",
}
# Of what peft itself can train on this model, only these are not imported.
NOT_IMPORTED = {
    **dict.fromkeys(("FROD", "PVERA", "TINYLORA", "UNILORA", "VERA"), "uses shared state"),
    **dict.fromkeys(
        [f"initialised by {name}" for name in ("pissa", "pissa_niter_2", "olora", "lora_ga")],
        "has changed the base",
    ),
}
# What peft itself can train on no vision model, or not so.
IN_PEFT_ALONE = {
    *PROMPTS, "ADAPTION_PROMPT", "SHADOW", "POLY", "XLORA", "VBLORA", "TRAINABLE_TOKENS",
    "initialised by corda", "initialised by loftq", "some layers",
}  # fmt: skip


def moved(model: nn.Module) -> None:
    """As training moves what trains."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn(value.shape, generator=draw))


def in_peft(model: nn.Module, base: pt.Backbone) -> Tensor:
    """The logits of a network of peft for the images of ``base``."""
    with torch.no_grad():
        found: Tensor = model.eval()((images(base.image_size) - base.mean) / base.std)
    return found


@pytest.fixture(scope="module")
def base() -> pt.Backbone:
    return make("test_vit")


@pytest.mark.some(26)
@pytest.mark.parametrize("case", CASES)
def test_what_can_be_adapted_is_saved_and_loaded_here_and_in_peft(
    case: str, base: pt.Backbone, tmp_path: Path
) -> None:
    model = copy.deepcopy(base)
    if case in REFUSED:
        with pytest.raises(ValueError, match=rf"^Peft\([A-Z_0-9]+\): (.|\n)*{REFUSED[case]}"):
            pt.adapt(model, pt.strategies.Peft(CASES[case]))
        same_state(model, base)
        return
    pt.adapt(model, pt.strategies.Peft(CASES[case]))
    perturb(model)
    expected = logits(model, images(160))
    assert not torch.allclose(expected, logits(base, images(160)))
    directory = pt.save_adapter(model, tmp_path / "a")

    fresh = copy.deepcopy(base)
    torch.manual_seed(99)  # what a tuner draws when it is put on does not matter
    pt.load_adapter(fresh, directory)
    assert torch.equal(logits(fresh, images(160)), expected)
    again = pt.save_adapter(fresh, tmp_path / "again")
    adapters = pt.interchange.AdapterSet(copy.deepcopy(base))
    adapters.add("one", directory)
    adapters.add("other", pt.LoRA(rank=2))
    adapters.activate("other")
    adapters.activate("one")
    ours = load_file(directory / "adapter_model.safetensors")
    theirs = load_file(again / "adapter_model.safetensors")
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    if (directory / "adapter_config.json").exists():
        wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(base.module), str(directory))
        torch.testing.assert_close(in_peft(wrapped, base), expected, rtol=1e-5, atol=1e-5)
        (directory / "paretune.json").unlink()
        imported = pt.load_adapter(copy.deepcopy(base), directory)
        torch.testing.assert_close(logits(imported, images(160)), expected, rtol=1e-5, atol=1e-5)
    else:
        assert json.loads((directory / "paretune.json").read_text())["peft_reason"]


@pytest.mark.some(21)
@pytest.mark.parametrize("case", [case for case in CASES if case not in IN_PEFT_ALONE])
def test_what_peft_has_trained_is_imported_with_its_logits_or_refused(
    case: str, base: pt.Backbone, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(copy.deepcopy(base.module), peft.get_peft_config(dict(CASES[case])))
    moved(wrapped)
    expected = in_peft(wrapped, base)
    wrapped.save_pretrained(str(tmp_path / "a"))
    model = copy.deepcopy(base)
    torch.manual_seed(99)
    if case in NOT_IMPORTED:
        with pytest.raises(ValueError, match=NOT_IMPORTED[case]):
            pt.load_adapter(model, tmp_path / "a")
        same_state(model, base)
        return
    pt.load_adapter(model, tmp_path / "a")
    torch.testing.assert_close(logits(model, images(160)), expected, rtol=1e-5, atol=1e-5)
    pt.save_adapter(model, tmp_path / "ours")
    again = pt.load_adapter(copy.deepcopy(base), tmp_path / "ours")
    assert torch.equal(logits(again, images(160)), logits(model, images(160)))


def test_ranks_that_adalora_has_given_up_are_read_as_zeros(base: pt.Backbone, tmp_path: Path) -> None:
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=4, tinit=1, tfinal=1, deltaT=1, target_modules=["fc1", "qkv"]
    )
    torch.manual_seed(3)
    wrapped: Any = peft.get_peft_model(copy.deepcopy(base.module), config)
    moved(wrapped)
    for step in range(4):
        wrapped.zero_grad()
        wrapped((images(160) - base.mean) / base.std).square().sum().backward()
        wrapped.base_model.update_and_allocate(step)
    expected = in_peft(wrapped, base)
    wrapped.save_pretrained(str(tmp_path / "a"))
    pattern = json.loads((tmp_path / "a/adapter_config.json").read_text())["rank_pattern"]
    assert any(not all(mask) for mask in pattern.values())
    model = pt.load_adapter(copy.deepcopy(base), tmp_path / "a")
    torch.testing.assert_close(logits(model, images(160)), expected, rtol=1e-5, atol=1e-5)


def same_state(model: pt.Backbone, base: pt.Backbone) -> None:
    now, before = model.module.state_dict(), base.module.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[name], before[name]) for name in before)

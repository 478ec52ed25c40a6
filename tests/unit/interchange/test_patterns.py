"""Patterns and sizes that somebody else wrote are read within bounds, by whatever way they come."""

import ast
import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import paretune as pt
from paretune.commands.cli import main
from paretune.interchange import save_peft
from paretune.strategies.mechanics.patterns import Pattern, require_plain
from tests.contracts.backbones import make
from tests.unit.interchange.helpers import adapted

HOSTILE = [
    "(?R)",
    "(?0)",
    "(?1)(a)",
    "(?&name)(?P<name>x)",
    "(?:a|aa)+b",
    r"(([a-z0-9.])+.)+[A-Z]",
    "(.*)*$x",
    "((((((((((a*)*)*)*)*)*)*)*)*)*)*x",
    ".*" * 40 + "x",
    "(?:(?:(?:a{0,60000}){0,60000}){0,60000})b",
    "(" * 20_000 + ")" * 20_000,
    "(",
    "x" * 2_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_a_hostile_pattern_is_refused_or_matches_soon(text: str) -> None:
    with contextlib.suppress(ValueError):
        pattern = Pattern(text, "config")
        for _ in range(100):
            pattern("a" * 80)


@pytest.mark.some
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("LORA", "target_modules"),
        ("LORA", "exclude_modules"),
        ("LORA", "rank_pattern"),
        ("LORA", "alpha_pattern"),
        ("IA3", "feedforward_modules"),
        ("LOHA", "target_modules"),
        ("LOHA", "exclude_modules"),
        ("LOHA", "rank_pattern"),
        ("LOHA", "layers_pattern"),
        ("OFT", "layers_pattern"),
        ("C3A", "block_size_pattern"),
    ],
)
def test_a_config_of_peft_with_a_hostile_pattern_is_refused_and_the_model_stays(
    kind: str, field: str, text: str, tmp_path: Path
) -> None:
    config: dict[str, Any] = {
        "peft_type": kind,
        "target_modules": ["fc1"],
        "r": 2,
        "layers_to_transform": None,
    }
    if kind == "IA3":
        config.pop("r")
    config[field] = {text: 3} if field.endswith("_pattern") and field != "layers_pattern" else text
    if field == "layers_pattern":
        config["layers_to_transform"] = [0]
    last = {"LORA": ("lora_A.weight", "lora_B.weight"), "IA3": ("ia3_l",)}.get(kind, ("hada_w1_a",))
    shapes = {"lora_A.weight": (2, 64), "lora_B.weight": (192, 2), "ia3_l": (192, 1), "hada_w1_a": (192, 2)}
    tensors = {f"base_model.model.blocks.0.mlp.fc1.{name}": torch.ones(shapes[name]) for name in last}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = make("test_vit")
    before = copy.deepcopy(model.module.state_dict())
    with pytest.raises(ValueError, match=r".") as caught:
        pt.load_adapter(model, tmp_path)
    assert len(str(caught.value)) < 1500
    assert list(model.module.state_dict()) == list(before)


def test_a_hostile_pattern_in_a_strategy_of_ours_does_not_reach_peft() -> None:
    for config in (
        {"target_modules": r"(([a-z0-9_.])+.)+[A-Z]"},
        {"target_modules": ["fc1"], "rank_pattern": {"(?:a|aa|[a-z0-9.])+!": 2}},
        {"target_modules": ["fc1"], "exclude_modules": "(?R)"},
    ):
        with pytest.raises(ValueError, match=r"matches no module|is not read|no regular expression"):
            pt.adapt(make("test_vit"), pt.strategies.Peft({"peft_type": "LOHA", "r": 2} | config))


@pytest.mark.parametrize(
    "text", ["fc1", r"^blocks\.0\.mlp\.fc1", "(qkv|fc1)", r"blocks\.\d+\..*", ".*self_attn.*(q_proj|k-proj)$"]
)
def test_plain_patterns_are_left_to_peft(text: str) -> None:
    require_plain(text, "rank_pattern")


@pytest.mark.parametrize("name", ["paretune.json", "adapter_config.json"])
def test_texts_of_millions_of_letters_are_refused_and_long_ones_shown_by_their_beginnings(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = pt.save_adapter(adapted("test_vit", pt.LoRA(rank=2)), tmp_path / "a")
    path = directory / name
    config = json.loads(path.read_text())
    if name == "adapter_config.json":
        (directory / "paretune.json").unlink()
    path.write_text(json.dumps(config | {"revision": "x" * 30_000_000}))
    assert main(["adapters", "show", str(directory)])  # an error
    printed = capsys.readouterr()
    assert "has a text of 30,000,000 letters" in printed.err
    assert len(printed.out) + len(printed.err) < 1000
    path.write_text(
        json.dumps(
            config
            | {
                "notes": {"list": list(range(100_000)), "deep": [[[[[[[[[[1]]]]]]]]]]},
                "revision": "x" * 900_000,
                "y" * 900_000: 1,
            }
            | {f"z{number}": 1 for number in range(1000)}
        )
    )
    assert not main(["adapters", "show", str(directory)])
    printed = capsys.readouterr()
    assert "900,000 letters" in printed.out
    assert len(printed.out) < 20_000
    yaml.safe_load(printed.out)


@pytest.mark.parametrize("arch", ["resnext50_32x4d", "eva02_tiny_patch14_224", "mobilenetv3_small_050"])
def test_an_export_to_peft_that_cannot_be_says_what_to_name(arch: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"; targets=\(.*\) would do") as caught:
        save_peft(adapted(arch, pt.LoRA(rank=2)), tmp_path / "a")
    found = re.search(r"targets=(\(.*\)) would do", str(caught.value))
    assert found
    save_peft(adapted(arch, pt.LoRA(rank=2, targets=ast.literal_eval(found[1]))), tmp_path / "a")
    assert (tmp_path / "a/adapter_config.json").exists()

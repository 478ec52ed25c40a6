"""``paretune adapters``, run as a user runs it but in this process."""

import json
import shutil
from pathlib import Path
from typing import Any

import loralib
import peft
import pytest
import timm
import torch

import paretune as pt
from paretune.commands.cli import main
from tests.contracts.contract import perturb

CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Weights for timm's smallest ViT, so that nothing is downloaded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


@pytest.fixture
def plain(weights: str) -> pt.Backbone:
    return pt.load_backbone("timm:test_vit", num_classes=5, weights=weights)


@pytest.fixture
def saved(plain: pt.Backbone, tmp_path: Path) -> tuple[str, torch.Tensor]:
    """Directory of an adapter of ours, and the logits of the model it was saved from."""
    model = pt.adapt(plain, pt.LoRA(rank=2, alpha=4, targets=("q", "v")))
    perturb(model)
    return str(pt.save_adapter(model, tmp_path / "ours", classes=CLASSES)), logits(model)


def logits(model: Any) -> torch.Tensor:
    x = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: torch.Tensor = model.double().eval()(x.double())
    return found


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """By the rule of the tests of interchange: in float64, up to 1e-10 of the largest."""
    return float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max())


def test_show_says_what_an_adapter_is(saved: tuple[str, torch.Tensor], tmp_path: Path, capsys: Any) -> None:
    assert main(["adapters", "show", saved[0]]) == 0
    shown = capsys.readouterr().out
    assert "format: paretune-adapter" in shown
    assert "peft: true" in shown
    assert "call: LoRA(rank=2, alpha=4, targets=('q', 'v'))" in shown
    (tmp_path / "ours/paretune.json").unlink()
    assert main(["adapters", "show", saved[0]]) == 0
    shown = capsys.readouterr().out
    assert "format: peft" in shown
    assert "lora_alpha: 8" in shown  # of both pairs of factors together
    assert "14 tensors" in shown


def test_export_to_peft_and_import_again(
    saved: tuple[str, torch.Tensor], weights: str, tmp_path: Path, capsys: Any
) -> None:
    directory, expected = saved
    theirs = str(tmp_path / "theirs")
    assert (
        main(["adapters", "export", directory, "--weights", weights, "--format", "peft", "--out", theirs])
        == 0
    )
    fresh = pt.load_backbone("timm:test_vit", num_classes=5, weights=weights)
    peft.PeftModel.from_pretrained(fresh.module, theirs)
    assert same(logits(fresh), expected)
    back = str(tmp_path / "back")
    options = ["--backbone", "timm:test_vit", "--weights", weights]
    assert main(["adapters", "import", theirs, *options, "--out", back]) == 0
    assert "back" in capsys.readouterr().out
    config = json.loads((tmp_path / "back/paretune.json").read_text())
    assert config["notes"] == {"imported from": "peft"}
    assert config["base"]["source"] == "timm:test_vit"
    assert main(["adapters", "verify", back, "--weights", weights]) == 0
    assert main(["adapters", "verify", theirs, *options]) == 0
    again = pt.load_backbone("timm:test_vit", num_classes=5, weights=weights)
    assert same(logits(pt.load_adapter(again, back)), expected)


def test_export_to_loralib_and_import_again(
    saved: tuple[str, torch.Tensor], weights: str, tmp_path: Path, capsys: Any
) -> None:
    directory, expected = saved
    file, back = str(tmp_path / "lora.pt"), str(tmp_path / "back")
    assert (
        main(["adapters", "export", directory, "--weights", weights, "--format", "loralib", "--out", file])
        == 0
    )
    assert "for lora_alpha=4" in capsys.readouterr().out
    assert main(["adapters", "show", file]) == 0
    assert "format: loralib" in capsys.readouterr().out
    options = ["--backbone", "timm:test_vit", "--weights", weights, "--out", back]
    assert main(["adapters", "import", file, *options]) == 2
    assert "pass alpha=" in capsys.readouterr().err
    options += ["--alpha", "4", "--enable-lora", "[true, false, true]"]
    assert main(["adapters", "import", file, *options]) == 0
    again = pt.load_backbone("timm:test_vit", num_classes=5, weights=weights)
    assert same(logits(pt.load_adapter(again, back)), expected)


def test_the_number_of_classes_is_asked_for_where_no_head_is_saved(
    weights: str, plain: pt.Backbone, tmp_path: Path, capsys: Any
) -> None:
    layer = loralib.Linear(64, 192, r=2)
    state = {
        f"blocks.0.mlp.fc1.{name}": value for name, value in layer.state_dict().items() if "lora" in name
    }
    torch.save(state, tmp_path / "lora.pt")
    options = ["--backbone", "timm:test_vit", "--weights", weights, "--alpha", "1"]
    assert main(["adapters", "verify", str(tmp_path / "lora.pt"), *options]) == 2
    assert "pass --num-classes" in capsys.readouterr().err
    assert main(["adapters", "verify", str(tmp_path / "lora.pt"), *options, "--num-classes", "5"]) == 0
    assert main(["adapters", "verify", str(tmp_path / "lora.pt")]) == 2
    assert "pass --backbone" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["timm", "merge"])
def test_plain_weights_come_out(
    to: str, saved: tuple[str, torch.Tensor], weights: str, tmp_path: Path
) -> None:
    directory, expected = saved
    out = tmp_path / ("plain" if to == "timm" else "plain.safetensors")
    action = ["export", directory, "--format", "timm"] if to == "timm" else ["merge", directory]
    assert main(["adapters", *action, "--weights", weights, "--out", str(out)]) == 0
    file = out / "model.safetensors" if to == "timm" else out
    stock = timm.create_model("test_vit", num_classes=5, checkpoint_path=str(file)).eval()
    with torch.no_grad():
        x = (torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(3)) - 0.5) / 0.5
        assert float((stock(x) - expected).abs().max()) <= 1e-5 * float(
            expected.abs().max()
        )  # merged in float32


def test_push_writes_the_license_into_the_card(
    saved: tuple[str, torch.Tensor], tmp_path: Path, capsys: Any
) -> None:
    copy = shutil.copytree(saved[0], tmp_path / "adapter")
    push = ["adapters", "push", str(copy), "--to", "me/mine", "--dry-run", "--license"]
    assert main([*push, "apache-2.0"]) == 0
    assert "license: apache-2.0" in (copy / "README.md").read_text()
    assert main([*push, "Apache 2"]) == 2
    assert "license must be an identifier" in capsys.readouterr().err


def test_push_says_what_it_would_send(saved: tuple[str, torch.Tensor], capsys: Any) -> None:
    assert main(["adapters", "push", saved[0], "--to", "me/mine", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "adapter_model.safetensors: " in told
    assert "adapter_config.json: " in told
    assert "nothing was sent to me/mine: a dry run" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "DIR", "--out", "x"], "export needs --format peft, loralib, timm, hf or onnx"),
        (["export", "DIR", "--format", "peft"], "export needs --out"),
        (["import", "DIR"], "import needs --out"),
        (["push", "DIR"], "push needs --to user/repo"),
        (["push", "DIR", "--to", "nobody", "--dry-run"], "repo_id must be user/repo"),
        (["show", "/nowhere"], "does not exist"),
        (["verify", "DIR/README.md"], "is no file of tensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, saved: tuple[str, torch.Tensor], capsys: Any
) -> None:
    assert main(["adapters", *(argument.replace("DIR", saved[0]) for argument in arguments)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1

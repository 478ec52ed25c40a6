"""Formats are told apart by what files hold, and what does not fit is named while the model stays as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loralib
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import paretune as pt
from paretune.interchange import detect, import_adapter
from tests.contracts.backbones import make
from tests.unit.interchange.helpers import adapted
from tests.unit.interchange.peft.test_peft import by_peft

FIXTURES = Path(__file__).parents[2] / "fixtures/adapters"
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type")  # peft, of timm's LayerNorm

CONFIG = peft.LoraConfig(r=2, target_modules=["qkv", "fc1"], modules_to_save=["head"])


def lora_of_loralib() -> dict[str, Tensor]:
    layer = loralib.Linear(64, 192, r=2)
    return {
        f"blocks.0.mlp.fc1.{name}": value for name, value in layer.state_dict().items() if "lora_" in name
    }


def test_each_format_is_told_by_its_contents(tmp_path: Path) -> None:
    pt.save_adapter(adapted("test_vit", pt.LoRA(rank=2)), tmp_path / "a")
    assert detect(tmp_path / "a") == "paretune"  # although it is one of peft as well
    by_peft("test_vit", CONFIG, tmp_path / "b")
    assert detect(tmp_path / "b") == "peft"
    torch.save(lora_of_loralib(), tmp_path / "c.weights")
    assert detect(tmp_path / "c.weights") == "loralib"
    save_file({name: value.detach() for name, value in lora_of_loralib().items()}, tmp_path / "d.safetensors")
    assert detect(tmp_path / "d.safetensors") == "loralib"
    library = next(path.parent for path in sorted(FIXTURES.rglob("adapter_config.json")))
    assert detect(library) == "adapters"
    with pytest.raises(ValueError, match="does not fit a ResNet"):
        import_adapter(make("resnet18"), library)


def test_what_is_no_adapter_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        detect(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no paretune\.json and no adapter_config\.json, but nothing"
    ):
        detect(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/adapter_config.json").write_text('{"model": "bert"}')
    with pytest.raises(ValueError, match=r"neither of peft \(it has no peft_type\) nor of adapters"):
        detect(tmp_path / "other")
    torch.save(make("test_vit").module.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"none of its \d+ tensors is called lora_A or lora_B"):
        detect(tmp_path / "plain.pt")
    by_peft("test_vit", CONFIG, tmp_path / "b")
    with pytest.raises(ValueError, match="give its directory"):
        detect(tmp_path / "b/adapter_model.safetensors")
    with pytest.raises(ValueError, match="format must be one of paretune, peft, adapters, loralib"):
        import_adapter(make("test_vit"), tmp_path / "b", format="onnx")


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:99])


def change_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        tensors = load_file(directory / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, directory / "adapter_model.safetensors")

    return write


LAYER = "base_model.model.blocks.0.attn.qkv"
MISFITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing factor": (
        change_tensors(lambda t: t.pop(f"{LAYER}.lora_B.weight")),
        r"blocks\.0\.attn\.qkv\.lora_B\.weight is missing",
    ),
    "a missing layer": (
        change_tensors(lambda t: [t.pop(f"{LAYER}.lora_{letter}.weight") for letter in "AB"]),
        r"the tensors of 'blocks\.0\.attn\.qkv' are missing",
    ),
    "a layer too many": (
        change_tensors(
            lambda t: t.update({f"base_model.model.blocks.0.attn.proj.lora_{x}.weight": torch.ones(2, 2) for x in "AB"})
        ),
        "which target_modules does not name",
    ),
    "a layer of another model": (
        change_tensors(lambda t: t.update({"base_model.model.layer1.lora_A.weight": torch.ones(2, 2)})),
        "adapts 'layer1', which this VisionTransformer does not have",
    ),
    "a tensor of another model": (
        change_tensors(lambda t: t.update({"base_model.model.layer1.weight": torch.ones(2, 2)})),
        r"adapts 'layer1\.weight', which this VisionTransformer does not have",
    ),
    "another width": (
        change_tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(2, 32)})),
        r"shapes \(2, 32\) and \(192, 2\), the weight is seen as \(192, 64\)",
    ),
    "another rank": (change_config(r=4), "has rank 2, but the config says 4"),
    "other classes": (
        change_tensors(
            lambda t: t.update(
                {"base_model.model.head.weight": torch.ones(7, 64), "base_model.model.head.bias": torch.ones(7)}
            )
        ),
        r"has 7 classes .* create the model with num_classes=7",
    ),
    "a base that was rewritten": (change_config(init_lora_weights="pissa"), "has changed the base"),
    "no peft": (change_config(peft_type="NOTHING"), "refused by peft"),
    "a setting that peft does not know": (change_config(use_magic=True), "refused by peft"),
    "not finite": (change_tensors(lambda t: t[f"{LAYER}.lora_A.weight"].fill_(float("inf"))), "holds NaN or infinity"),
    "truncated": (
        lambda d: truncate(d / "adapter_model.safetensors"),
        "is damaged",
    ),
    "no tensors": (lambda d: (d / "adapter_model.safetensors").unlink(), r"has no adapter_model\.safetensors"),
    "a half description": (
        lambda d: truncate(d / "adapter_config.json"),
        "is damaged",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peft") / "adapter"
    by_peft("test_vit", CONFIG, directory)
    return directory


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_named_and_the_model_stays(kind: str, theirs: Path, tmp_path: Path) -> None:
    damage, message = MISFITS[kind]
    directory = shutil.copytree(theirs, tmp_path / "a")
    damage(directory)
    model = make("test_vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_adapter(model, directory)
    now = model.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trains


def test_another_architecture_is_named(theirs: Path) -> None:
    with pytest.raises(ValueError, match=r"adapts 'blocks\..*', which this ResNet does not have"):
        import_adapter(make("resnet18"), theirs)


def test_a_model_takes_one_adapter(theirs: Path) -> None:
    model = import_adapter(make("test_vit"), theirs)
    with pytest.raises(ValueError, match="already carries LoRA"):
        import_adapter(model, theirs)


def test_directories_of_other_versions_are_refused(tmp_path: Path) -> None:
    pt.save_adapter(adapted("test_vit", pt.BitFit()), tmp_path / "a")
    config = json.loads((tmp_path / "a/paretune.json").read_text())
    for version in (1, 2, 4, None, "3", [3], "x" * 10**6):
        (tmp_path / "a/paretune.json").write_text(json.dumps(config | {"version": version}))
        with pytest.raises(
            ValueError, match=r"has format version .*; this paretune reads version 3$"
        ) as caught:
            pt.load_adapter(make("test_vit"), tmp_path / "a")
        assert len(str(caught.value)) < 300 + len(str(tmp_path))

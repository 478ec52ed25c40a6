"""Adapter files: they restore exactly, refuse what does not fit, and never leave half of anything."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import paretune as pt
from paretune.interchange import read_adapter
from paretune.interchange.checks import describe_tensors
from tests.contracts.backbones import images, make


def saved(directory: Path, strategy=None, arch: str = "resnet18") -> tuple[pt.Backbone, torch.Tensor]:
    """An adapter whose every tensor has moved, in ``directory``, and its logits."""
    backbone = pt.adapt(make(arch), strategy or pt.LoRA(rank=2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(backbone).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    pt.save_adapter(backbone, directory, classes=["a", "b", "c", "d", "e"], notes={"threat": "Linf(4/255)"})
    with torch.no_grad():
        return backbone, backbone(images(backbone.image_size))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_a_stock_timm_model_takes_the_adapter(tmp_path) -> None:
    backbone, logits = saved(tmp_path / "a")
    stock = timm.create_model("resnet18", num_classes=5)
    stock.load_state_dict(make("resnet18").module.state_dict())
    assert pt.load_adapter(stock, tmp_path / "a") is stock
    with torch.no_grad():
        x = (images(64) - backbone.mean) / backbone.std
        assert torch.equal(stock(x), logits)


def test_merged_weights_are_a_plain_timm_checkpoint(tmp_path) -> None:
    backbone, logits = saved(tmp_path / "a")
    path = pt.interchange.save_merged(backbone, tmp_path / "merged.safetensors")
    stock = timm.create_model("resnet18", num_classes=5, checkpoint_path=str(path)).eval()
    with torch.no_grad():
        assert torch.equal(stock((images(64) - backbone.mean) / backbone.std), logits)
        assert torch.equal(backbone(images(64)), logits)  # the model itself keeps its adapter
    assert pt.strategies.trainable_parameters(backbone)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        pt.interchange.save_merged(backbone, tmp_path / "merged.pth")


def test_the_card_and_the_description_say_what_it_is(tmp_path) -> None:
    backbone, _ = saved(tmp_path / "a")
    config, tensors = read_adapter(tmp_path / "a")
    assert config["call"] == "LoRA(rank=2)"
    assert config["base"]["fingerprint"] == make("resnet18").fingerprint
    assert config["classes"] == ["a", "b", "c", "d", "e"]
    assert config["notes"] == {"threat": "Linf(4/255)"}
    assert "layer1.0.conv1.lora_A" in tensors
    assert "fc.weight" in tensors
    assert "layer1.0.conv1.weight" not in tensors
    card = (tmp_path / "a/README.md").read_text()
    assert "LoRA(rank=2) on timm:resnet18" in card
    assert backbone.architecture in card


def test_saving_replaces_an_adapter_whole_and_nothing_else(tmp_path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "a", pt.BitFit())
    assert read_adapter(tmp_path / "a")[0]["call"] == "BitFit()"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not an adapter"):
        saved(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").exists()


def test_a_full_disk_leaves_the_old_adapter(tmp_path, monkeypatch) -> None:
    saved(tmp_path / "a")

    def full(*_args, **_kwargs) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path / "a", pt.BitFit())
    assert read_adapter(tmp_path / "a")[0]["call"] == "LoRA(rank=2)"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nan_is_not_saved(tmp_path) -> None:
    backbone = pt.adapt(make("test_vit"), pt.BitFit())
    with torch.no_grad():
        backbone.module.head.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"head\.bias holds NaN"):
        pt.save_adapter(backbone, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def edit(directory: Path, change) -> None:
    path = directory / "paretune.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_file(directory: Path, change) -> dict[str, torch.Tensor]:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    return tensors


def edit_tensors(directory: Path, change) -> None:
    tensors = edit_file(directory, change)
    edit(directory, lambda config: config.update(tensors=describe_tensors(tensors)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Peft has no such union, so that the file has our own names; with LoRA alone it has peft's.
OWN_NAMES = pt.LoRA(rank=2) + pt.BitFit(where="layer1")

DAMAGE = {
    "truncated tensors": (lambda d: truncate(d / "adapter_model.safetensors"), "is damaged"),
    "truncated description": (lambda d: truncate(d / "paretune.json"), "is damaged"),
    "no tensors": (
        lambda d: (d / "adapter_model.safetensors").unlink(),
        r"has no adapter_model\.safetensors",
    ),
    "a pickle": (lambda d: torch.save({"x": torch.ones(1)}, d / "adapter_model.safetensors"), "is damaged"),
    "another format": (lambda d: edit(d, lambda c: c.update(format="peft")), "does not describe"),
    "a newer version": (lambda d: edit(d, lambda c: c.update(version=9)), "format version 9"),
    "no strategy": (lambda d: edit(d, lambda c: c.pop("strategy")), "lacks strategy"),
    "an unknown strategy": (
        lambda d: edit(d, lambda c: c["strategy"].update(name="os.system")),
        "unknown name 'os.system'",
    ),
    "an unknown field": (lambda d: edit(d, lambda c: c["strategy"].update(depth=2)), "no field depth"),
    "a strategy out of range": (lambda d: edit(d, lambda c: c["strategy"].update(rank=-1)), "rank must be"),
    "a missing tensor": (
        lambda d: edit_tensors(d, lambda t: t.pop("layer1.0.conv1.lora_B")),
        "lora_B is missing",
    ),
    "an extra tensor": (lambda d: edit_tensors(d, lambda t: t.update(evil=torch.ones(2))), "evil is unknown"),
    "another rank": (
        lambda d: edit_tensors(d, lambda t: t.update({"layer1.0.conv1.lora_A": torch.ones(3, 576)})),
        r"has shape \(3, 576\), the model needs \(2, 576\)",
    ),
    "peft's file lacks a tensor": (
        lambda d: edit_file(d, lambda t: t.pop("base_model.model.fc.weight")),
        r"do not belong together: they disagree on base_model\.model\.fc\.weight",
    ),
    "peft's file has another rank": (
        lambda d: edit_file(
            d, lambda t: t.update({"base_model.model.conv1.lora_A.weight": torch.ones(3, 3, 7, 7)})
        ),
        r"has shape \(3, 3, 7, 7\), which is not \(2, 147\)",
    ),
    "no layout": (lambda d: edit(d, lambda c: c["peft"].pop("names")), "do not belong together"),
    "a layout of another kind": (lambda d: edit(d, lambda c: c.update(peft=[1])), "peft is"),
    "sites of another kind": (lambda d: edit(d, lambda c: c.update(sites=["x"])), "is damaged"),
    "a head of another kind": (lambda d: edit(d, lambda c: c.update(head=7)), "head is 7"),
    "a head that is not there": (
        lambda d: edit(d, lambda c: c.update(head="../fc")),
        "adapter's head is '../fc'",
    ),
    "a rank of another kind": (lambda d: edit(d, lambda c: c["strategy"].update(rank="8")), "is damaged"),
    "other numbers": (
        lambda d: edit_file(d, lambda t: t["base_model.model.fc.bias"].add_(1e-6)),
        r"safetensors is damaged: fc\.bias has other numbers than were saved",
    ),
    "disagreeing files": (lambda d: edit(d, lambda c: c["tensors"].pop("fc.bias")), r"disagree on fc\.bias"),
}


@pytest.mark.some(12)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_adapter_is_named_and_the_model_untouched(kind: str, tmp_path) -> None:
    saved(
        tmp_path / "a", OWN_NAMES if kind in ("a missing tensor", "an extra tensor", "another rank") else None
    )
    damage, message = DAMAGE[kind]
    damage(tmp_path / "a")
    model = make("resnet18")
    before = state(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pt.load_adapter(model, tmp_path / "a")
    assert unchanged(model, before)


def test_a_model_that_differs_is_named_and_untouched(tmp_path) -> None:
    saved(tmp_path / "a")
    cases = [
        (make("test_vit"), "trained on timm:resnet18, this model is timm:test_vit"),
        (make("resnet18", seed=3), "other base weights: .* tensors differ"),
        (timm.create_model("resnet18", num_classes=7), "has 5 classes .*create the model with num_classes=5"),
    ]
    for model, message in cases:
        before = state(model)
        with pytest.raises(ValueError, match=message):
            pt.load_adapter(model, tmp_path / "a")
        assert unchanged(model, before)
    assert pt.load_adapter(make("resnet18", seed=3), tmp_path / "a", check_base=False)
    with pytest.raises(FileNotFoundError, match="is not an adapter"):
        pt.load_adapter(make("resnet18"), tmp_path / "nothing")


def test_an_adapter_goes_onto_a_model_only_once(tmp_path) -> None:
    backbone, _ = saved(tmp_path / "a")
    with pytest.raises(ValueError, match="already carries LoRA"):
        pt.load_adapter(backbone, tmp_path / "a")
    with pytest.raises(ValueError, match="already carries LoRA"):
        pt.adapt(backbone, pt.BitFit())
    with pytest.raises(ValueError, match="carries no adapter"):
        pt.save_adapter(make("resnet18"), tmp_path / "b")


def test_full_fine_tuning_needs_no_matching_base(tmp_path) -> None:
    """Every tensor is in the file (running statistics too), so the base's weights do not matter."""
    _, logits = saved(tmp_path / "a", pt.FullFineTune(bn="adapt"))
    other = pt.load_adapter(make("resnet18", seed=4), tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(other(images(64)), logits)


def test_a_directory_may_be_moved(tmp_path) -> None:
    _, logits = saved(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(pt.load_adapter(make("resnet18"), tmp_path / "b")(images(64)), logits)

"""Exported models run without paretune and have the same logits.

timm and transformers load the very weights of the merged model: equal bit for bit. Merging and ONNX Runtime round in another
order; there the rule is the error bound of :mod:`tests.unit.interchange.rounding`.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import paretune as pt
from paretune.interchange.adapters import reading
from paretune.interchange.export import export_model
from paretune.strategies import Strategy
from tests.contracts.backbones import make
from tests.contracts.contract import perturb
from tests.unit.interchange.adapters.test_reading import FIXTURES, timm_twin
from tests.unit.interchange.rounding import rounding_bound

CLASSES = ["zero", "one", "two", "three", "four"]


def adapted(name: str, strategy: Strategy) -> pt.Backbone:
    backbone = pt.adapt(make(name), strategy)
    perturb(backbone)
    return backbone.eval()


def images(size: int, number: int = 4) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(7))


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Any = model(x)
    return found if isinstance(found, Tensor) else found.logits


def onnx_logits(path: Path, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("vit_tiny_patch16_224", pt.LoRA(targets=("q", "v"))),
        ("convnext_atto", pt.LoRA() + pt.BitFit()),
        ("efficientnet_lite0", pt.LoRA(bn="adapt")),
        ("resnet18", pt.IA3()),
    ],
    ids=repr,
)
def test_timm_and_transformers_load_the_merged_model_of_timm(
    name: str, strategy: Strategy, tmp_path: Path
) -> None:
    config = timm.get_pretrained_cfg(name)
    size = make(name).image_size
    changes = {"img_size": size} if config is not None and config.fixed_input_size else {}
    module = timm.create_model(name, num_classes=5, **changes)
    backbone = pt.adapt(pt.Backbone(module, mean=(0.485, 0.456, 0.406), image_size=size), strategy)
    perturb(backbone)
    before = state(backbone)
    assert export_model(backbone.eval(), tmp_path / "plain", "timm", classes=CLASSES) == tmp_path / "plain"
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())

    plain = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
    merged = pt.merge_adapter(copy.deepcopy(backbone))
    x = images(size)
    assert torch.equal(logits(plain, (x - backbone.mean) / backbone.std), logits(merged, x))
    assert bool(((logits(backbone, x) - logits(merged, x)).abs() <= rounding_bound(merged, x)).all())
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "plain").eval()
    assert torch.equal(logits(wrapped, (x - backbone.mean) / backbone.std), logits(merged, x))
    assert wrapped.config.id2label == dict(enumerate(CLASSES))
    assert plain.pretrained_cfg["mean"] == [0.485, 0.456, 0.406]
    assert list(plain.pretrained_cfg["input_size"]) == [3, size, size]
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["label_names"] == CLASSES


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("hf_vit", pt.LoRA()), ("hf_resnet", pt.LoRA(bn="adapt")), ("hf_swin", pt.IA3())],
    ids=repr,
)
def test_transformers_loads_the_merged_model(name: str, strategy: Strategy, tmp_path: Path) -> None:
    backbone = adapted(name, strategy)
    export_model(backbone, tmp_path / "plain", "hf", classes=CLASSES)
    plain = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "plain").eval()
    merged = pt.merge_adapter(copy.deepcopy(backbone))
    x = images(backbone.image_size)
    assert torch.equal(logits(plain, (x - backbone.mean) / backbone.std), logits(merged, x))
    assert bool(((logits(backbone, x) - logits(merged, x)).abs() <= rounding_bound(merged, x)).all())
    assert plain.config.id2label == dict(enumerate(CLASSES))
    assert plain.config.num_labels == 5
    again = pt.load_backbone(f"hf:{tmp_path / 'plain'}", num_classes=5)
    assert torch.equal(logits(again, x), logits(merged, x))


@pytest.mark.some(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("hf_vit", pt.LoRA()),
        ("efficientnet_lite0", pt.LoRA(bn="adapt")),
        ("convnext_atto", pt.Compacter() + pt.LoRA()),
    ],
    ids=repr,
)
def test_onnx_runtime_computes_the_same(name: str, strategy: Strategy, tmp_path: Path) -> None:
    backbone = adapted(name, strategy)
    path = export_model(backbone, tmp_path / "model.onnx", "onnx", classes=CLASSES)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    for number in (1, 3):
        x = images(backbone.image_size, number)
        apart = (onnx_logits(path, x) - logits(backbone, x)).abs()
        assert bool((apart <= rounding_bound(backbone, x)).all())


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["compacter_pp", "lora"])
def test_an_adapter_of_another_library_becomes_an_onnx_graph(name: str, tmp_path: Path) -> None:
    """With the normalisation inside or outside; Compacter++, which reads the residual stream, is a part of the graph."""
    backbone = pt.Backbone(timm_twin().float(), image_size=16)
    reading.load(backbone, FIXTURES / name)
    x = images(16, 3)
    expected, bound = logits(backbone, x), rounding_bound(backbone, x)
    inside = export_model(backbone, tmp_path / "inside.onnx", "onnx", classes=CLASSES)
    assert bool(((onnx_logits(inside, x) - expected).abs() <= bound).all())
    outside = export_model(backbone, tmp_path / "outside.onnx", "onnx", normalise=False)
    normalised = (x - backbone.mean) / backbone.std
    assert bool(((onnx_logits(outside, normalised) - expected).abs() <= bound).all())

    import onnx

    about = {entry.key: entry.value for entry in onnx.load(inside).metadata_props}
    assert json.loads(about["paretune.classes"]) == CLASSES
    assert about["paretune.input"] == "images in [0, 1]"


def test_the_bound_tells_rounding_from_another_model() -> None:
    """It is no licence: a forgotten adapter, or weights rounded to bfloat16, are outside."""
    backbone = adapted("vit_tiny_patch16_224", pt.LoRA())
    x = images(backbone.image_size)
    expected, bound = logits(backbone, x), rounding_bound(backbone, x)
    coarse = copy.deepcopy(backbone).bfloat16().float()
    assert bool(((logits(coarse, x) - expected).abs() > bound).all())
    assert bool(((logits(pt.remove_adapter(backbone), x) - expected).abs() > bound).all())


@pytest.mark.parametrize(
    ("name", "strategy", "form", "message"),
    [
        (
            "hf_vit",
            pt.Compacter(),
            "hf",
            r"needs plain weights: Compacter cannot be merged: .* use format='onnx'",
        ),
        ("resnet18", pt.Adapter(), "timm", "needs plain weights: Adapter cannot be merged"),
        ("hf_vit", pt.LoRA(), "timm", r"made by timm.create_model, got a ViTForImageClassification"),
        ("resnet18", pt.LoRA(), "hf", "needs a model of transformers, got a ResNet"),
        ("resnet18", pt.LoRA(), "gguf", "format must be one of timm, hf, onnx, got 'gguf'"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    name: str, strategy: Strategy, form: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_model(adapted(name, strategy), tmp_path / "plain", form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["activation", "head"])
def test_a_network_that_its_name_does_not_tell_is_refused(change: str, tmp_path: Path) -> None:
    """timm would build another one from the name: with GELU, or without the second layer of the head."""
    backbone = make("vit_tiny_patch16_224")
    if change == "activation":
        for block in backbone.module.blocks:
            block.mlp.act = nn.ReLU()
    else:
        backbone.module.fc_norm = nn.Linear(192, 192)
    pt.adapt(backbone, pt.LoRA())
    with pytest.raises(ValueError, match=r"cannot be made again .* use format='onnx'"):
        export_model(backbone, tmp_path / "plain", "timm")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_model_without_an_adapter_is_written_too(tmp_path: Path) -> None:
    plain = timm.create_model("resnet18", num_classes=5).eval()
    export_model(plain, tmp_path / "plain", "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).eval()
    assert torch.equal(logits(again, images(64)), logits(plain, images(64)))


def test_an_onnx_file_of_two_gibibytes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("paretune.interchange.export.LARGEST_ONNX", 1000)
    with pytest.raises(ValueError, match="an ONNX file of one piece has less than 1,000"):
        export_model(timm_twin(), tmp_path / "model.onnx", "onnx")


def test_a_directory_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty directory"):
        export_model(adapted("resnet18", pt.LoRA()), tmp_path, "timm")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("classes", [["a"], ["a", "a", "b", "c", "d"]])
def test_class_names_must_be_one_a_logit(classes: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes must be 5 different names"):
        export_model(adapted("resnet18", pt.LoRA()), tmp_path / "plain", "timm", classes=classes)


def test_without_its_packages_onnx_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"pip install 'paretune\[onnx\]'"):
        export_model(timm_twin(), tmp_path / "model.onnx", "onnx")


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["tv_vit", "resnet18"])
def test_a_model_in_half_precision_becomes_a_graph_that_runs(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = pt.adapt(make(name).to(dtype), pt.LoRA(rank=2))
    perturb(model)
    expected = logits(copy.deepcopy(model).float(), x := images(model.image_size))
    for normalise, shown in ((True, x), (False, (x - model.mean) / model.std)):
        export_model(model, tmp_path / f"{normalise}.onnx", "onnx", normalise=normalise)
        found = onnx_logits(tmp_path / f"{normalise}.onnx", shown)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert next(model.module.parameters()).dtype is dtype

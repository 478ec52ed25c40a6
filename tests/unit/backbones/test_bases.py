"""What can be the base of a Backbone: one head, floating-point values, logits; in any precision, at one size."""

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

import paretune as pt
from tests.tiny import network

TOKENS = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8, "num_labels": 4,
}  # fmt: skip
LEVIT = {
    "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
    "key_dim": [8, 8, 8], "num_labels": 4,
}  # fmt: skip


class Averaged(nn.Module):
    """Two networks of different widths whose logits are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        self.other = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.3 * self.one(x) + 0.7 * self.other(x)


def _vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**{**TOKENS, **changes})).eval()


def _twins() -> list[tuple[nn.Module, int]]:
    swift = transformers.SwiftFormerConfig(
        image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 8, 16, 16], num_labels=4
    )
    return [
        (transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**TOKENS)), 32),
        (transformers.LevitForImageClassificationWithTeacher(transformers.LevitConfig(**LEVIT)), 64),
        (transformers.SwiftFormerForImageClassification(swift), 64),
        (Averaged(), 8),
    ]


@pytest.mark.parametrize("which", range(4), ids=["deit", "levit", "swiftformer", "own"])
def test_heads_that_are_added_up_are_refused_as_only_one_would_train(which) -> None:
    module, size = _twins()[which]
    with pytest.raises(ValueError, match=r"adds up the heads '\S+' and '\S+'"):
        pt.Backbone(module, image_size=size)


def test_heads_are_told_apart_at_the_latest_when_images_come() -> None:
    with pytest.raises(ValueError, match="adds up the heads"):  # its configuration knows the size
        pt.Backbone(_twins()[0][0])
    model = pt.Backbone(Averaged())  # which takes no images of 224 pixels
    with pytest.raises(ValueError, match="adds up the heads"):
        model(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="adds up the heads"):
        pt.evaluate(model, pt.load_data("digits", img_size=8, limit=60).report)


def test_a_distilled_directory_of_transformers_is_refused_for_its_heads(tmp_path) -> None:
    _twins()[0][0].save_pretrained(tmp_path)
    transformers.DeiTImageProcessor().save_pretrained(tmp_path)
    for options in ({"num_classes": 4}, {"num_classes": 3}, {"num_classes": 4, "pretrained": False}):
        with pytest.raises(
            ValueError, match="adds up the heads 'cls_classifier' and 'distillation_classifier'"
        ):
            pt.load_backbone(f"hf:{tmp_path}", **options)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s", "repvit_m0_9"])
def test_distilled_models_of_timm_are_refused(name) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="has the heads"):
        pt.load_backbone(f"timm:{name}", num_classes=4, pretrained=False)


def test_hidden_layers_of_the_width_of_the_head_and_idle_heads_are_no_heads() -> None:
    deep = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)
    )
    assert pt.Backbone(deep, image_size=8).head == "5"

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Linear(192, 4)
            self.fc = nn.Linear(192, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    assert pt.Backbone(Idle(), image_size=8).head == "fc"
    with pytest.raises(ValueError, match="come from 'fc', not from 'aux'"):
        pt.Backbone(Idle(), head="aux", image_size=8)


def test_a_head_of_another_width_than_the_logits_is_refused() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 4)
            self.unused = nn.Linear(4, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(ValueError, match="'unused' has 9 outputs, but the network returns 4 logits"):
        pt.Backbone(Behind(), image_size=8)(torch.rand(1, 3, 8, 8))
    assert pt.Backbone(Behind(), image_size=8, head="fc")(torch.rand(1, 3, 8, 8)).shape == (1, 4)


class Foreign(nn.Linear):
    """Says that it is of a package for quantised layers."""


class Packed(nn.Module):
    """Keeps a weight as integers."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
        self.fc = nn.Linear(3, 2)


@pytest.mark.filterwarnings(
    "ignore:.*torch.ao.quantization:DeprecationWarning", "ignore:torch.quantize_per:UserWarning"
)
def test_quantised_models_are_refused_with_what_shows_it(monkeypatch) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2))
    dynamic = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear})
    monkeypatch.setattr(Foreign, "__module__", "bitsandbytes.nn.modules")
    with_bytes = nn.Sequential(nn.Flatten(), Foreign(192, 2))
    through = _vit()
    through.hf_quantizer = object()
    cases = [(dynamic, "1 is a torch.ao.nn.quantized"), (with_bytes, "1 is a bitsandbytes")]
    cases += [(Packed(), "packed is int8"), (through, "of transformers")]
    for module, shown in cases:
        with pytest.raises(ValueError, match=rf"is quantised \(.*{shown}"):
            pt.Backbone(module, image_size=8)


def test_a_model_without_values_can_be_counted_but_not_used() -> None:
    with torch.device("meta"):
        bare = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Linear(12, 10))
    model = pt.Backbone(bare, image_size=8)
    data = pt.load_data("digits", img_size=8, limit=60)
    assert sum(parameter.numel() for parameter in model.parameters()) == 193 * 12 + 13 * 10
    uses: list[Any] = [
        lambda: model(torch.rand(1, 3, 8, 8)),
        lambda: model.fingerprint,
        lambda: pt.evaluate(model, data.report),
        lambda: pt.evaluate(bare, data.report, [pt.PGD(pt.Linf(0.1), steps=1)]),
        lambda: pt.PGD(pt.Linf(0.1), steps=1)(
            model, torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)
        ),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="is on the meta device and has no values"):
            use()


def test_detectors_segmenters_and_features_are_refused() -> None:
    import torchvision

    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    )
    with pytest.raises(ValueError, match="FasterRCNN detects objects"):
        pt.Backbone(detector)
    tiny = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "num_labels": 4}
    segmenter = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**tiny)).eval()
    yolos = transformers.YolosForObjectDetection(
        transformers.YolosConfig(
            **{**TOKENS, "image_size": [32, 32], "num_labels": 3, "num_detection_tokens": 4}
        )
    ).eval()
    for module, shape in ((segmenter, r"\(1, 4, 16, 16\)"), (yolos, r"\(1, 4, 4\)")):
        size = 64 if module is segmenter else 32
        with pytest.raises(ValueError, match=rf"must return logits \(batch, classes\), got shape {shape}"):
            pt.Backbone(module, image_size=size)(torch.rand(1, 3, size, size))
    for options in ({"features_only": True}, {"num_classes": 0}):
        with pytest.raises(ValueError, match="head must name a Linear or Conv2d layer"):
            pt.Backbone(timm.create_model("test_resnet", **options))


class Returns(nn.Module):
    """Returns its logits in some form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 10)
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(self.fc(x.flatten(1)), x)


@pytest.mark.parametrize(
    "form",
    [
        lambda logits, _: logits,
        lambda logits, x: (logits, x),
        lambda logits, x: (logits, x.flatten(1)),
        lambda logits, _: (logits,),
        lambda logits, x: {"logits": logits, "features": x},
        lambda logits, _: transformers.modeling_outputs.ImageClassifierOutput(logits=logits),
        lambda logits, _: transformers.modeling_outputs.BaseModelOutputWithNoAttention(
            last_hidden_state=logits
        ),
    ],
)
def test_logits_are_found_in_what_a_model_returns(form) -> None:
    module, images = Returns(form), torch.rand(2, 3, 8, 8)
    data = pt.load_data("digits", img_size=8, limit=60).report
    model = pt.Backbone(module, image_size=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(model(images), module.fc(images.flatten(1)))
    attack = pt.PGD(pt.Linf(4 / 255), steps=1)
    for each in (model, module):
        assert pt.evaluate(each, data, [attack]).clean.shape == (len(data),)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda logits, _: (logits, logits), r"several of shape \(2, 10\)"),
        (lambda logits, _: [logits], "got a list"),
        (lambda _logits, _: None, "got a NoneType"),
        (lambda logits, _: [{"boxes": logits}], "got a list"),
        (lambda logits, _: {"scores": logits}, "got a dict"),
        (lambda _logits, x: x, r"got shape \(2, 3, 8, 8\)"),
        (lambda _logits, x: (x, x), r"got shape \(2, 3, 8, 8\)"),
        (lambda logits, _: logits.argmax(1), r"got shape \(2,\)"),
        (lambda logits, _: logits.long(), "got torch.int64"),
    ],
)
def test_what_is_no_logits_is_refused(form, message) -> None:
    model = pt.Backbone(Returns(form), image_size=8)
    with pytest.raises(ValueError, match=message):
        model(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=message.replace("(2", r"(\d+")):
        pt.evaluate(Returns(form), pt.load_data("digits", img_size=8, limit=60).report)


def test_a_model_of_transformers_may_return_tuples(tmp_path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        num_labels=4,
        return_dict=False,
    )
    module = transformers.ResNetForImageClassification(config).eval()
    images = torch.rand(2, 3, 32, 32)
    model = pt.Backbone(module, image_size=32)
    assert torch.equal(model(images), module((images - 0.5) / 0.5)[0])
    name = _saved(tmp_path, "ViT", "ViTImageProcessor", **VISION, return_dict=False)
    assert pt.load_backbone(name, num_classes=3)(images).shape == (2, 3)


def test_wrappers_are_taken_off_and_compiled_parts_refused() -> None:
    plain = network().eval()
    names = list(plain.state_dict())
    for wrapped in (torch.compile(plain), nn.DataParallel(plain), torch.compile(nn.DataParallel(plain))):
        model = pt.Backbone(wrapped, image_size=8, sites=["1.norm"])
        assert model.module is plain
        assert list(model.module.state_dict()) == names
    parts = nn.Sequential(nn.Flatten(), torch.compile(nn.Linear(192, 8)), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"the part '1' of this Sequential is wrapped by torch.compile"):
        pt.Backbone(parts)
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got function"):
        pt.Backbone(lambda x: x)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_any_precision_is_used_as_it_is_and_scored_in_float32(dtype) -> None:
    exact = pt.Backbone(
        _vit(num_labels=10), image_size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    images = torch.rand(4, 3, 32, 32)
    data = pt.load_data("digits", img_size=32, limit=60).report
    attack = pt.PGD(pt.Linf(4 / 255), steps=2)
    inner = pt.Backbone(
        _vit(num_labels=10).to(dtype), image_size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    for model in (inner, copy.deepcopy(exact).to(dtype)):
        logits = model(images)
        assert logits.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert (logits - exact(images)).abs().max() < 4 * torch.finfo(dtype).eps + 1e-6
        assert model.mean.flatten().tolist() == exact.mean.flatten().tolist()
        scores = pt.evaluate(model, data, [attack])
        # The network sees the images that it is meant to see: normalised in float32, then cast once.
        seen = []
        handle = model.module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(images)
        handle.remove()
        assert torch.equal(seen[0], ((images - exact.mean) / exact.std).to(dtype)) or dtype == torch.float64
        with torch.no_grad():
            own = torch.cat(
                [model(part).argmax(1) for part in torch.split(data[torch.arange(len(data))][0], 128)]
            )
        assert (own == data.labels).tolist() == scores.clean.tolist()
    assert pt.evaluate(_vit(num_labels=10).to(dtype), data, [attack]).clean.shape == (len(data),)
    small = pt.load_data("digits", img_size=8, limit=60).report  # for a network that casts nothing itself
    assert pt.evaluate(network().eval().to(dtype), small, [attack]).clean.shape == (len(small),)
    assert attack(_vit(num_labels=10).to(dtype), images, torch.arange(4)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_any_precision_is_adapted_saved_and_loaded(dtype, tmp_path) -> None:
    def fresh() -> pt.Backbone:
        torch.manual_seed(0)
        return pt.Backbone(network().eval().to(dtype), image_size=8, sites=["1.norm"])

    for strategy in (pt.LoRA(rank=2), pt.Compacter()):
        model = pt.adapt(fresh(), strategy)
        model(torch.rand(2, 3, 8, 8)).sum().backward()
        pt.save_adapter(model, tmp_path / type(strategy).__name__)
        loaded = pt.load_adapter(fresh(), tmp_path / type(strategy).__name__)
        images = torch.rand(2, 3, 8, 8)
        assert torch.equal(loaded(images), model.eval()(images))


@pytest.mark.parametrize(
    "size", [(32,), (32, 48, 3), (0, 48), (32.5, 48), (True, 48), 0, 32.5, "32", "32x48", True], ids=str
)
def test_sizes_are_whole_numbers_of_pixels(size) -> None:
    with pytest.raises(ValueError, match="img_size must be"):
        pt.load_backbone("timm:test_vit", num_classes=3, pretrained=False, img_size=size)
    with pytest.raises(ValueError, match="image_size must be"):
        pt.Backbone(nn.Linear(2, 2), image_size=size)


def test_patches_of_one_number_of_timm_work() -> None:
    model = pt.load_backbone("timm:xcit_nano_12_p16_224", num_classes=3, pretrained=False, img_size=32)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match="img_size"):
        pt.load_backbone("timm:xcit_nano_12_p16_224", num_classes=3, pretrained=False, img_size=33)


def _saved(directory, kind: str, processor: str, **settings: Any) -> str:
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **settings)
    getattr(transformers, f"{kind}ForImageClassification")(config).save_pretrained(directory)
    getattr(transformers, processor)().save_pretrained(directory)
    return f"hf:{directory}"


VISION = {key: value for key, value in TOKENS.items() if key != "num_labels"}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2]}


@pytest.mark.parametrize(
    ("kind", "processor", "settings", "size"),
    [
        ("ViT", "ViTImageProcessor", {**VISION, "image_size": [32, 32], "patch_size": [8, 8]}, 32),
        (
            "Hiera",
            "BitImageProcessor",
            {"embed_dim": 16, "image_size": [64, 64], "depths": [1] * 4, "num_heads": [1, 2, 2, 2]},
            64,
        ),
        ("PvtV2", "PvtImageProcessor", {"image_size": [64, 64], **STAGES}, 64),
        ("CLIP", "CLIPImageProcessor", {"vision_config": VISION}, 32),
        ("Siglip", "SiglipImageProcessor", {"vision_config": VISION}, 32),
        ("PPLCNet", "PPLCNetImageProcessor", {"scale": 0.25}, 224),
    ],
)
def test_sizes_of_transformers_are_read_wherever_they_stand(
    tmp_path, kind, processor, settings, size
) -> None:
    model = pt.load_backbone(_saved(tmp_path, kind, processor, **settings), num_classes=3)
    assert model.image_size == size
    assert model(torch.rand(1, 3, size, size)).shape == (1, 3)


def test_transformers_models_are_loaded_in_float32_and_quantised_or_damaged_ones_refused(tmp_path) -> None:
    import json

    _vit().half().save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    model = pt.load_backbone(f"hf:{tmp_path}", num_classes=4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, weights, message in (
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            None,
            "is quantised",
        ),
        ({}, b"cut", "the weights of hf:.* cannot be had"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        if weights:
            (tmp_path / "model.safetensors").write_bytes(weights)
        with pytest.raises(ValueError, match=message):
            pt.load_backbone(f"hf:{tmp_path}", num_classes=4)


def test_an_export_of_timm_is_loaded_through_transformers(tmp_path) -> None:
    model = pt.load_backbone("timm:test_resnet", num_classes=3, pretrained=False, img_size=32)
    pt.interchange.export_model(model, tmp_path / "t", "timm")
    again = pt.load_backbone(f"hf:{tmp_path / 't'}", num_classes=3)
    images = torch.rand(2, 3, 32, 32)
    assert again.image_size == 32
    assert torch.allclose(again(images), model(images), atol=1e-6)


def test_without_a_network_weights_are_suggested(monkeypatch) -> None:
    def offline(*_args: Any, **_options: Any) -> nn.Module:
        raise FileNotFoundError("no connection\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match=r"cannot be had \(no connection\); without a network give a file: .*--weights PATH"
    ):
        pt.load_backbone("timm:resnet18", num_classes=3)
    with pytest.raises(ValueError, match=r"timm has no weights 'resnet18.nope'"):
        pt.load_backbone("timm:resnet18.nope", num_classes=3)


def test_a_model_that_takes_more_than_images_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 4)

        def forward(
            self, images: torch.Tensor, age: torch.Tensor, *, place: torch.Tensor, name: str = ""
        ) -> torch.Tensor:
            logits: torch.Tensor = self.head(images.flatten(1)) + age + place
            return logits

    with pytest.raises(ValueError, match="this Two takes age, place beside images"):
        pt.Backbone(Two(), image_size=2)


def test_a_model_of_which_a_part_has_no_values_or_no_shape_is_refused() -> None:
    part: Any = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4))
    part[1].to("meta")
    with pytest.raises(ValueError, match=r"1\.weight of this Sequential is on the meta device"):
        pt.Backbone(part, image_size=2)
    with warnings.catch_warnings(action="ignore"):
        lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"1\.weight of this Sequential has no shape yet"):
        pt.Backbone(lazy, image_size=2)
    lazy(torch.zeros(1, 3, 2, 2))
    assert pt.Backbone(lazy, image_size=2).num_classes == 4


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
def test_a_torchscript_program_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    for program in (torch.jit.script(module), torch.jit.trace(module, torch.zeros(1, 3, 2, 2))):
        with pytest.raises(ValueError, match="is a TorchScript program"):
            pt.Backbone(program, image_size=2)

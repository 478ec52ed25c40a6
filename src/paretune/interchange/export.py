"""Adapted models as files that run without paretune: a timm or transformers checkpoint, or an ONNX graph."""

import copy
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone, dtype_of, logits_of, network_of, written
from paretune.backbones.random import borrowed_randomness
from paretune.data.sizes import checked_size, pair
from paretune.interchange.checks import check_plain_head
from paretune.interchange.directory import write_directory
from paretune.runs.disk import write_atomically, write_json
from paretune.strategies.mechanics.adapting import adaptation_of, anatomy_of, merge_adapter
from paretune.strategies.mechanics.base import Anatomy
from paretune.strategies.mechanics.wrapped import TOLERANCE, random_images, relative_distance

ExportFormat = Literal["timm", "hf", "onnx"]
LARGEST_ONNX = 2**31  # bytes; protobuf measures messages in a signed 32-bit integer


def export_model(
    model: nn.Module,
    path: str | Path,
    format: ExportFormat,
    *,
    classes: Sequence[str] | None = None,
    normalise: bool = True,
) -> Path:
    """Write ``model`` with its adapter merged in; the model itself stays as it is.

    ``"timm"`` writes a directory for ``timm.create_model("local-dir:PATH", pretrained=True)``, which transformers reads too,
    ``"hf"`` one for ``AutoModelForImageClassification.from_pretrained(PATH)``. Both hold plain weights, and of a Backbone
    also the mean and std of the images. ``"onnx"`` writes one file with the input ``images`` (batch, channels, height,
    width) and the output ``logits`` (batch, classes), for batches of any size. An adapter that cannot be merged (Compacter)
    becomes part of its graph, and a model in half precision computes there in float32.

    Args:
        model: a Backbone, or a plain module of timm or transformers; adapted or not.
        path: a directory that does not exist yet or is empty, or for ``"onnx"`` a file.
        format: ``"timm"``, ``"hf"`` or ``"onnx"``.
        classes: names in the order of the logits.
        normalise: ``"onnx"`` of a Backbone only: True puts the normalisation into the graph, which then takes images in
            [0, 1]; False leaves it to the caller, as it is in the other formats.

    Raises:
        ValueError: the adapter cannot be merged, the model is of another library, or cannot be made again from the files.
        FileExistsError: the directory holds something.
        ImportError: the packages that write ONNX are missing; the message has the install line.
    """
    writers: dict[str, Callable[..., None]] = {"timm": _write_timm, "hf": _write_transformers}
    if format not in get_args(ExportFormat):
        raise ValueError(f"format must be one of {', '.join(get_args(ExportFormat))}, got {format!r}")
    path = Path(path)
    anatomy = anatomy_of(model)
    head: Any = network_of(model).get_submodule(anatomy.head)
    number = head.weight.shape[0]
    names = [str(name) for name in classes] if classes is not None else None
    if names is not None and (len(names) != number or len(set(names)) != number):
        raise ValueError(f"classes must be {number} different names, one a logit; got {names}")
    order = model.channel_order if isinstance(model, Backbone) else None
    if order is not None and format != "onnx":
        raise ValueError(
            f"format={format!r} cannot say that the network takes the channels in the order {order}; use format='onnx'"
        )
    if format != "onnx":
        check_plain_head(network_of(model), anatomy.head)
    plain = _merged(model, format)
    if format == "onnx":
        _write_onnx(plain, path, anatomy, names, normalise)
    else:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(f"{path} exists and is not an empty directory; choose another")
        network: Any = network_of(plain)
        network.register_state_dict_post_hook(_untie)
        write_directory(path, "", lambda directory: writers[format](plain, directory, anatomy, names))
    return path


def _merged(model: nn.Module, format: str) -> nn.Module:
    """A copy on the CPU in evaluation mode, merged where that is possible or needed."""
    twin = copy.deepcopy(model).cpu().eval()
    if format == "onnx" and dtype_of(twin).itemsize < 4:
        twin = twin.float()  # ONNX has no convolution in bfloat16; onnxruntime crashes on graphs in float16
    adaptation = adaptation_of(twin)
    if adaptation is not None and not (format == "onnx" and adaptation.strategy.why_not_mergeable):
        try:
            merge_adapter(twin)
        except ValueError as error:
            if format == "onnx":
                return twin  # peft's layers, of which not every kind merges
            raise ValueError(
                f"format={format!r} needs plain weights: {error}, or use format='onnx'"
            ) from None
    return twin.requires_grad_(False)


def _untie(_module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    """Tied tensors are written under each of their names, because the model made of them ties nothing."""
    for name, value in state.items():
        state[name] = value.clone()


def _write_timm(model: nn.Module, directory: Path, anatomy: Anatomy, classes: list[str] | None) -> None:
    import timm

    module: Any = network_of(model)
    recorded = getattr(module, "pretrained_cfg", None)
    if not recorded or not timm.is_model(recorded.get("architecture", "")):
        raise ValueError(
            f"format='timm' needs a model made by timm.create_model, got a {type(module).__name__}"
        )
    settings = {
        key: value for key, value in dict(recorded).items() if value is not None and key != "state_dict"
    }
    size = anatomy.image_size or checked_size("input_size", settings["input_size"][-2:])
    settings |= {"input_size": [anatomy.channels, *pair(size)], "num_classes": module.num_classes}
    if isinstance(model, Backbone):
        settings |= {"mean": written(model.mean), "std": written(model.std), "crop_pct": 1.0}
    arguments = {"img_size": size} if settings.get("fixed_input_size") else {}
    described = {"pretrained_cfg": settings} | ({"label_names": classes} if classes else {})
    timm.models.save_for_hf(
        module, str(directory), model_config=described, model_args=arguments, safe_serialization=True
    )
    # timm records the number of classes among the arguments too, where transformers' wrapper of timm cannot take it.
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    write_json(directory / "config.json", config)
    _check_same(lambda: timm.create_model(f"local-dir:{directory}", pretrained=True), module, anatomy)


def _write_transformers(
    model: nn.Module, directory: Path, anatomy: Anatomy, classes: list[str] | None
) -> None:
    import transformers

    module: Any = network_of(model)
    if not isinstance(module, transformers.PreTrainedModel):
        raise ValueError(
            f"format='hf' needs a model of transformers, got a {type(module).__name__}; use 'timm' or 'onnx'"
        )
    head: Any = module.get_submodule(anatomy.head)
    names = classes or [module.config.id2label.get(i, f"LABEL_{i}") for i in range(head.weight.shape[0])]
    module.config.id2label = dict(enumerate(names))
    module.config.label2id = {name: i for i, name in enumerate(names)}
    module.save_pretrained(directory)
    if isinstance(model, Backbone):
        transformers.ViTImageProcessor(
            size=dict(zip(("height", "width"), pair(model.image_size), strict=True)),
            image_mean=written(model.mean),
            image_std=written(model.std),
        ).save_pretrained(directory)
    _check_same(lambda: type(module).from_pretrained(directory), module, anatomy)


def _check_same(make: Callable[[], nn.Module], module: nn.Module, anatomy: Anatomy) -> None:
    """Raise ValueError unless the model made from the files has the logits of ``module`` on random images."""
    images = random_images(module, anatomy)
    if images is None:
        return
    with borrowed_randomness(), torch.no_grad():
        expected = logits_of(copy.deepcopy(module).double().eval()(images))
        try:
            apart = relative_distance(logits_of(make().double().eval()(images)), expected)
            why = f"the logits would differ by {apart:.2g} of the largest" if apart > TOLERANCE else ""
        except (RuntimeError, TypeError, ValueError) as error:
            # Tensors of other shapes, arguments that it does not take.
            why = " ".join(str(error).split())[:300]
    if why:
        raise ValueError(
            f"this {type(module).__name__} cannot be made again from its name and weights alone, perhaps because it was "
            f"changed after it was made: {why}; use format='onnx'"
        )


class _Logits(nn.Module):
    """A model that takes images and returns the tensor of its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return logits_of(self.model(images))


def _write_onnx(
    model: nn.Module, path: Path, anatomy: Anatomy, classes: list[str] | None, normalise: bool
) -> None:
    if not all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript")):
        raise ImportError("format='onnx' needs onnx and onnxscript: pip install 'paretune[onnx]'")
    inside = isinstance(model, Backbone) and normalise
    wanted = "images in [0, 1]" if inside else "normalised images"
    if isinstance(model, Backbone) and not normalise:
        wanted += f", channels in the order {model.channel_order}" if model.channel_order else ""
        model = model.module
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if held >= LARGEST_ONNX:
        raise ValueError(
            f"the model holds {held:,} bytes; an ONNX file of one piece has less than {LARGEST_ONNX:,}"
        )
    size = anatomy.image_size or 224
    dtype = dtype_of(model)
    example = torch.rand(2, anatomy.channels, *pair(size), dtype=dtype)
    with torch.no_grad():
        program: Any = torch.onnx.export(
            _Logits(model).eval(),
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    about = {"paretune.input": wanted}
    if classes:
        about["paretune.classes"] = json.dumps(classes, ensure_ascii=False)
    program.model.metadata_props.update(about)
    write_atomically(path, lambda temporary: program.save(temporary, external_data=False))

"""Backbones from timm and transformers: their weights, their head, their size and what they want of pixels."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretune.backbones.backbone import Backbone, StateDict, find_head, inside
from paretune.backbones.processors import pixels_of
from paretune.backbones.random import borrowed_randomness
from paretune.backbones.weights import Normalisation, load_weights
from paretune.data.sizes import ImageSize, checked_size, pair


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a backbone is made with; see :func:`~paretune.load_backbone`."""

    num_classes: int
    img_size: ImageSize | None
    pretrained: bool
    weights: StateDict | str | Path | None
    weights_key: str | None
    weights_size: ImageSize | None = None  # that the weights belong to, where known

    @property
    def download(self) -> bool:
        """Whether the weights are the published ones."""
        return self.pretrained and self.weights is None

    def load(
        self, module: nn.Module, head: str, recorded: Normalisation, origin: str, size: ImageSize
    ) -> Normalisation:
        """Load the weights that were given, if any; the normalisation layer that they have in front, else ``recorded``."""
        if self.weights is None:
            return recorded
        trained = load_weights(
            module,
            self.weights,
            head,
            image_size=size,
            made_at=self.weights_size,
            key=self.weights_key,
        )
        return trained.for_channels(len(recorded.mean), origin) if trained else recorded


def load_backbone(
    name: str,
    *,
    num_classes: int,
    img_size: ImageSize | None = None,
    pretrained: bool = True,
    weights: StateDict | str | Path | None = None,
    weights_key: str | None = None,
    seed: int = 0,
) -> Backbone:
    """Build a classifier with a fresh head of ``num_classes`` on a pretrained backbone.

    ``efficientnet-lite0`` and ``dinov2-small`` need no network: their weights install with pip.

    Args:
        name: ``"timm:NAME"``, ``"hf:NAME_OR_DIRECTORY"``, ``"efficientnet-lite0"`` or ``"dinov2-small"``.
        num_classes: number of classes of the task, at least 2.
        img_size: in pixels, the side of square images, or (height, width) where the model takes others; its own when None.
        pretrained: load the published weights; False leaves random weights.
        weights: a state dict, or the path of a ``.safetensors`` or ``.pth`` file, for this architecture. Nothing is
            downloaded then. A head of another size in it is left out. Prefixes such as ``module.`` are understood, and a
            normalisation layer in front, whose mean and std are then the Backbone's. Position embeddings are taken to be
            of a square of patches, unless the file says otherwise or only the rectangle ``img_size`` has as many.
        weights_key: which state dict of a checkpoint to take, such as ``"state_dict"``; dots lead into nested ones. None
            takes the averaged one (``"state_dict_ema"``, ``"model_ema"``, …) where there is one, as timm does.
        seed: seeds the weights that are not loaded (the head, at least); the global random state is untouched.

    Raises:
        ValueError: the name is unknown, the weights do not fit the architecture or cannot be had, the model takes no images
            of ``img_size``, or the processor of a transformers model does what no mean, std and order of channels can
            express.
        ImportError: the package that ships the weights is missing; the message has the install line.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if img_size is not None:
        img_size = checked_size("img_size", img_size)
    if weights_key is not None and weights is None:
        raise ValueError(f"weights_key={weights_key!r} chooses in a checkpoint: give one with weights=")
    wanted = Wanted(num_classes, img_size, pretrained, weights, weights_key)
    with borrowed_randomness():
        torch.manual_seed(seed)
        if name.startswith("hf:"):
            backbone = load_transformers(name[3:], wanted)
        elif name.startswith("timm:"):
            backbone = load_timm(name[5:], wanted, name)
        else:
            backbone = load_offline(name, wanted)
    backbone.published = pretrained and weights is None
    return backbone


def load_offline(name: str, wanted: Wanted) -> Backbone:
    """One of the backbones whose weights install with pip."""
    from paretune.backbones.offline import OFFLINE, offline_weights

    if name not in OFFLINE:
        import timm

        near = difflib.get_close_matches(name, [*OFFLINE, *timm.list_models()], n=1)
        hint = f"; did you mean {near[0] if near[0] in OFFLINE else 'timm:' + near[0]!r}?" if near else ""
        raise ValueError(
            f"name must be timm:NAME, hf:NAME_OR_DIRECTORY or one of {', '.join(OFFLINE)}; got {name!r}{hint}"
        )
    record = OFFLINE[name]
    size = wanted.img_size or record.image_size
    weights = offline_weights(name, img_size=size) if wanted.download else wanted.weights
    made_at = size if wanted.download else None
    wanted = replace(wanted, img_size=size, pretrained=False, weights=weights, weights_size=made_at)
    return load_timm(record.architecture, wanted, name, record.mean, record.std)


def load_timm(
    architecture: str,
    wanted: Wanted,
    name: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """A model of timm; ``name`` is what it was asked for by."""
    import timm

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture.split(".")[0], timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {architecture!r} (asked for {name!r}); near names: {', '.join(near) or 'none'}"
        )
    try:
        config = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(architecture.split(".")[0])) or "none"
        raise ValueError(
            f"timm has no weights {architecture!r} ({error}); those of its architecture: {tags}"
        ) from None
    fixed = config is not None and config.fixed_input_size
    img_size = wanted.img_size
    arguments: dict[str, Any] = {"img_size": img_size} if fixed and img_size else {}
    try:
        module = timm.create_model(
            architecture, pretrained=wanted.download, num_classes=wanted.num_classes, **arguments
        )
    except AssertionError as error:
        raise _unsuitable(img_size, name, error) from None
    except Exception as error:  # no network fails in many ways, and so does a model of squares
        if not wanted.download and isinstance(img_size, tuple):
            raise _unsuitable(img_size, name, error) from error
        if not wanted.download:
            raise
        at = f" for img_size={img_size}" if isinstance(img_size, tuple) else ""
        raise ValueError(
            f"the weights of {name!r}{at} cannot be had ({_reason(error)}); without a network give a file: weights=PATH, on "
            "the command line --weights PATH"
        ) from error
    settings = module.pretrained_cfg
    size = img_size or checked_size(f"the input_size of {name!r}", settings["input_size"][-2:])
    embedding: Any = getattr(module, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    # As in PVT, of any image size.
    overlap = getattr(getattr(embedding, "proj", None), "stride", patch) != patch
    patch = 1 if patch is None or overlap else checked_size("patch_size", patch)
    if any(side % step for side, step in zip(pair(size), pair(patch), strict=True)):
        raise ValueError(f"img_size must be a multiple of the patch size {patch} of {name!r}; got {size}")
    head = settings["classifier"]
    if not isinstance(head, str):
        has = f"the heads {head}" if head else "no head"
        raise ValueError(f"{name!r} has {has}, and a Backbone trains one; choose a model that has one")
    recorded = Normalisation(tuple(mean or settings["mean"]), tuple(std or settings["std"]))
    used = wanted.load(module, head, recorded, name, size)
    return Backbone(module.eval(), mean=used.mean, std=used.std, head=head, image_size=size, source=name)


def load_transformers(source: str, wanted: Wanted) -> Backbone:
    """A model of transformers, from the hub or a directory."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            source, num_labels=wanted.num_classes, return_dict=True, trust_remote_code=False
        )
        processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"cannot read hf:{source}: {_reason(error)}; without a network, name a directory: hf:DIRECTORY"
        ) from error
    size = _image_size(config, source, wanted.img_size)
    pixels = pixels_of(processor, int(_of_vision(config, "num_channels") or 3), f"hf:{source}")
    recorded = Normalisation(pixels.mean, pixels.std)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"hf:{source} is quantised, so it has no gradient that training or an attack could follow; take its original"
        )
    loose: set[str] = set()
    auto: Any = transformers.AutoModelForImageClassification
    if wanted.download:
        try:
            module, info = auto.from_pretrained(
                source,
                config=config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype="float32",
                trust_remote_code=False,
            )
        except Exception as error:  # no network, no file or a damaged one: each fails in many ways
            at = f" for img_size={size}" if isinstance(size, tuple) else ""
            raise ValueError(f"the weights of hf:{source}{at} cannot be had ({_reason(error)})") from error
        head = find_head(module, None)
        loose = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
        loose = {key for key in (*loose, *info["missing_keys"]) if not inside(key, head)}
        used = recorded
    else:
        try:
            module = auto.from_config(config, dtype="float32")
        except Exception as error:
            if isinstance(size, tuple):
                raise _unsuitable(size, f"hf:{source}", error) from error
            raise
        head = find_head(module, None)
        used = wanted.load(module, head, recorded, f"hf:{source}", size)
    if used is not recorded and pixels.order != tuple(range(len(pixels.order))):
        raise ValueError(
            f"the weights for hf:{source} have a normalisation layer, while its processor swaps channels: which of the "
            "two counts is not said; take the layer out of the file"
        )
    backbone = Backbone(
        module.eval(),
        mean=used.mean,
        std=used.std,
        head=head,
        image_size=size,
        channel_order=pixels.order,
        source=f"hf:{source}",
    )
    if loose:
        raise ValueError(f"hf:{source} has no fitting weights for {', '.join(sorted(loose)[:5])}")
    return backbone


def _image_size(config: Any, source: str, img_size: ImageSize | None) -> ImageSize:
    """Size that the model is used at: its own, or ``img_size`` where it has none."""
    side = _of_vision(config, "image_size")
    if side is None and getattr(config, "pretrained_cfg", None):  # timm's, which take other sizes too
        own_size = config.pretrained_cfg["input_size"][-2:]
        return img_size or checked_size(f"the input_size of hf:{source}", own_size)
    side = None if side is None else checked_size(f"the image_size of hf:{source}", side)
    if img_size is not None and side is not None and side != img_size:
        raise ValueError(f"hf:{source} is built for image_size={side}; got img_size={img_size}")
    return img_size or side or 224


def _unsuitable(size: ImageSize | None, name: str, error: Exception) -> ValueError:
    return ValueError(f"img_size={size} does not suit {name!r}: {_reason(error)}")


def _of_vision(config: Any, name: str) -> Any:
    """A setting of a model, or of its part that sees (CLIP, SigLIP)."""
    value = getattr(config, name, None)
    return getattr(getattr(config, "vision_config", None), name, None) if value is None else value


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

"""Pretrained classifiers behind one type: images in [0, 1] go in, logits come out."""

import difflib
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune._random import borrowed_randomness
from paretune.sites import Site, find_sites

StateDict = Mapping[str, Tensor]


class Backbone(nn.Module):
    """A classifier that takes images in [0, 1] and normalises them inside.

    Args:
        module: any image classifier that maps normalised images (batch, channels, height, width) to logits
            (batch, classes), or to an object with ``.logits`` as transformers' models do.
        mean: per-channel mean, in [0, 1] pixel units.
        std: per-channel standard deviation, in the same units, above 0.
        head: dotted name of the classifier layer; the last ``nn.Linear`` when None.
        sites: where the residual branches end, for the strategies that insert modules (Compacter): glob patterns of
            module names whose *output* is a branch, or :class:`~paretune.sites.Site` objects. None finds them by the
            structure of the known families (``docs/support.md`` lists them).
        image_size: height and width in pixels the model is used at.
        architecture: the name that adapter files record and compare; taken from timm or transformers when None.
        source: the name that :func:`load_backbone` makes this model from, recorded in adapter files.

    Raises:
        ValueError: ``head`` names no layer, ``std`` is not above 0, or a pattern in ``sites`` matches nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        head: str | None = None,
        sites: Sequence[str | Site] | None = None,
        image_size: int = 224,
        architecture: str | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std need one entry a channel and std > 0; got mean={mean}, std={std}")
        self.module = module
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )
        self.head = find_head(module, head)
        self.image_size = image_size
        self.architecture = architecture or architecture_of(module)
        self.source = source
        self.published = (
            False  # whether the base weights are those that ``source`` names; only load_backbone knows
        )
        self.frozen_batchnorm = False
        self._sites = sites
        self.training = module.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width) in [0, 1]."""
        return logits_of(self.module((images - self.mean) / self.std))

    def train(self, mode: bool = True) -> "Backbone":
        """Switch to training mode; batch norms whose statistics a strategy froze stay in evaluation mode."""
        super().train(mode)
        if mode and self.frozen_batchnorm:
            for part in self.module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        return self

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        head: Any = self.module.get_submodule(self.head)
        return int(head.weight.shape[0])

    @property
    def sites(self) -> tuple[Site, ...]:
        """Ends of the residual branches, in forward order; empty where the family is unknown."""
        return find_sites(self.module, self._sites, self._example())

    @property
    def fingerprint(self) -> str:
        """Digest of the architecture and of every weight and buffer outside the head."""
        return fingerprint(self.architecture, tensor_digests(self.module.state_dict(), self.head))

    def _example(self) -> Tensor:
        size = (1, self.mean.shape[1], self.image_size, self.image_size)
        return torch.zeros(size, dtype=self.mean.dtype, device=self.mean.device)


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a Backbone, without its normalisation; any other module as it is."""
    return model.module if isinstance(model, Backbone) else model


def logits_of(output: Any) -> Tensor:
    """What a classifier returned: logits, or an object that has them."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def load_backbone(
    name: str,
    *,
    num_classes: int,
    img_size: int | None = None,
    pretrained: bool = True,
    weights: StateDict | str | Path | None = None,
    seed: int = 0,
) -> Backbone:
    """Build a classifier with a fresh head of ``num_classes`` on a pretrained backbone.

    ``efficientnet-lite0`` and ``dinov2-small`` need no network: their weights install with pip.

    Args:
        name: ``"timm:NAME"``, ``"hf:NAME_OR_DIRECTORY"``, ``"efficientnet-lite0"`` or ``"dinov2-small"``.
        num_classes: number of classes of the task, at least 2.
        img_size: height and width in pixels; the model's own when None.
        pretrained: load the published weights; False leaves random weights.
        weights: a state dict, or the path of a ``.safetensors`` or ``.pth`` file, for this architecture. Nothing is
            downloaded then. A head of another size in it is left out.
        seed: seeds the weights that are not loaded (the head, at least); the global random state is untouched.

    Raises:
        ValueError: the name is unknown, or the weights do not fit the architecture.
        ImportError: the package that ships the weights is missing; the message has the install line.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if img_size is not None and img_size < 1:
        raise ValueError(f"img_size must be at least 1, or None for the model's own; got {img_size}")
    with borrowed_randomness():
        torch.manual_seed(seed)
        if name.startswith("hf:"):
            backbone = _load_transformers(name[3:], num_classes, img_size, pretrained, weights)
        elif name.startswith("timm:"):
            backbone = _load_timm(name[5:], num_classes, img_size, pretrained, weights, name)
        else:
            backbone = _load_offline(name, num_classes, img_size, pretrained, weights)
    backbone.published = pretrained and weights is None
    return backbone


def _load_offline(
    name: str,
    num_classes: int,
    img_size: int | None,
    pretrained: bool,
    weights: StateDict | str | Path | None,
) -> Backbone:
    from paretune.weights import OFFLINE, offline_weights

    if name not in OFFLINE:
        import timm

        near = difflib.get_close_matches(name, [*OFFLINE, *timm.list_models()], n=1)
        hint = f"; did you mean {near[0] if near[0] in OFFLINE else 'timm:' + near[0]!r}?" if near else ""
        raise ValueError(
            f"name must be timm:NAME, hf:NAME_OR_DIRECTORY or one of {', '.join(OFFLINE)}; got {name!r}{hint}"
        )
    record = OFFLINE[name]
    size = img_size or record.image_size
    if pretrained and weights is None:
        weights = offline_weights(name, img_size=size)
    return _load_timm(record.architecture, num_classes, size, False, weights, name, record.mean, record.std)


def _load_timm(
    architecture: str,
    num_classes: int,
    img_size: int | None,
    pretrained: bool,
    weights: StateDict | str | Path | None,
    name: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    import timm

    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture.split(".")[0], timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {architecture!r} (asked for {name!r}); near names: {', '.join(near) or 'none'}"
        )
    config = timm.get_pretrained_cfg(architecture)
    fixed = config is not None and config.fixed_input_size
    arguments: dict[str, Any] = {"img_size": img_size} if fixed and img_size else {}
    try:
        module = timm.create_model(
            architecture, pretrained=pretrained and weights is None, num_classes=num_classes, **arguments
        )
    except AssertionError as error:
        raise ValueError(f"img_size={img_size} does not suit {name!r}: {error}") from None
    settings = module.pretrained_cfg
    size = img_size or settings["input_size"][-1]
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if patch is not None and size % patch[0]:
        raise ValueError(f"img_size must be a multiple of the patch size {patch[0]} of {name!r}; got {size}")
    head = settings["classifier"]
    if not isinstance(head, str):
        raise ValueError(
            f"{name!r} has the heads {head}; wrap the model yourself: Backbone(module, head=...)"
        )
    if weights is not None:
        load_weights(module, weights, head)
    return Backbone(
        module.eval(),
        mean=mean or settings["mean"],
        std=std or settings["std"],
        head=head,
        image_size=size,
        source=name,
    )


def _load_transformers(
    source: str,
    num_classes: int,
    img_size: int | None,
    pretrained: bool,
    weights: StateDict | str | Path | None,
) -> Backbone:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source, num_labels=num_classes)
        processor, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source)
    except OSError as error:
        raise ValueError(f"cannot read hf:{source}: {str(error).splitlines()[0]}") from error
    if "image_mean" not in processor:
        raise ValueError(
            f"hf:{source} does not state image_mean and image_std; use Backbone(module, mean=, std=)"
        )
    own_size = getattr(config, "image_size", None)
    if img_size is not None and own_size is not None and own_size != img_size:
        raise ValueError(f"hf:{source} is built for image_size={own_size}; got img_size={img_size}")
    if pretrained and weights is None:
        module, info = transformers.AutoModelForImageClassification.from_pretrained(
            source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
        head = find_head(module, None)
        loose = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]} | set(
            info["missing_keys"]
        )
        loose = {key for key in loose if not inside(key, head)}
        if loose:
            raise ValueError(f"hf:{source} has no fitting weights for {', '.join(sorted(loose)[:5])}")
    else:
        module = transformers.AutoModelForImageClassification.from_config(config)
        head = find_head(module, None)
        if weights is not None:
            load_weights(module, weights, head)
    return Backbone(
        module.eval(),
        mean=processor["image_mean"],
        std=processor["image_std"],
        head=head,
        image_size=img_size or own_size or 224,
        source=f"hf:{source}",
    )


def load_weights(module: nn.Module, weights: StateDict | str | Path, head: str) -> None:
    """Load a state dict or a ``.safetensors`` / ``.pth`` file into ``module``; a head of another size stays fresh.

    Raises:
        ValueError: names of missing, unexpected or misshapen tensors outside the head.
    """
    origin = "the state dict given as weights"
    if not isinstance(weights, Mapping):
        origin = str(weights)
        weights = _read_weights(Path(weights))
    # timm's families know how to rename old keys and resample position embeddings to the image size.
    adjust = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    found: dict[str, Tensor] = dict(adjust(dict(weights), module) if adjust else weights)
    expected = module.state_dict()
    for key in [key for key in found if inside(key, head)]:
        if key not in expected or found[key].shape != expected[key].shape:
            del found[key]
    wanted = {key for key in expected if not inside(key, head)}
    problems = [f"missing {key}" for key in sorted(wanted - set(found))]
    problems += [f"unexpected {key}" for key in sorted(set(found) - set(expected))]
    problems += [
        f"{key} has shape {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in sorted(wanted & set(found))
        if found[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"{origin} does not fit {type(module).__name__}: {'; '.join(problems[:4])}{more}")
    module.load_state_dict(found, strict=False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights must be a state dict or an existing file; got {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    return dict(loaded)


def find_head(module: nn.Module, head: str | None) -> str:
    """Dotted name of the classifier: the one given, timm's own record, or the last ``nn.Linear``."""
    names = dict(module.named_modules())
    if head is None:
        recorded = getattr(module, "pretrained_cfg", None) or {}
        head = recorded.get("classifier")
        if isinstance(head, list | tuple):
            raise ValueError(
                f"{type(module).__name__} has the heads {head}; name the one to train with head="
            )
        if not isinstance(head, str) or head not in names:
            head = next((name for name in reversed(names) if isinstance(names[name], nn.Linear)), "")
    if not isinstance(names.get(head), nn.Linear | nn.Conv2d):
        layers = [name for name, part in names.items() if isinstance(part, nn.Linear | nn.Conv2d)]
        raise ValueError(
            f"head must name a Linear or Conv2d layer; got {head!r}. The last ones: {', '.join(layers[-5:])}"
        )
    return head


def architecture_of(module: nn.Module) -> str:
    """Name that identifies the architecture in adapter files: timm's, or the class and size of a transformers model."""
    recorded = getattr(module, "pretrained_cfg", None) or {}
    if recorded.get("architecture"):
        return f"timm:{recorded['architecture']}"
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    return f"hf:{model_type}" if model_type else type(module).__name__


def inside(key: str, prefix: str) -> bool:
    """Whether ``key`` is the module ``prefix`` or lies in it; never a bare string prefix."""
    return key == prefix or key.startswith(prefix + ".")


def tensor_digests(state: StateDict, head: str | None = None) -> dict[str, str]:
    """A short digest (64 bits) of each tensor by name, without those of ``head``."""
    return {
        key: _digest(tensor)
        for key, tensor in state.items()
        if not (head is not None and inside(key, head)) and not key.endswith("num_batches_tracked")
    }


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().to("cpu").contiguous()
    hashed = hashlib.blake2b(f"{data.dtype}{tuple(data.shape)}".encode(), digest_size=8)
    hashed.update(data.view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def fingerprint(architecture: str, digests: Mapping[str, str]) -> str:
    """One digest of the architecture and its tensors' digests."""
    lines = [architecture, *(f"{key}={digests[key]}" for key in sorted(digests))]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

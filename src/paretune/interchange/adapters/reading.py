"""Directories that ``save_adapter`` of the adapters library wrote for a ViT (Poth et al. 2023, https://arxiv.org/abs/2311.11077).

They are read without that library, which needs an older transformers: into the ViT of transformers, under the names of its
version 4 or 5, and into timm's. ``config.py`` says which strategy a configuration means, ``tensors.py``
where each tensor goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from paretune.backbones.backbone import network_of
from paretune.interchange.adapters.config import modernised, read_strategies
from paretune.interchange.adapters.tensors import place_tensors
from paretune.interchange.composing import together
from paretune.interchange.placing import place
from paretune.interchange.reading import held_by, member, read_first, read_json
from paretune.strategies.mechanics.adapting import anatomy_of
from paretune.strategies.mechanics.selection import blocks as blocks_of

CONFIG = "adapter_config.json"
_ADAPTER_FILES = ("adapter.safetensors", "pytorch_adapter.bin")
_HEAD_FILES = ("model_head.safetensors", "pytorch_model_head.bin")


@dataclass(frozen=True)
class AdaptersFile:
    """The contents of a directory, checked against no model.

    Args:
        config: ``adapter_config.json``: ``config``, ``name``, ``model_type``, ``hidden_size``, ``version``.
        tensors: of the adapter, by the names they have in the file.
        head: weight (classes, width) and bias of the classifier, under these names; empty if the directory has none.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor]


def recognise(path: str | Path) -> bool:
    """Whether ``path`` is a directory of the adapters library; peft's have a file of the same name."""
    try:
        config = read_json(member(Path(path), CONFIG))
    except (ValueError, OSError):
        return False
    return isinstance(config.get("config"), dict) and "model_type" in config and "peft_type" not in config


def read(path: str | Path) -> AdaptersFile:
    """Read a directory that ``save_adapter`` of the adapters library wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or hostile, or the head is no linear layer.
    """
    directory = Path(path)
    config = read_json(member(directory, CONFIG))
    if not recognise(directory):
        raise ValueError(f"{directory / CONFIG} does not describe an adapter of the adapters library")
    tensors = read_first(directory, _ADAPTER_FILES)
    if tensors is None:
        raise FileNotFoundError(f"{directory} has neither {' nor '.join(_ADAPTER_FILES)}")
    return AdaptersFile(config, tensors, _read_head(directory))


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Put an adapter of the adapters library into ``model``, in place; returns the same object, in evaluation mode.

    The logits are those that the library computes on the same base weights. These are the user's to get right: the file says
    nothing about them but their width. (timm's ViT has an epsilon of 1e-6 in its norms, that of transformers 1e-12.)
    Factors that the library multiplies at each call (learned scales, factorised rules) are multiplied out.
    Without a head in the directory the model keeps its own.

    Args:
        model: a Backbone, or the plain ViT of transformers or timm.
        path: the directory.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the model differs, or a setting cannot be expressed exactly; the message names it.
            The model is unchanged then.
    """
    files = read(path)
    module = network_of(model)
    anatomy = anatomy_of(model)
    config, blocks = files.config, blocks_of(anatomy.sites)
    if config["model_type"] != "vit":
        raise ValueError(f"{path}: model_type={config['model_type']!r}; only adapters of a ViT can be read")
    of_tokens = all(site.channel_axis == -1 for site in anatomy.sites)
    if not blocks or len(anatomy.sites) != 2 * len(blocks) or not of_tokens:
        raise ValueError(f"an adapter of a ViT does not fit a {type(module).__name__}")
    width = anatomy.sites[0].width
    if config.get("hidden_size") != width:
        raise ValueError(
            f"{path} is for hidden_size={config.get('hidden_size')}, the model has width {width}"
        )
    settings = modernised(config)
    try:
        strategies = read_strategies(settings, width, blocks)
        tensors = place_tensors(settings, held_by(module, files.tensors, path), module, anatomy)
    except (TypeError, AttributeError, KeyError, IndexError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    tensors |= {f"{anatomy.head}.{name}": value for name, value in files.head.items()}
    return place(model, together(strategies), anatomy, tensors, path, partial=True)


def _read_head(directory: Path) -> dict[str, Tensor]:
    """Weight and bias of the classifier that stands behind the class token."""
    tensors = read_first(directory, _HEAD_FILES)
    if tensors is None:
        return {}
    description = read_json(member(directory, "head_config.json"))
    config = description.get("config")  # None for the head of ViTForImageClassification
    if isinstance(config, Mapping):
        for key, wanted in (("head_type", "image_classification"), ("layers", 1), ("use_pooler", False)):
            if config.get(key, wanted) != wanted:
                raise ValueError(
                    f"{directory}/head_config.json has {key}={config[key]!r}; only a linear head on the class token can be "
                    f"read, with {key}={wanted!r}"
                )
    weights = [name for name in tensors if name.endswith(".weight")]
    rest = [name for name in tensors if not name.endswith((".weight", ".bias"))]
    if len(weights) != 1 or rest or tensors[weights[0]].ndim != 2:
        raise ValueError(f"the head in {directory} is no linear layer: {', '.join(tensors)}")
    weight = tensors[weights[0]]
    bias = tensors.get(weights[0].removesuffix("weight") + "bias")
    return {"weight": weight, "bias": weight.new_zeros(weight.shape[0]) if bias is None else bias}

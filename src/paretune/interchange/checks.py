"""Whether an adapter fits a model; each error names what differs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from paretune.backbones.backbone import (
    Backbone,
    architecture_of,
    digest,
    find_head,
    other_names,
    tensor_digests,
    written,
)
from paretune.backbones.blocks import HeadBlock
from paretune.backbones.prototypes import PrototypeHead


def check_architecture(model: nn.Module, module: nn.Module, config: Mapping[str, Any], head: str) -> None:
    """Raise ValueError unless architecture and head are those of the adapter."""
    wanted = config["base"]["architecture"]
    got = model.architecture if isinstance(model, Backbone) else architecture_of(module)
    own_head = model.head if isinstance(model, Backbone) else find_head(module, None)
    if got != wanted:
        raise ValueError(f"the adapter was trained on {wanted}, this model is {got}")
    if own_head != head and head not in dict(module.named_modules()):
        raise ValueError(f"the adapter's head is {head!r}, this model's is {own_head!r}")


def check_classes(module: nn.Module, head: str, tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Raise ValueError unless the head is of the adapter's kind and number of classes."""
    layer: Any = module.get_submodule(head)
    if isinstance(layer, HeadBlock):
        raise ValueError(
            f"the adapter in {origin} cannot be loaded on the model of one of several tasks, which shares its head with the "
            "others"
        )
    embeddings = tensors.get(f"{head}.prototypes")
    if embeddings is not None and not isinstance(layer, PrototypeHead):
        shape = tuple(embeddings.shape)
        raise ValueError(
            f"the adapter in {origin} has a head of class embeddings {shape}, this model a {type(layer).__name__}; give it "
            f"such a head first, which the adapter then fills: prototype_head(backbone, torch.ones{shape}) of "
            "paretune.backbones"
        )
    saved = tensors.get(f"{head}.weight")
    if saved is not None and saved.shape != layer.weight.shape:
        raise ValueError(
            f"the adapter in {origin} has {saved.shape[0]} classes (head {head!r} {tuple(saved.shape)}), the model "
            f"{layer.weight.shape[0]} ({tuple(layer.weight.shape)}); create the model with num_classes={saved.shape[0]}"
        )


def check_plain_head(module: nn.Module, head: str) -> None:
    """Raise ValueError if the head holds class embeddings, for which other libraries have no place."""
    if isinstance(module.get_submodule(head), PrototypeHead):
        raise ValueError(
            f"the head {head!r} holds class embeddings, of which no model of timm, transformers or peft knows; use "
            "save_adapter, or export_model(format='onnx')"
        )


def check_weights(
    module: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: str | Path
) -> None:
    """Raise ValueError unless every tensor that the adapter does not overwrite has the digest it was trained with."""
    saved: Mapping[str, str] = config["base"]["tensors"]
    state = module.state_dict()
    ours = tensor_digests(state, config["head"])
    replaced = other_names(state, tensors)
    differing = [name for name, digest in saved.items() if name not in replaced and ours.get(name) != digest]
    extra = [name for name in ours if name not in saved]
    if differing or extra:
        shown = ", ".join((differing + extra)[:3])
        size = (config.get("preprocessing") or {}).get("image_size")
        hint = f" and the same image size ({size} px)" if size else ""
        raise ValueError(
            f"the adapter in {origin} was trained on other base weights: {len(differing) + len(extra)} of {len(saved)} "
            f"tensors differ, {shown} among them. Load the same pretrained weights{hint} first, or pass check_base=False"
        )


def check_preprocessing(model: nn.Module, config: Mapping[str, Any], origin: str | Path) -> None:
    """Raise ValueError if the adapter was trained on images that were normalised otherwise than ``model`` does."""
    saved = config.get("preprocessing")
    if not isinstance(model, Backbone) or not saved:
        return
    ours = {"mean": written(model.mean), "std": written(model.std)}
    differing = [
        name
        for name, values in ours.items()
        if len(saved[name]) != len(values) or not np.allclose(saved[name], values, 1e-4, 1e-5)
    ]
    natural = list(range(len(ours["mean"])))
    order, here = (list(given or natural) for given in (saved.get("channel_order"), model.channel_order))
    if differing or order != here:
        name = differing[0] if differing else "channel_order"
        theirs = saved[name] if differing else order
        raise ValueError(
            f"the adapter in {origin} was trained on images with {name}={theirs}, this Backbone has "
            f"{ours[name] if differing else here}; make it with Backbone(module, {name}={theirs}), or pass check_base=False"
        )


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], origin: str | Path) -> None:
    """Raise ValueError unless the names and shapes of ``tensors`` are those that the adapted model has."""
    problems = [f"{name} is missing" for name in sorted(set(expected) - set(tensors))]
    problems += [f"{name} is unknown" for name in sorted(set(tensors) - set(expected))]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(tensors))
        if expected[name].shape != tensors[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"the adapter in {origin} does not fit: {'; '.join(problems[:3])}{more}")


def describe_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What a description records of each tensor: enough to find it damaged, or exchanged."""
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "digest": digest(tensor),
        }
        for name, tensor in sorted(tensors.items())
    }


def check_digests(tensors: Mapping[str, Tensor], recorded: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError unless ``tensors``, read from ``path``, are those that :func:`describe_tensors` has ``recorded``."""
    odd = sorted(set(tensors) ^ set(recorded))
    if odd:
        raise ValueError(f"{path} and its description disagree on {', '.join(odd[:4])}")
    for name, present in describe_tensors(tensors).items():
        saved = recorded[name]
        if saved != present:
            kinds = [
                f"{entry.get('dtype')} {entry.get('shape')}" if isinstance(entry, dict) else json.dumps(entry)
                for entry in (present, saved)
            ]
            what = (
                "other numbers than were" if kinds[0] == kinds[1] else f"{kinds[0]} where {kinds[1][:80]} was"
            )
            raise ValueError(f"{path} is damaged: {name} has {what} saved; get the adapter again")

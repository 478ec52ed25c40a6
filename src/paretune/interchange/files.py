"""An adapter directory: ``paretune.json`` says what it is, ``adapter_model.safetensors`` holds the tensors.

Stored are the tensors that training may have changed: the adapter's, the head, and batch-norm statistics where the strategy
lets them adapt. Shape, type and a digest of each are in ``paretune.json``, so that a damaged or exchanged one is refused by
name; of every other tensor of the base there is a digest too, so that loading onto another base is.

Where peft can express the adapter, the directory is one of peft as well: ``adapter_config.json`` is there, and the tensors
have peft's names and shapes. Otherwise ``peft_reason`` in ``paretune.json`` says why not.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune._values import from_dict
from paretune.backbones.backbone import (
    Backbone,
    Task,
    architecture_of,
    fingerprint,
    network_of,
    note_task,
    task_of,
    tensor_digests,
    written,
)
from paretune.backbones.sites import Site
from paretune.backbones.weights import IMAGE_SIZE
from paretune.data.sizes import checked_size
from paretune.interchange import layout
from paretune.interchange.cards import CARD, card
from paretune.interchange.checks import (
    check_architecture,
    check_classes,
    check_digests,
    check_plain_head,
    check_preprocessing,
    check_weights,
    describe_tensors,
)
from paretune.interchange.directory import write_directory
from paretune.interchange.peft.directory import PeftFiles
from paretune.interchange.peft.writing import peft_files
from paretune.interchange.placing import place, stored_name, stored_tensors_full_names
from paretune.interchange.reading import member, read_json, read_tensors
from paretune.runs.disk import save_tensors, write_json, write_text
from paretune.strategies import STRATEGIES
from paretune.strategies.mechanics.adapting import (
    Adaptation,
    adaptation_of,
    base_state,
    merge_adapter,
    require_adaptation,
)
from paretune.strategies.mechanics.base import Anatomy, Strategy

FORMAT = "paretune-adapter"
VERSION = 3
CONFIG = "paretune.json"
PEFT_CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def save_adapter(
    model: nn.Module,
    directory: str | Path,
    *,
    classes: tuple[str, ...] | list[str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the adapter that ``model`` carries; the directory appears whole or not at all.

    Args:
        model: an adapted Backbone, or a plain module into which an adapter was loaded.
        directory: created or replaced. It may only replace an adapter or an empty directory.
        classes: class names in the order of the logits; None takes those that the model was trained for, where known.
        notes: anything JSON about the training (threat model, attack, metrics, data); shown in the card. Where the model
            knows the data it was trained on, "data" need not be among them.

    Raises:
        ValueError: the model carries no adapter, a parameter is NaN or infinite, or ``classes`` are not one a logit.
        FileExistsError: ``directory`` holds something else.
    """
    adaptation = require_adaptation(model)
    module = network_of(model)
    stored = {
        stored_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in stored_tensors_full_names(module, adaptation).items()
    }
    for name, tensor in stored.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity; the adapter was not saved")
    task = task_of(model)
    names = task.classes if classes is None else classes
    peft: PeftFiles | None = None
    try:
        peft, reason = peft_files(module, adaptation), ""
    except ValueError as error:
        reason = str(error)
    config = _describe(model, module, adaptation, stored)
    if names is not None and len(names) != config["num_classes"]:
        raise ValueError(f"classes must name {config['num_classes']} classes, one a logit; got {list(names)}")
    config |= {
        "classes": list(names) if names is not None else None,
        "notes": ({"data": dict(task.data)} if task.data else {}) | dict(notes or {}),
        "peft": layout.describe(peft, stored) if peft else None,
        "peft_reason": reason,
    }

    def write(staging: Path) -> None:
        save_tensors(staging / TENSORS, peft.tensors if peft else stored, {"format": "pt"})
        if peft:
            write_json(staging / PEFT_CONFIG, peft.config)
        write_json(staging / CONFIG, config)
        write_text(staging / CARD, card(config))

    return write_directory(directory, CONFIG, write)


def save_peft(model: nn.Module, directory: str | Path) -> Path:
    """Write the adapter that ``model`` carries as peft would have: its two files and no others.

    ``peft.PeftModel.from_pretrained(base, directory)`` then gives the same logits. Where peft can express the adapter,
    :func:`save_adapter` writes these files too, beside ours.

    Raises:
        ValueError: the model carries no adapter, or peft cannot express it; the message says why.
        FileExistsError: ``directory`` holds something else than an adapter of peft.
    """
    files = peft_files(network_of(model), require_adaptation(model))

    def write(staging: Path) -> None:
        save_tensors(staging / TENSORS, files.tensors, {"format": "pt"})
        write_json(staging / PEFT_CONFIG, files.config)

    return write_directory(directory, PEFT_CONFIG, write)


def load_own(model: nn.Module, directory: Path, *, check_base: bool = True) -> nn.Module:
    """What :func:`paretune.load_adapter` does with a directory that :func:`save_adapter` wrote."""
    config, tensors = read_adapter(directory)
    strategy, anatomy = _planned(config, directory)
    module = network_of(model)
    present = adaptation_of(module)
    if present is None:
        check_architecture(model, module, config, anatomy.head)
        check_classes(module, anatomy.head, tensors, directory)
        if check_base:
            check_weights(module, config, tensors, directory)
            check_preprocessing(model, config, directory)
    placed = place(model, strategy, anatomy, tensors, directory)
    note_task(placed, _task(config))
    return placed


def save_merged(model: nn.Module, path: str | Path) -> Path:
    """Write the adapted model as a plain ``.safetensors`` checkpoint that timm or transformers loads without paretune.

    The model itself keeps its adapter. The file records the image size of a Backbone, for :func:`~paretune.load_backbone`.

    Raises:
        ValueError: the model carries no adapter, or one that cannot be merged; its head holds class embeddings; or ``path``
            has another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    check_plain_head(network_of(model), require_adaptation(model).head)
    merged = merge_adapter(copy.deepcopy(model))
    module = network_of(merged)
    # Tied tensors are written under each of their names, because the file is for models that tie nothing too.
    tensors = {name: value.clone() for name, value in module.state_dict().items()}
    size = {IMAGE_SIZE: json.dumps(merged.image_size)} if isinstance(merged, Backbone) else {}
    save_tensors(path, tensors, {"format": "pt"} | size)
    return path


def read_adapter(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of an adapter directory, checked for damage but against no model.

    Raises:
        FileNotFoundError: the directory is no adapter.
        ValueError: a file is damaged or of an unknown version.
    """
    directory = Path(directory)
    for name in (CONFIG, TENSORS):
        if not (directory / name).exists():
            raise FileNotFoundError(f"{directory} is not an adapter of paretune: it has no {name}")
    config = read_json(member(directory, CONFIG))
    if config.get("format") != FORMAT:
        raise ValueError(f"{directory / CONFIG} does not describe an adapter of paretune")
    if config.get("version") != VERSION:
        raise ValueError(
            f"{directory} has format version {json.dumps(config.get('version'))[:80]}; this paretune reads version {VERSION}"
        )
    _check_description(config, directory)
    tensors, _ = read_tensors(member(directory, TENSORS))
    if config.get("peft"):
        try:
            shapes = {name: record["shape"] for name, record in config["tensors"].items()}
            tensors = layout.decode(tensors, config["peft"], shapes)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"{directory}: {CONFIG} and {TENSORS} do not belong together: {error}"
            ) from error
    check_digests(tensors, config["tensors"], directory / TENSORS)
    return config, tensors


def _check_description(config: Mapping[str, Any], directory: Path) -> None:
    """Raise ValueError unless the fields that are used are there and of their kinds."""
    kinds = {"strategy": dict, "head": str, "sites": list, "base": dict, "tensors": dict, "num_classes": int}
    missing = sorted(set(kinds) - set(config))
    if missing:
        raise ValueError(f"{directory / CONFIG} lacks {', '.join(missing)}")
    base = config["base"]
    wrong = [name for name, kind in kinds.items() if not isinstance(config[name], kind)]
    wrong += [name for name in ("preprocessing", "peft") if not isinstance(config.get(name), dict | None)]
    wrong += [] if isinstance(config.get("channels"), int | None) else ["channels"]
    wrong += [] if _is_size(config.get("image_size")) else ["image_size"]
    if not wrong and not (
        isinstance(base.get("architecture"), str) and isinstance(base.get("tensors"), dict)
    ):
        wrong.append("base")
    if not wrong and not _says_pixels(config.get("preprocessing") or {}):
        wrong.append("preprocessing")
    if wrong:
        raise ValueError(
            f"{directory / CONFIG} is damaged: {wrong[0]} is {json.dumps(config[wrong[0]])[:80]}"
        )


def _says_pixels(config: Mapping[str, Any]) -> bool:
    """Whether a description of the preprocessing, if there is one, has the numbers that are used."""
    order = config.get("channel_order") or []
    lists = [config.get("mean", []), config.get("std", []), order] if config else []
    numbers = all(isinstance(values, list) and {*map(type, values)} <= {int, float} for values in lists)
    return numbers and _is_size(config.get("image_size")) and (not config or {"mean", "std"} <= set(config))


def _is_size(size: Any) -> bool:
    """Whether it is the size of images, or None."""
    try:
        return size is None or bool(checked_size("image_size", size))
    except ValueError:
        return False


def _task(config: Mapping[str, Any]) -> Task:
    """What the description says of the classes and of the data; what is not of its form says nothing."""
    names, notes = config.get("classes"), config.get("notes")
    named = isinstance(names, list) and len(names) == config["num_classes"]
    named = named and all(isinstance(name, str) for name in names or ())
    data = notes.get("data") if isinstance(notes, dict) else None
    return Task(tuple(names or ()) if named else None, data if isinstance(data, dict) else None)


def _planned(config: Mapping[str, Any], directory: Path) -> tuple[Strategy, Anatomy]:
    try:
        strategy: Strategy = from_dict(config["strategy"], STRATEGIES)
        sites = tuple(Site(**site) for site in config["sites"])
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{directory / CONFIG} is damaged: {error}") from error
    size = config.get("image_size")
    size = None if size is None else checked_size("image_size", size)
    return strategy, Anatomy(config["head"], sites, size, config.get("channels") or 3)


def _describe(
    model: nn.Module, module: nn.Module, adaptation: Adaptation, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    import timm

    import paretune

    digests = tensor_digests(base_state(module), adaptation.head)
    architecture = model.architecture if isinstance(model, Backbone) else architecture_of(module)
    preprocessing: dict[str, Any] | None = None
    if isinstance(model, Backbone):
        preprocessing = {
            "mean": written(model.mean),
            "std": written(model.std),
            "image_size": model.image_size,
        }
        if model.channel_order is not None:
            preprocessing["channel_order"] = list(model.channel_order)
    head: Any = module.get_submodule(adaptation.head)
    return {
        "format": FORMAT,
        "version": VERSION,
        "strategy": adaptation.strategy.to_dict(),
        "call": repr(adaptation.strategy),
        "head": adaptation.head,
        "num_classes": int(head.weight.shape[0]),
        "sites": [vars(site) for site in adaptation.sites],
        "image_size": adaptation.anatomy.image_size,
        "channels": adaptation.anatomy.channels,
        "preprocessing": preprocessing,
        "base": {
            "architecture": architecture,
            "source": model.source if isinstance(model, Backbone) else None,
            "published": isinstance(model, Backbone) and model.published,
            "fingerprint": fingerprint(architecture, digests),
            "tensors": digests,
        },
        "tensors": describe_tensors(tensors),
        "versions": {"paretune": paretune.__version__, "torch": torch.__version__, "timm": timm.__version__},
    }

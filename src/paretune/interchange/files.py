"""An adapter directory: ``paretune.json`` says what it is, ``adapter_model.safetensors`` holds the tensors.

Stored are the tensors that training may have changed: the adapter's, the head, and batch-norm statistics where the strategy
lets them adapt. Of every other tensor of the base a digest is stored, so that loading onto another base is refused by name.
"""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paretune._files import sync_directory, write_atomically, write_json, write_text
from paretune._values import from_dict
from paretune.backbones import Backbone, architecture_of, find_head, fingerprint, tensor_digests
from paretune.sites import Site
from paretune.strategies import STRATEGIES
from paretune.strategies.adapting import (
    Adaptation,
    adaptation_of,
    base_state,
    batchnorm_buffers,
    install,
    merge_adapter,
    remove_adapter,
    require_adaptation,
    restore,
)
from paretune.strategies.base import Anatomy, Strategy

FORMAT = "paretune-adapter"
VERSION = 1
CONFIG = "paretune.json"
TENSORS = "adapter_model.safetensors"
# A factor of a delta is stored as `blocks.0.attn.qkv.lora_A`, without the path that parametrization gives it.
_PARAMETRIZED = ".parametrizations.weight.0."


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
        classes: class names in the order of the logits.
        notes: anything JSON about the training (threat model, attack, metrics, data); shown in the card.

    Raises:
        ValueError: the model carries no adapter, or a parameter is NaN or infinite.
        FileExistsError: ``directory`` holds something else.
    """
    adaptation = require_adaptation(model)
    directory = Path(directory)
    if (
        directory.exists()
        and not (directory / CONFIG).is_file()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise FileExistsError(f"{directory} exists and is not an adapter; choose another directory")
    module = model.module if isinstance(model, Backbone) else model
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in stored_tensors(module, adaptation).items()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity; the adapter was not saved")
    config = _describe(model, module, adaptation, tensors) | {
        "classes": list(classes) if classes is not None else None,
        "notes": dict(notes or {}),
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        save_file(tensors, staging / TENSORS, metadata={"format": "pt"})
        write_json(staging / CONFIG, config)
        write_text(staging / "README.md", _card(config))
        sync_directory(staging)
        staging.chmod(0o755)
        if directory.exists():
            old = staging.with_name(staging.name + ".old")
            os.replace(directory, old)
            os.replace(staging, directory)
            shutil.rmtree(old)
        else:
            os.replace(staging, directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return directory


def load_adapter(model: nn.Module, directory: str | Path, *, check_base: bool = True) -> nn.Module:
    """Put a saved adapter into an existing model, in place; returns the same object, in evaluation mode.

    ``model`` may be a Backbone or the plain timm or transformers model (or any module) that was inside it. Everything is
    checked before the model changes: on an error it is as before.

    Args:
        model: same architecture, base weights and number of classes as the adapter was trained on.
        directory: written by :func:`save_adapter`.
        check_base: compare the digests of the base's tensors; False loads onto other weights of the same shapes.

    Raises:
        FileNotFoundError: the directory is no adapter.
        ValueError: a file is damaged, or the model differs; the message names what.
    """
    config, tensors = read_adapter(directory)
    strategy: Strategy = from_dict(config["strategy"], STRATEGIES)
    module = model.module if isinstance(model, Backbone) else model
    head = config["head"]
    present = adaptation_of(module)
    if present is not None:
        raise ValueError(
            f"the model already carries {present.strategy!r}; call remove_adapter or merge_adapter first"
        )
    _check_architecture(model, module, config, head)
    _check_classes(module, head, tensors, directory)
    if check_base:
        _check_base(module, config, tensors, directory)
    sites = tuple(Site(**site) for site in config["sites"])
    adaptation = install(
        module, strategy, Anatomy(head, sites, config.get("image_size"), config.get("channels", 3))
    )
    try:
        _check_tensors(stored_tensors(module, adaptation), tensors, directory)
    except ValueError:
        remove_adapter(module)
        raise
    restore_stored(module, adaptation, tensors)
    if isinstance(model, Backbone):
        model.frozen_batchnorm = strategy.bn == "frozen"
    return model.eval()


def save_merged(model: nn.Module, path: str | Path) -> Path:
    """Write the adapted model as a plain ``.safetensors`` checkpoint that timm or transformers loads without paretune.

    The model itself keeps its adapter.

    Raises:
        ValueError: the model carries no adapter, or one that cannot be merged; or ``path`` has another suffix.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    merged = merge_adapter(copy.deepcopy(model))
    module = merged.module if isinstance(merged, Backbone) else merged
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    return path


def read_adapter(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of an adapter directory, checked for damage but against no model.

    Raises:
        FileNotFoundError: the directory is no adapter.
        ValueError: a file is damaged or of an unknown version.
    """
    directory = Path(directory)
    for name in (CONFIG, TENSORS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} is not an adapter of paretune: it has no {name}")
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{directory / CONFIG} is damaged: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{directory / CONFIG} does not describe an adapter of paretune")
    if config.get("version") != VERSION:
        raise ValueError(
            f"{directory} has format version {config.get('version')}; this paretune reads version {VERSION}"
        )
    missing = {"strategy", "head", "sites", "base", "tensors"} - set(config)
    if missing:
        raise ValueError(f"{directory / CONFIG} lacks {', '.join(sorted(missing))}")
    try:
        with safe_open(directory / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{directory / TENSORS} is damaged: {error}") from None
    if sorted(tensors) != sorted(config["tensors"]):
        odd = sorted(set(tensors) ^ set(config["tensors"]))
        raise ValueError(f"{directory}: {CONFIG} and {TENSORS} disagree on {', '.join(odd[:4])}")
    return config, tensors


def stored_tensors(module: nn.Module, adaptation: Adaptation) -> dict[str, Tensor]:
    """What an adapter file holds, under the names it has there."""
    return {
        _stored_name(name): value for name, value in stored_tensors_full_names(module, adaptation).items()
    }


def stored_tensors_full_names(module: nn.Module, adaptation: Adaptation) -> dict[str, Tensor]:
    """What an adapter file holds, under the names of the adapted module."""
    parameters = dict(module.named_parameters())
    stored: dict[str, Tensor] = {name: parameters[name] for name in adaptation.trained}
    if adaptation.strategy.bn == "adapt":
        stored |= batchnorm_buffers(module)
    return stored


def restore_stored(module: nn.Module, adaptation: Adaptation, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of an adapter file into the adapted ``module``."""
    names = {_stored_name(name): name for name in stored_tensors_full_names(module, adaptation)}
    restore(module, {names[name]: value for name, value in tensors.items()})


def _stored_name(name: str) -> str:
    return name.replace(_PARAMETRIZED, ".")


def _describe(
    model: nn.Module, module: nn.Module, adaptation: Adaptation, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    import timm

    import paretune

    digests = tensor_digests(base_state(module), adaptation.head)
    architecture = model.architecture if isinstance(model, Backbone) else architecture_of(module)
    preprocessing = None
    if isinstance(model, Backbone):
        preprocessing = {
            "mean": [round(float(value), 6) for value in model.mean.flatten()],
            "std": [round(float(value), 6) for value in model.std.flatten()],
            "image_size": model.image_size,
        }
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
            "fingerprint": fingerprint(architecture, digests),
            "tensors": digests,
        },
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(tensors.items())},
        "versions": {"paretune": paretune.__version__, "torch": torch.__version__, "timm": timm.__version__},
    }


def _check_architecture(model: nn.Module, module: nn.Module, config: Mapping[str, Any], head: str) -> None:
    wanted = config["base"]["architecture"]
    got = model.architecture if isinstance(model, Backbone) else architecture_of(module)
    own_head = model.head if isinstance(model, Backbone) else find_head(module, None)
    if got != wanted:
        raise ValueError(f"the adapter was trained on {wanted}, this model is {got}")
    if own_head != head and head not in dict(module.named_modules()):
        raise ValueError(f"the adapter's head is {head!r}, this model's is {own_head!r}")


def _check_classes(
    module: nn.Module, head: str, tensors: Mapping[str, Tensor], directory: str | Path
) -> None:
    layer: Any = module.get_submodule(head)
    saved = tensors.get(f"{head}.weight")
    if saved is not None and saved.shape != layer.weight.shape:
        raise ValueError(
            f"the adapter in {directory} has {saved.shape[0]} classes (head {head!r} {tuple(saved.shape)}), the model "
            f"{layer.weight.shape[0]} ({tuple(layer.weight.shape)}); create the model with num_classes={saved.shape[0]}"
        )


def _check_base(
    module: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor], directory: str | Path
) -> None:
    saved: Mapping[str, str] = config["base"]["tensors"]
    ours = tensor_digests(module.state_dict(), config["head"])
    # Tensors that the adapter overwrites need not agree.
    differing = [name for name, digest in saved.items() if name not in tensors and ours.get(name) != digest]
    extra = [name for name in ours if name not in saved]
    if differing or extra:
        shown = ", ".join((differing + extra)[:3])
        size = (config.get("preprocessing") or {}).get("image_size")
        hint = f" and the same image size ({size} px)" if size else ""
        raise ValueError(
            f"the adapter in {directory} was trained on other base weights: {len(differing) + len(extra)} of {len(saved)} "
            f"tensors differ, {shown} among them. Load the same pretrained weights{hint} first, or pass check_base=False"
        )


def _check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], directory: str | Path
) -> None:
    problems = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    problems += [f"{name} is unknown" for name in sorted(set(found) - set(expected))]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, the model needs {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(found))
        if expected[name].shape != found[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"the adapter in {directory} does not fit: {'; '.join(problems[:3])}{more}")


def _card(config: Mapping[str, Any]) -> str:
    """A short page for people who find the directory."""
    base, notes = config["base"], config["notes"]
    lines = [
        f"# {config['call']} on {base['architecture']}",
        "",
        "An adapter made by paretune. Into a model that you already run, with the same base weights:",
        "",
        "```python",
        "import paretune",
        'paretune.load_adapter(model, "THIS_DIRECTORY")',
        "```",
        "",
        f"- classes: {config['num_classes']}",
        f"- base: `{base['architecture']}`, fingerprint `{base['fingerprint']}`",
    ]
    if config["preprocessing"]:
        lines.append(f"- preprocessing of pixels in [0, 1]: {json.dumps(config['preprocessing'])}")
    lines += [f"- {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in notes.items()]
    lines += [
        "",
        "Robust accuracies are measured with the attack named here; they are upper bounds, not certificates.",
        "",
    ]
    return "\n".join(lines)

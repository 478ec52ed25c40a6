"""State dicts as training scripts leave them: in containers, under prefixes, behind a normalisation layer, averaged.

What a file holds is loaded or refused, never left out without a word: of several state dicts the averaged one (EMA) is
taken, as timm does, and the log says so.
"""

import argparse
import json
import logging
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretune.backbones.backbone import StateDict, inside
from paretune.backbones.heads import note_pretrained_head
from paretune.data.sizes import ImageSize, checked_size, pair
from paretune.runs.disk import regular

log = logging.getLogger(__name__)

# Names of the averaged and of the plain weights in a checkpoint, the first that is there first; the order of timm.
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "model_ema_state_dict",
    "ema_state_dict",
    "ema_model",
    "params_ema",
    "ema",
)
PLAIN = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
# What other names say that weights are averaged; which of them to take is not guessed.
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|polyak|shadow)(?![a-z])")
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "backbone", "basic_net", "timm_model")
# Last parts of the names of a normalisation layer's tensors.
MEANS = ("mean", "mu", "new_mean", "means", "_mean", "image_mean")
STDS = ("std", "sigma", "new_std", "sd", "stds", "_std", "image_std")
IMAGE_SIZE = "paretune.image_size"  # in the metadata of a safetensors file
# Names of what there is one of for each place of the grid of patches, or for each shift within it.
_POSITIONS = re.compile(r"(pos(ition)?_embed|rel(ative)?_pos)[^.]*(\.weight)?$")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Normalisation:
    """The mean and the standard deviation of a normalisation layer that was trained in front of the network."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_channels(self, count: int, origin: str) -> "Normalisation":
        """The same for each of ``count`` channels, where one number stood for all."""
        if len(self.mean) not in (1, count):
            raise ValueError(
                f"the normalisation layer in the weights for {origin} has {len(self.mean)} channels, its images have {count}"
            )
        repeats = count // len(self.mean)
        log.info("weights: images are normalised as in the file: mean=%s, std=%s", self.mean, self.std)
        return Normalisation(self.mean * repeats, self.std * repeats)


def load_weights(
    module: nn.Module,
    weights: StateDict | str | Path,
    head: str,
    *,
    image_size: ImageSize,
    made_at: ImageSize | None = None,
    key: str | None = None,
) -> Normalisation | None:
    """Load a state dict or a ``.safetensors`` / ``.pth`` file into ``module``; a head of another size stays fresh.

    Position embeddings are of a square of patches, as in published weights, unless ``made_at`` says otherwise, or there are
    as many as the rectangle ``image_size`` has and no square has.

    Args:
        module: the network, without normalisation.
        weights: a state dict, a checkpoint that contains one, or the path of a file.
        head: dotted name of the classifier.
        image_size: that ``module`` is used at.
        made_at: the image size that ``weights`` belong to, where known; a file of
            :func:`~paretune.interchange.save_merged` says it itself.
        key: which state dict of a checkpoint, or which part of its names, such as ``"model"``; None takes the averaged
            weights (EMA) where there are some.

    Returns:
        The normalisation layer of the file, if it has one.

    Raises:
        ValueError: the file is damaged or holds something else; its position embeddings may be, or are, those of another
            grid of patches; or names of missing, unexpected or misshapen tensors outside the head.
    """
    origin = "the state dict given as weights"
    if not isinstance(weights, Mapping):
        origin = str(weights)
        weights, recorded = _read(Path(weights))
        made_at = recorded or made_at
    expected = module.state_dict()
    parts = {name.split(".")[0] for name in expected}
    tensors, normalisation = _without_normalisation(
        _unprefixed(_chosen(weights, key, origin, parts), parts, origin), expected, origin
    )
    placed = _placed(tensors, module, image_size, made_at, origin)
    # timm's families know how to rename old keys and resample position embeddings to the image size.
    adjust = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if adjust:
        try:
            rest = {name: tensor for name, tensor in tensors.items() if name not in placed}
            tensors = dict(adjust(rest, module)) | placed
        except (KeyError, RuntimeError, TypeError, AttributeError, IndexError, AssertionError) as error:
            raise ValueError(f"{origin} does not fit {type(module).__name__}: {error}") from error
    note_pretrained_head(module, {name: value for name, value in tensors.items() if inside(name, head)})
    for name in [name for name in tensors if inside(name, head)]:
        if name not in expected or tensors[name].shape != expected[name].shape:
            del tensors[name]
    wanted = {name for name in expected if not inside(name, head)}
    problems = [f"missing {name}" for name in sorted(wanted - set(tensors))]
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - set(expected))]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(wanted & set(tensors))
        if tensors[name].shape != expected[name].shape
    ]
    problems += [
        f"{name} holds {str(tensors[name].dtype).removeprefix('torch.')}, no plain floating-point numbers"
        for name in sorted(set(expected) & set(tensors))
        if expected[name].is_floating_point() and tensors[name].dtype not in _FLOATS
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"{origin} does not fit {type(module).__name__}: {'; '.join(problems[:4])}{more}")
    module.load_state_dict(tensors, strict=False)
    return normalisation


def _placed(
    tensors: dict[str, Tensor], module: nn.Module, size: ImageSize, made_at: ImageSize | None, origin: str
) -> dict[str, Tensor]:
    """The position embeddings among ``tensors`` that are of the grid of ``module`` already, where it is no square.

    Raises:
        ValueError: they are of another rectangle, or it cannot be known whether they are of this one or of a square.
    """
    positions = {name: tensor for name, tensor in tensors.items() if _POSITIONS.search(name)}
    if positions and isinstance(made_at, tuple) and made_at != size:
        raise ValueError(
            f"{origin} holds position embeddings of images of {made_at}, (height, width), which fit no others; load it with "
            f"img_size={made_at}, not {size}"
        )
    if not isinstance(size, tuple):
        return {}
    expected = module.state_dict()
    fitting = {
        name: tensor
        for name, tensor in positions.items()
        if name in expected and tensor.shape == expected[name].shape
    }
    for name, tensor in fitting.items():
        height, width = _grid(module, name, size)
        if tensor.ndim == 4 or height == width or made_at == size:  # 4: (1, height, width, channels)
            continue
        if math.isqrt(height * width) ** 2 == height * width:
            raise ValueError(
                f"{origin} does not say whether {name} is of {height} x {width} places, as img_size={size} has, or of a "
                "square of as many. Build the network at that size, load the file into it, of a square after "
                "timm.layers.resample_abs_pos_embed, and wrap it: Backbone(module, mean=, std=, image_size=)"
            )
    return fitting


def _grid(module: nn.Module, name: str, size: ImageSize) -> tuple[int, int]:
    """How many places, or shifts of one place to another, a tensor of ``module`` has down and across; (1, 1) if unknown."""
    owner: Any = module.get_submodule(name.rpartition(".")[0])
    if window := getattr(owner, "window_size", None):
        height, width = pair(window)
        return 2 * height - 1, 2 * width - 1
    if grid := getattr(getattr(module, "patch_embed", None), "grid_size", None):
        return pair(tuple(grid))
    patch = getattr(getattr(module, "config", None), "patch_size", None)
    if not isinstance(patch, int):
        return 1, 1
    height, width = pair(size)
    return height // patch, width // patch


def _read(path: Path) -> tuple[Mapping[str, Any], ImageSize | None]:
    """What the file holds, and the image size it records; only tensors and plain values are read."""
    if path.is_dir():
        held = sorted(
            file.name for file in path.iterdir() if file.suffix in (".safetensors", ".pth", ".pt", ".bin")
        )
        raise ValueError(
            f"weights must be a state dict or an existing file; got the directory {str(path)!r}"
            + (f", which holds {', '.join(held[:3])}" if held else "")
        )
    try:
        regular(path)
    except (OSError, ValueError) as error:
        told = "" if isinstance(error, OSError) else ", a pipe or a device"
        raise ValueError(
            f"weights must be a state dict or an existing file; got {str(path)!r}{told}"
        ) from None
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":  # behind the length of its header
            from safetensors import safe_open
            from safetensors.torch import load_file

            with safe_open(path, "pt") as opened:
                size = (opened.metadata() or {}).get(IMAGE_SIZE)
            return load_file(path), size and checked_size("image_size", json.loads(size))
        # Opened, because torch would go by the ending of its name.
        with torch.serialization.safe_globals(_harmless()), open(path, "rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, anything may be raised
        raise ValueError(f"{path} {_why_unreadable(path, start, error)}") from None
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, no state dict (tensors by name)")
    return loaded, None


def _harmless() -> list[Any]:
    """What training scripts keep beside the weights: their arguments, paths among them, and scores as numbers of numpy."""
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    scalar: Any = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        *kinds,
        (pathlib.PurePosixPath, "pathlib.PosixPath"),
        (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
        *((scalar, f"numpy.{at}.multiarray.scalar") for at in ("core", "_core")),
    ]


def _why_unreadable(path: Path, start: bytes, error: Exception) -> str:
    if not start:
        return "is an empty file"
    try:
        with torch.serialization.safe_globals(_harmless()), open(path, "rb") as file:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # it is no checkpoint at all
        foreign = []
    if foreign:
        return (
            f"holds Python objects ({', '.join(sorted(foreign)[:3])}), not only tensors, and reading them could run code; "
            "make it again with torch.save(model.state_dict(), path)"
        )
    if "TorchScript" in str(error):
        return "is a TorchScript program, no state dict; make one with torch.save(model.state_dict(), path)"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:200]
    return f"is damaged or no file of weights (.safetensors, or made by torch.save): {reason}"


def _is_state(value: Any) -> bool:
    """Whether ``value`` holds tensors, and no state dict beside them."""
    if not isinstance(value, Mapping) or _choices(value):
        return False
    return any(isinstance(entry, Tensor) for entry in value.values())


def _chosen(
    saved: Mapping[str, Any], key: str | None, origin: str, parts: set[str], at: str = ""
) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the one that ``key`` names, else the averaged one, else the plain one.

    Args:
        saved: a checkpoint or a state dict.
        key: a name in it, several with dots between them, or the first part of the names of the wanted tensors.
        origin: for messages.
        parts: first parts of the names of the network's own tensors.
        at: where in the file ``saved`` is, with a dot at its end; for messages.
    """
    groups = _groups(saved) if _is_state(saved) else dict(saved)
    choices = sorted({*AVERAGED, *PLAIN, *WRAPPERS} & {*groups}) if _is_state(saved) else _choices(saved)
    if key is not None:
        first, _, rest = (key, "", "") if isinstance(groups.get(key), Mapping) else key.partition(".")
        if not isinstance(groups.get(first), Mapping):
            raise ValueError(
                f"weights_key={key!r} names no weights in {origin}; it has {', '.join(choices) or 'no names'}"
            )
        return _chosen(groups[first], rest or None, origin, parts, f"{at}{first}.")
    for name in AVERAGED:
        value = None if name in parts else groups.get(name)
        if value is None or (name == "ema" and isinstance(value, bool | int | float)):  # a flag, or a decay
            continue
        others = [choice for choice in choices if choice != name]
        if not isinstance(value, Mapping) or not any(_states(value)):
            raise ValueError(
                f"{origin} keeps averaged weights under {name!r} in a form that is not understood ({_kind(value)}); "
                f"choose others with weights_key: {', '.join(others) or 'there are none'}"
            )
        instead = f"; weights_key={others[0]!r} takes others" if others else ""
        log.info("weights: the averaged ones, %r of %s%s", name, origin, instead)
        return _chosen(value, None, origin, parts, f"{at}{name}.")
    unknown = [name for name in _averages(groups) if name.split(".")[0] not in parts]
    if unknown:
        raise ValueError(
            f"{origin} seems to keep averaged weights under {at + unknown[0]!r}, a name that is not known; say with "
            f"weights_key which to take: {', '.join(at + name for name in dict.fromkeys((unknown[0], *choices)))[:200]}"
        )
    if _is_state(saved):
        return {str(name): value for name, value in saved.items() if isinstance(value, Tensor)}
    for name in PLAIN:
        if isinstance(saved.get(name), Mapping) and any(_states(saved[name])):
            log.info("weights: %r of %s", name, origin)
            return _chosen(saved[name], None, origin, parts, f"{at}{name}.")
    listed = f"it has {', '.join(map(str, saved))}"
    if choices:
        listed = f"choose with weights_key: {', '.join(at + choice for choice in choices)}"
    raise ValueError(f"{origin} holds no state dict (tensors by name) under a usual name; {listed[:200]}")


def _states(value: Any) -> Iterator[Any]:
    """The state dicts in ``value``, itself included."""
    if _is_state(value):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _states(inner)


def _choices(checkpoint: Mapping[str, Any]) -> list[str]:
    """Names of the state dicts in a checkpoint."""
    return sorted(
        str(name)
        for name, value in checkpoint.items()
        if any(_states(value)) and not str(name).startswith("optim")
    )


def _averages(checkpoint: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Names, with dots between their levels, of the state dicts in a checkpoint whose name says that they are averaged."""
    for name, value in checkpoint.items():
        if not any(_states(value)) or str(name).startswith("optim"):
            continue
        words = re.sub(r"([a-z])([A-Z])", r"\1_\2", str(name)).lower()
        if _AVERAGE.search(words):
            yield f"{within}{name}"
        elif not _is_state(value):
            yield from _averages(value, f"{within}{name}.")


def _groups(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Models that lie side by side in one state dict, by the first part of their names; each with the normalisation."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        first, _, rest = str(name).partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = value
    shared = {name: value for name, value in state.items() if _is_normalisation(str(name))}
    return {
        first: {name: value for name, value in shared.items() if not name.startswith(f"{first}.")} | group
        for first, group in groups.items()
    }


def _kind(value: Any) -> str:
    held = f" of {', '.join(map(str, value))}"[:80] if isinstance(value, Mapping) else ""
    return f"a {type(value).__name__}{held}"


def _unprefixed(tensors: dict[str, Tensor], parts: set[str], origin: str) -> dict[str, Tensor]:
    """``tensors`` without the prefixes of wrappers, and without what lies beside the wrapped model, such as a criterion."""
    wrappers = {*WRAPPERS} - parts
    firsts = (next((piece for piece in name.split(".") if piece not in wrappers), "") for name in tensors)
    numbered = {piece for piece in firsts if piece.isdigit()} - parts
    if len(numbered) <= 2:  # nn.Sequential(normalisation, network)
        wrappers |= set(sorted(numbered, key=int)[-1:])
    short, depths = {}, {}
    for name in tensors:
        pieces = name.split(".")
        places = (i for i, piece in enumerate(pieces) if piece not in wrappers)
        depths[name] = next(places, len(pieces) - 1)
        short[name] = ".".join(pieces[depths[name] :])
    deepest = max(depths.values(), default=0)
    result: dict[str, Tensor] = {}
    beside = []
    for name, tensor in tensors.items():
        first = short[name].split(".")[0]
        known = first in parts or first.isdigit() or _is_normalisation(name)
        if depths[name] < deepest and not known:
            beside.append(name)
        elif short[name] in result and not torch.equal(result[short[name]], tensor):
            raise ValueError(
                f"{origin} holds {short[name]} twice, under other prefixes; choose one with weights_key"
            )
        else:
            result[short[name]] = tensor
    if beside:
        shown = ", ".join(beside[:4]) + (f" and {len(beside) - 4} more" if len(beside) > 4 else "")
        log.warning("weights: left out, as they lie beside the model in %s: %s", origin, shown)
    return result


def _is_normalisation(name: str) -> bool:
    return any(_ends_as(name, ends) for ends in (MEANS, STDS))


def _ends_as(name: str, ends: tuple[str, ...]) -> bool:
    """Whether the last part of a name is one of ``ends``, or ends so behind another word than running: ``pixel_mean``."""
    last = name.split(".")[-1]
    return last in ends or (
        last.endswith(tuple(f"_{end}" for end in ends)) and not last.startswith("running")
    )


def _without_normalisation(
    tensors: dict[str, Tensor], expected: StateDict, origin: str
) -> tuple[dict[str, Tensor], Normalisation | None]:
    """``tensors`` without the tensors of a normalisation layer, and what they say."""
    layer = {
        name: tensor for name, tensor in tensors.items() if _is_normalisation(name) and name not in expected
    }
    if not layer:
        return tensors, None
    values = [
        [tensor.double().flatten() for name, tensor in layer.items() if _ends_as(name, names)]
        for names in (MEANS, STDS)
    ]
    rest = {name: tensor for name, tensor in tensors.items() if name not in layer}
    if not all(values) or any(not torch.equal(value, several[0]) for several in values for value in several):
        raise ValueError(
            f"{origin} has {', '.join(layer)}, which is no single mean and std of a normalisation layer"
        )
    (mean, *_), (std, *_) = values
    of_pixels = mean.abs().max() <= 1 and (std > 0).all() and std.max() <= 1
    if len(mean) != len(std) or not of_pixels:
        raise ValueError(
            f"{origin} was trained behind a normalisation layer ({', '.join(layer)}) with mean={mean.tolist()} and "
            f"std={std.tolist()}, which are not those of images in [0, 1]; take its tensors out, and give the mean and std: "
            "Backbone(module, mean=, std=)"
        )
    return rest, Normalisation(tuple(mean.tolist()), tuple(std.tolist()))

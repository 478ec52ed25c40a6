"""Reading files that somebody else wrote: bounded in size, checked before use, and never executed."""

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from paretune.runs.disk import regular

# Descriptions of models of many thousand tensors stay below this.
LARGEST_JSON = 64 * 2**20
LONGEST_TEXT = 1_000_000
_NAME = re.compile(r"[^\x00-\x1f/\\]{1,500}")


def member(directory: Path, name: str) -> Path:
    """The file ``name`` of ``directory``.

    A link may stay within the directory, or lead where the cache of the hub keeps the files of a snapshot.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a link that leads elsewhere, or no regular file.
    """
    path = directory / name
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no {name}")
    inside, target = directory.resolve(), path.resolve()
    hub = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
    if not target.is_relative_to(inside) and not hub:
        raise ValueError(f"{path} is a link that leads out of its directory, to {target}; it is not followed")
    return regular(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is larger than 64 MiB, is no JSON, holds something else than an object, or a text of more than
            a million letters.
    """
    size = regular(path).stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(f"{path} has {size:,} bytes; a description has at most {LARGEST_JSON:,}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__} instead of an object")
    rest: list[Any] = [content]
    while rest:
        part = rest.pop()
        if isinstance(part, str) and len(part) > LONGEST_TEXT:
            raise ValueError(
                f"{path} has a text of {len(part):,} letters; a description has at most {LONGEST_TEXT:,} in one"
            )
        if isinstance(part, dict):
            rest += [*part, *part.values()]
        elif isinstance(part, list):
            rest += part
    return content


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        ValueError: the file is damaged or of another kind, declares more than it holds, or has impossible names.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    _check(path, tensors)
    return tensors, metadata


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that ``torch.save`` wrote; only tensors and plain containers are read.

    Raises:
        ValueError: the file is no such archive, would run code, or holds something else than tensors by name.
    """
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            # torch stores without compression; a compressed archive could unpack to any size.
            packed = [
                entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED
            ]
        if packed:
            raise ValueError(f"{path} is compressed, which torch.save does not do; it is not read")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # of a damaged archive, anything may be raised
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is no file of tensors that can be read without running code: {reason}"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict: tensors by name")
    _check(path, content)
    return {str(name): value for name, value in content.items()}


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, or the state dict in a file of ``torch.save``.

    Raises:
        ValueError: as :func:`read_tensors` and :func:`read_checkpoint`.
    """
    return read_tensors(path) if path.suffix == ".safetensors" else (read_checkpoint(path), {})


def read_first(directory: Path, names: Sequence[str]) -> dict[str, Tensor] | None:
    """The tensors of the first of these files that ``directory`` has, see :func:`read_state`; None without any."""
    for name in names:
        if (directory / name).exists():
            return read_state(member(directory, name))[0]
    return None


def held(name: str, value: Tensor, dtype: torch.dtype, origin: str | Path) -> Tensor:
    """``value`` as ``dtype``, which must hold each of its numbers exactly: a cast never changes what an adapter computes.

    Raises:
        ValueError: it is of another kind (complex, boolean, integers for floats, eight bits), has NaN or infinity, or a
            number that ``dtype`` has not.
    """
    kinds = ((torch.float16, torch.bfloat16, torch.float32, torch.float64), (torch.int32, torch.int64))
    if value.dtype != dtype and not any(value.dtype in kind and dtype in kind for kind in kinds):
        raise ValueError(f"{origin}: {name} is of {value.dtype}, where the model has {dtype}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{origin}: {name} holds NaN or infinity")
    cast = value.to(dtype)
    if not torch.equal(cast.to(value.dtype), value):
        raise ValueError(
            f"{origin}: {name} has numbers of {value.dtype} that the {dtype} of the model does not hold; put it on a "
            "model of that type, and cast both"
        )
    return cast


def held_by(module: nn.Module, tensors: Mapping[str, Tensor], origin: str | Path) -> dict[str, Tensor]:
    """Floating-point ``tensors`` in the type of ``module``; counts of batches stay integers.

    Raises:
        ValueError: see :func:`held`.
    """
    dtype = next(value.dtype for value in module.parameters() if value.is_floating_point())
    return {
        name: value if name.endswith("num_batches_tracked") else held(name, value, dtype, origin)
        for name, value in tensors.items()
    }


def _check(path: Path, tensors: dict[str, Tensor]) -> None:
    size = path.stat().st_size
    for name, value in tensors.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
            raise ValueError(f"{path} has a tensor of the impossible name {str(name)[:100]!r}")
        if value.layout is not torch.strided or math.prod(value.shape) * value.element_size() > size:
            raise ValueError(
                f"{path}: {name} of shape {tuple(value.shape)} is larger than the file that holds it"
            )

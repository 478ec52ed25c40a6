"""Directories that hold what a long computation has finished, so that a killed one goes on with the same call."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paretune.backbones.backbone import seal
from paretune.runs import lock
from paretune.runs.disk import regular, save_tensors, write_json

FORMAT = 1
PROBED = 8  # images whose logits recognise a model


@contextlib.contextmanager
def claimed(path: str | Path, plan: dict[str, Any], probe: Tensor) -> Iterator[None]:
    """Make ``path`` the state of the computation that ``plan`` and ``probe`` identify, or see that it is; alone in it.

    Args:
        path: a directory, made if it does not exist; ``plan.json`` in it says whose it is.
        plan: what is computed: plain JSON values.
        probe: (some, classes) float32 logits of the first images, which recognise the model.

    Raises:
        ValueError: the directory belongs to another computation, or is no such directory.
        BlockingIOError: another process is at work in it.
    """
    path = Path(path)
    file = path / "plan.json"
    ours = file.exists() or (path.is_dir() and all(lock.mine(entry.name) for entry in path.iterdir()))
    if path.exists() and not ours:
        raise ValueError(
            f"state={str(path)!r} exists and is not the state of such a run; name a new directory"
        )
    with lock.alone(path):
        _check_plan(path, file, {"format": FORMAT, **plan}, probe)
        yield


@contextlib.contextmanager
def reading(file: Path) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """What :func:`keep` wrote to ``file``; an error over it, also of the body, says which file it is and the way out.

    Raises:
        ValueError: its contents are not those that were written, or the body raised it.
    """
    try:
        with safe_open(regular(file), framework="pt") as opened:
            notes = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        if notes.pop("digest", None) != _digest(tensors, notes):
            raise ValueError("its contents are not those that were written")
        yield tensors, notes
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and its part is computed again") from None


def keep(file: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write a finished part, whole or not at all."""
    save_tensors(file, tensors, {**notes, "digest": _digest(tensors, notes)})


def _digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    return seal(json.dumps(dict(notes), sort_keys=True), tensors)


def _check_plan(path: Path, file: Path, plan: dict[str, Any], probe: Tensor) -> None:
    if not file.exists():
        write_json(file, {**plan, "probe": probe.tolist()})
        return
    try:
        known = dict(json.loads(regular(file).read_bytes()))
        seen = torch.tensor(known.pop("probe"), dtype=probe.dtype)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); remove state={str(path)!r} to start over, "
            "or name a new directory"
        ) from None
    for name, value in plan.items():
        if known.get(name) != value:
            raise ValueError(
                f"state={str(path)!r} is of another run: its {name} is {known.get(name)!r}, now it is {value!r}. "
                "Repeat the first call, or name a new directory"
            )
    if seen.shape != probe.shape or not torch.allclose(seen, probe, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"state={str(path)!r} is of another model: the logits of the first images differ. "
            "Attack the same weights, or name a new directory"
        )

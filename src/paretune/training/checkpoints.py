"""Everything a stopped run needs to go on exactly where it was, in one safetensors file.

There is no random state in it: the loop derives the randomness of each step from (seed, step).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from paretune.backbones.backbone import seal
from paretune.interchange.checks import check_tensors
from paretune.interchange.placing import stored_tensors_full_names
from paretune.runs import disk
from paretune.strategies.mechanics.adapting import require_adaptation, restore
from paretune.strategies.mechanics.base import Delta
from paretune.training.sharding import restore_state

FORMAT = "2"  # 1: random starts of attacks depended on the batch


class Kept(Protocol):
    """What has tensors that a stopped run must have again."""

    def tensors(self) -> Mapping[str, Tensor]:
        """By their names."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` has given."""


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: Mapping[str, Tensor],
    progress: dict[str, Any],
    kept: Mapping[str, Kept] | None = None,
) -> None:
    """Write the trained tensors of ``module``, the optimizer's state, ``progress`` (JSON) and what else is ``kept``.

    The file is there whole or not at all.
    """
    tensors: dict[str, Tensor] = {
        f"model/{name}": value.detach().cpu().contiguous()
        for name, value in stored_tensors_full_names(module, require_adaptation(module)).items()
    }
    others = {"optimizer": optimizer} | {key: keeper.tensors() for key, keeper in (kept or {}).items()}
    for key, values in others.items():
        tensors |= {f"{key}/{name}": value.detach().cpu().contiguous() for name, value in values.items()}
    save_tensors(path, tensors, progress)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], progress: Mapping[str, Any] | None = None
) -> None:
    """Write ``tensors`` and ``progress`` (JSON), whole or not at all."""
    text = json.dumps(progress or {})
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    disk.save_tensors(path, plain, {"format": FORMAT, "progress": text, "digest": seal(text, plain)})


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, kept: Mapping[str, Kept] | None = None
) -> dict[str, Any]:
    """Put a checkpoint back into ``module``, ``optimizer`` and what else is ``kept``, and return its ``progress``.

    Raises:
        ValueError: the file is damaged or of another run; the message says how to start over. Nothing has changed then.
    """
    tensors, progress = _read(path)
    values = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    _check(path, values, stored_tensors_full_names(module, require_adaptation(module)))
    for name, setting in Delta.settings(module).items():
        if not torch.equal(setting.cpu(), values[name]):
            reason = f"{name} is not that of this adapter, which was chosen by other images or weights"
            raise _damaged(path, ValueError(reason))
    restore(module, values)

    def of(key: str) -> dict[str, Tensor]:
        return {n.removeprefix(f"{key}/"): t for n, t in tensors.items() if n.startswith(f"{key}/")}

    for key, keeper in (kept or {}).items():
        keeper.load(of(key))
    restore_state(optimizer, of("optimizer"))
    return progress


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`save_tensors` wrote, with the names and shapes of ``expected``.

    Raises:
        ValueError: the file is damaged or of another run; the message says how to start over.
    """
    tensors, _ = _read(path)
    _check(path, tensors, expected)
    return tensors


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(disk.regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
        progress: dict[str, Any] = json.loads(metadata["progress"])
        if metadata["digest"] != seal(metadata["progress"], tensors):
            raise ValueError("its contents are not those that were written")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"another version of paretune wrote checkpoint {path}, whose attacks draw otherwise; delete it to train this "
            "run from its start"
        )
    return tensors, progress


def _check(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    try:
        check_tensors(expected, tensors, path)
    except ValueError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"checkpoint {path} is damaged ({error}); delete it to train this run from its start")

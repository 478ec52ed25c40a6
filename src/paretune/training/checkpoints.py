"""Everything a stopped run needs to go on exactly where it was, in one safetensors file.

There is no random state in it: the loop derives the randomness of each step from (seed, step).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from paretune.backbones.backbone import seal
from paretune.interchange.checks import check_tensors
from paretune.interchange.placing import stored_tensors_full_names
from paretune.runs import disk
from paretune.strategies.mechanics.adapting import require_adaptation, restore
from paretune.strategies.mechanics.base import Delta

FORMAT = "2"  # 1: random starts of attacks depended on the batch


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write the trained tensors of ``module``, the optimizer's state and ``progress`` (JSON), whole or not at all."""
    tensors: dict[str, Tensor] = {
        f"model/{name}": value.detach().cpu().contiguous()
        for name, value in stored_tensors_full_names(module, require_adaptation(module)).items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer/{index}/{name}"] = value.detach().cpu().contiguous()
    text = json.dumps(progress)
    about = {"format": FORMAT, "progress": text, "digest": seal(text, tensors)}
    disk.save_tensors(path, tensors, about)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint back into ``module`` and ``optimizer`` and return its ``progress``.

    Raises:
        ValueError: the file is damaged or of another run; the message says how to start over. Nothing has changed then.
    """
    try:
        with safe_open(disk.regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
        progress: dict[str, Any] = json.loads(metadata["progress"])
        if metadata["digest"] != seal(metadata["progress"], tensors):
            raise ValueError("its contents are not those that were written")
        values = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
        check_tensors(stored_tensors_full_names(module, require_adaptation(module)), values, path)
        for name, setting in Delta.settings(module).items():
            if not torch.equal(setting.cpu(), values[name]):
                raise ValueError(
                    f"{name} is not that of this adapter, which was chosen by other images or weights"
                )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({error}); delete it to train this run from its start"
        ) from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"another version of paretune wrote checkpoint {path}, whose attacks draw otherwise; delete it to train this "
            "run from its start"
        )
    restore(module, values)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, field = name.split("/")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress

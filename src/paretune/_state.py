"""Directories that hold what a long computation has finished, so that a killed one goes on with the same call."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretune._files import write_json

FORMAT = 1
PROBED = 8  # images whose logits recognise a model


def claim(path: str | Path, plan: dict[str, Any], probe: Tensor) -> None:
    """Make ``path`` the state of the computation that ``plan`` and ``probe`` identify, or see that it is.

    Args:
        path: a directory, made if it does not exist; ``plan.json`` in it says whose it is.
        plan: what is computed: plain JSON values.
        probe: (some, classes) float32 logits of the first images, which recognise the model.

    Raises:
        ValueError: the directory belongs to another computation, or is no such directory.
    """
    path = Path(path)
    plan = {"format": FORMAT, **plan}
    file = path / "plan.json"
    if not file.exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(
                f"state={str(path)!r} exists and is not the state of such a run; name a new directory"
            )
        write_json(file, {**plan, "probe": probe.tolist()})
        return
    known = json.loads(file.read_text(encoding="utf-8"))
    seen = torch.tensor(known.pop("probe"))
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

"""What several processes do together, started by torchrun. Usage: torchrun … tests/processes.py DIRECTORY."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

import paretune as pt
from paretune import training
from tests import tiny


def stop_at_6(values: Any, step: int, lr: float, **_: Any) -> None:
    if step == 6:
        raise LookupError


if __name__ == "__main__":
    directory, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    for name, lr in (("learning", 5e-3), ("standing", 1e-12)):
        model = tiny.backbone(pt.FullFineTune(bn="adapt"))
        tiny.run(directory / name, model=model, optimizer=pt.AdamW(lr))
        torch.save(model.module.state_dict(), directory / f"{name}-{rank}.pt")
    guard = training.check_finite
    training.check_finite = stop_at_6  # on all processes alike
    with contextlib.suppress(LookupError):
        tiny.run(directory / "stopped")
    training.check_finite = guard
    assert not (directory / "stopped/DONE").exists()
    tiny.run(directory / "stopped")
    for number, changes in enumerate(({"batch_size": 16}, {"resume": True})):
        try:
            tiny.run(directory / "learning", **changes)
        except ValueError as error:
            (directory / f"refused-{number}-{rank}").write_text(str(error))

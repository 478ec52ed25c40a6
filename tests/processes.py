"""What several processes do together, started by torchrun. Usage: torchrun … tests/processes.py DIRECTORY."""

import os
import sys
from pathlib import Path

import torch

import paretune as pt
from tests import tiny

if __name__ == "__main__":
    directory, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    for name, lr in (("learning", 5e-3), ("standing", 1e-12)):
        model = tiny.backbone(pt.FullFineTune(bn="adapt"))
        tiny.run(directory / name, model=model, optimizer=pt.AdamW(lr))
        torch.save(model.module.state_dict(), directory / f"{name}-{rank}.pt")
    for number, changes in enumerate(({"batch_size": 16}, {"resume": True})):
        try:
            tiny.run(directory / "learning", **changes)
        except ValueError as error:
            (directory / f"refused-{number}-{rank}").write_text(str(error))

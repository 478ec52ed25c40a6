"""Each objective as one process learns it or several do. Usage: torchrun … tests/objectives_together.py DIRECTORY."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

import paretune as pt
from paretune.training import ATTA, FARE, MART, TRADES, AdversarialTraining, Natural
from tests import tiny
from tests.unit.training.objectives.batches import without_dropout

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=2)
FIXED = pt.EpsilonSchedule.fixed()
OBJECTIVES: dict[str, dict[str, Any]] = {
    "natural": {"objective": Natural(label_smoothing=0.1)},
    "adversarial": {"objective": AdversarialTraining(ATTACK)},
    "trades": {"objective": TRADES(ATTACK)},
    "mart": {"objective": MART(ATTACK), "accumulate": 2},
    "fare": {"objective": Natural() + 0.1 * FARE(ATTACK)},
    "weights": {"objective": TRADES(ATTACK), "balance": "weights"},
    # More than an epoch, so that what one process has found another goes on from.
    "memory": {"objective": ATTA(ATTACK), "batch_size": 64, "augmentation": "flip+crop", "epsilon": FIXED},
    "weights averaged and perturbed": {"objective": AdversarialTraining(ATTACK), "ema": 0.9, "awp": 0.01},
    "one block after the other": {
        "objective": AdversarialTraining(ATTACK),
        "freezing": pt.training.LPFT(0.5),
        "epsilon": FIXED,
    },
    "sampling": {"objective": TRADES(ATTACK), "balance": "sampling"},
}


def learn(directory: Path) -> None:
    """Save what each objective trains in a few steps without dropout."""
    for name, changes in OBJECTIVES.items():
        model = without_dropout(pt.LoRA(rank=2))
        tiny.run(directory / name, model=model, **({"steps": 4, "batch_size": 16} | changes))
        if os.environ.get("RANK", "0") == "0":
            values = {key: value.detach() for key, value in model.named_parameters() if value.requires_grad}
            torch.save(values, directory / f"{name}.pt")


if __name__ == "__main__":
    learn(Path(sys.argv[1]))

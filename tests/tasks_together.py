"""Two tasks as one process learns them or several do. Usage: torchrun … tests/tasks_together.py DIRECTORY [KILLED]."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import paretune as pt
from paretune.runs.progress import Status
from paretune.training import TRADES, AdversarialTraining, Natural
from tests import together

ATTACK = together.ATTACK
COURSES: dict[str, dict[str, Any]] = {
    "natural": {"objective": Natural(label_smoothing=0.1), "keep": "clean"},
    "adversarial": {"objective": AdversarialTraining(ATTACK), "accumulate": 2},
    "all": {
        "objective": TRADES(ATTACK) + 0.1 * pt.training.FeatureDistillation(),
        "weights": {"digits": 1.0, "noise": 0.25},
        "balance": "weights",
        "awp": 0.01,
        "ema": 0.9,
        "keep": "area",
    },
}


def learn(directory: Path, killed: str | None = None) -> None:
    """Train each without dropout, in batches of other sizes; ``killed`` dies at its sixth step, and is none of the rest."""

    def die(status: Status) -> None:
        if status.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    for name, changes in COURSES.items():
        if killed not in (None, name):
            continue
        model = together.backbone(pt.LoRA(rank=2), dropout=0.0)
        options = {"batch_sizes": {"digits": 16, "noise": 8}, "epsilon": pt.EpsilonSchedule.fixed()} | changes
        together.run(directory / name, model, **options, progress=die if killed else False)
        values = {key: value.detach() for key, value in model.named_parameters() if value.requires_grad}
        torch.save(values, directory / f"{name}-{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    learn(Path(sys.argv[1]), *sys.argv[2:])

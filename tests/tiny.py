"""A backbone, a data set and a run that take a second."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import paretune as pt
from paretune import attacks
from paretune.runs.store import Run


def network() -> nn.Module:
    """A residual network with everything that makes resuming hard: batch norm, dropout and shared shapes."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.norm(self.conv(x)).relu()

    return nn.Sequential(
        nn.Conv2d(3, 8, 2, 2),
        Residual(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, 10),
    )


def backbone(strategy: Any, seed: int = 0) -> pt.Backbone:
    """The adapted network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = pt.Backbone(network().eval(), image_size=8, sites=["1.norm"])
    return pt.adapt(made, strategy, seed=seed)


def data(limit: int = 300) -> pt.data.ImageData:
    """Digits at their own size."""
    return pt.load_data("digits", img_size=8, limit=limit)


def run(out: Path, strategy: Any = None, **changes: Any) -> Run:
    """Two epochs of adversarial training with three evaluation points."""
    strategy = strategy or pt.FullFineTune(bn="adapt")
    arguments: dict[str, Any] = {
        "out": out,
        "steps": 10,
        "eval_every": 4,
        "optimizer": pt.training.AdamW(5e-3),
        "attacks": [pt.PGD(pt.Linf(4 / 255), steps=3)],
        "progress": False,
    }
    arguments |= changes
    model = arguments.pop("model", None) or backbone(strategy)
    objective = arguments.pop("objective", pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=2)))
    return pt.train(model, data(), objective, **arguments)


def everything() -> dict[str, Any]:
    """What a run can keep from step to step, and a point to end with that is not the last."""
    attack = pt.training.ATTA(pt.PGD(pt.Linf(4 / 255), steps=1), reset=2)
    return {
        "objective": attack + 0.1 * pt.training.EWC(examples=9) + 0.1 * pt.training.L2SP(),
        "epsilon": pt.EpsilonSchedule.auto(patience=1, tolerance=0.5),
        "freezing": pt.training.LPFT(0.4),
        "augmentation": "flip+crop",
        "steps": 24,
        "eval_every": 8,
        "ema": 0.5,
        "awp": 0.01,
        "accumulate": 2,
        "keep": "clean",
        "reuse": True,
        "confirm": attacks.APGD(pt.Linf(4 / 255), steps=2),
        "balance": "sampling",
        "optimizer": pt.training.AdamW(0.5, schedule="one-cycle"),
    }

"""Two tasks and a run of both that take a second."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import paretune as pt
from paretune.runs.store import Run
from paretune.training.together import train_tasks
from tests import tiny

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=2)


def noise(
    count: int = 90, kinds: int = 3, name: str = "noise", size: int = 8, seed: int = 0
) -> pt.data.ImageData:
    """Images whose classes are brightnesses."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % kinds
    images = torch.rand(count, 3, size, size, generator=generator) * 0.3 + labels.view(-1, 1, 1, 1) / (
        2 * kinds
    )
    return pt.data.ImageData.from_tensors(images, labels, [f"grey {kind}" for kind in range(kinds)], name)


def both() -> dict[str, pt.data.ImageData]:
    return {"digits": tiny.data(), "noise": noise()}


def backbone(strategy: Any = None, classes: int = 13, dropout: float = 0.2) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny.network()
        network[-2], network[-1] = nn.Dropout(dropout), nn.Linear(32, classes)
    made = pt.Backbone(network.eval(), image_size=8, sites=["1.norm"])
    return pt.adapt(made, strategy or pt.FullFineTune(bn="adapt"))


def run(out: Path, model: pt.Backbone | None = None, **changes: Any) -> dict[str, Run]:
    arguments: dict[str, Any] = {
        "steps": 10,
        "eval_every": 4,
        "optimizer": pt.training.AdamW(5e-3),
        "attacks": [pt.PGD(pt.Linf(4 / 255), steps=3)],
        "progress": False,
    }
    arguments |= changes
    tasks = arguments.pop("tasks", None) or both()
    objective = arguments.pop("objective", pt.training.AdversarialTraining(ATTACK))
    return train_tasks(model or backbone(), tasks, objective, out=out, **arguments)

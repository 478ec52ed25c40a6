"""A small model, a batch, and an objective at work on them."""

from typing import Any

import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks.copy.options import CopyOptions
from paretune.training.measuring import FreshCopy
from paretune.training.objectives import Objective, TrainingBatch
from tests import tiny

THREAT = pt.Linf(8 / 255)
ATTACK = pt.PGD(THREAT, steps=3)


def batch(count: int = 6, *, epsilon: float = 8 / 255, classes: int = 4, **changes: Any) -> TrainingBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    labels, places = torch.arange(count) % classes, torch.arange(count)
    return TrainingBatch(images, labels, 100 + places, places, epsilon, 7, classes - 1, **changes)


def network(classes: int = 4) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, classes))


def without_dropout(strategy: Any) -> pt.Backbone:
    model = tiny.backbone(strategy)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def loss_and_gradient(
    objective: Objective, model: nn.Module, examples: TrainingBatch, attacked: Any
) -> list[Tensor]:
    """The loss, and the gradient of each parameter."""
    loss, _ = objective.loss(model, examples, attacked)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def copies(model: pt.Backbone) -> FreshCopy:
    return FreshCopy(model, CopyOptions())


def close(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-5, atol: float = 1e-7) -> bool:
    return all(torch.allclose(a, b, rtol=rtol, atol=atol) for a, b in zip(found, expected, strict=True))

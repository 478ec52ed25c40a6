"""Models whose best attack is known, and images for them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks import AttackCopy, attack_copy


class Linear(nn.Module):
    """logits = W x + b on the flattened image: the optimal attack has a closed form."""

    def __init__(self, classes: int, *shape: int, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, math.prod(shape), generator=draw))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight, self.bias)


class RowByRow(Linear):
    """The same function, computed so that an image's logits do not depend on its batch, not even in the last bit."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return torch.stack([(flat * row).sum(dim=1) for row in self.weight], dim=1) + self.bias


class Counting(Linear):
    """Counts forward passes and the images in them, over all copies."""

    batches: list[int]

    def forward(self, images: Tensor) -> Tensor:
        type(self).batches.append(len(images))
        return super().forward(images)


class Liar(AttackCopy):
    """An attack copy whose fast answers say that everything is misclassified; its exact ones are right."""

    @property
    def precision(self) -> str:  # type: ignore[override]
        return "bf16"

    def look(self, images: Tensor) -> Tensor:
        logits = super().__call__(images)
        lead = 100 + logits.amax(dim=1) - logits.amin(dim=1)
        return logits + lead[:, None] * F.one_hot(logits.argmin(dim=1), logits.shape[1])


def from_logits(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Model(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return function(images)

    return Model()


def batch(
    n: int = 16, *, classes: int = 3, seed: int = 0, low: float = 0.0, high: float = 1.0, side: int = 4
) -> tuple[Tensor, Tensor]:
    """Images (n, 3, side, side) and random labels."""
    draw = torch.Generator().manual_seed(seed)
    images = low + (high - low) * torch.rand(n, 3, side, side, generator=draw)
    return images, torch.randint(classes, (n,), generator=draw)


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(batch,) booleans: classified correctly."""
    with torch.no_grad():
        return model(images).argmax(dim=1) == labels


def exact_copy(model: nn.Module) -> AttackCopy:
    """A float32 copy, so that nothing depends on the clock."""
    return attack_copy(model, precision="fp32")

"""The rule by which logits of two libraries are the same.

They are compared in float64, where rounding is 1e-16 of a value: whatever differs by more than 1e-10 of the largest logit
is another function. Where an importer has to multiply out factors, their product was rounded once to float32 in the file, by
up to 6e-8 of a weight; there 1e-6 of the largest logit are allowed.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import paretune as pt
from paretune.strategies import Strategy
from tests.contracts.backbones import images, make
from tests.contracts.contract import perturb

LARGEST = 1e-10
MULTIPLIED_OUT = 1e-6


def adapted(arch: str, strategy: Strategy) -> pt.Backbone:
    """A model each of whose trainable tensors has moved, and its statistics where they adapt."""
    model = pt.adapt(make(arch), strategy)
    perturb(model)
    if strategy.bn == "adapt":
        model.train()(images(model.image_size))
    return model.eval()


def logits(model: nn.Module, like: pt.Backbone) -> Tensor:
    """In float64, of the images that the Backbone ``like`` takes."""
    x = images(like.image_size).double()
    if not isinstance(model, pt.Backbone):
        x = (x - like.mean.double()) / like.std.double()
    with torch.no_grad():
        output: Any = copy.deepcopy(model).double().eval()(x)
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found


def assert_same(found: Tensor, expected: Tensor, largest: float = LARGEST) -> None:
    assert float((found - expected).abs().max()) <= largest * float(expected.abs().max())


def apart(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) > 1e-5 * float(expected.abs().max())

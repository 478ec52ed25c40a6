"""How far two float32 evaluations of one network may be apart, computed from the network itself."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNIT_ROUNDOFF = 2.0**-24
LAMBDA = 5.0  # standard deviations: a bound fails with probability 2 exp(-λ²/2), about 7e-6


def rounding_bound(model: nn.Module, x: Tensor) -> Tensor:
    """Largest difference of logits (batch, classes) by rounding alone, of a plain ``model`` at ``x``.

    A computed inner product of n terms is off by at most λ √n u |w|ᵀ|x| (Higham and Mary 2019,
    https://doi.org/10.1137/18M1226312, theorem 2.4, with independent rounding errors). Each output of a linear layer or
    convolution has such an error, with one more term for each token that attention may have averaged before; each
    output of another layer has that of one operation. To first order they reach the logits through the gradients there, and
    their squares add up. Both evaluations have errors of this size.
    """
    wide = copy.deepcopy(model).double().eval().requires_grad_(True)
    watched: list[tuple[Tensor, Tensor]] = []

    def watch(layer: Any, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            watched.append((output, _error(layer, args, output)))

    for part in wide.modules():
        if not any(True for _ in part.children()) or isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(watch)
    bounds = []
    for image in x.double():
        watched.clear()
        result: Any = wide(image[None])
        found = result if isinstance(result, Tensor) else result.logits
        places = [output for output, _ in watched]
        for logit in found[0]:
            slopes = torch.autograd.grad(logit, places, retain_graph=True, allow_unused=True)
            squares = [
                (slope * error).square().sum()
                for slope, (_, error) in zip(slopes, watched, strict=True)
                if slope is not None
            ]
            bounds.append(torch.stack(squares).sum().sqrt())
    return 2 * LAMBDA * UNIT_ROUNDOFF * torch.stack(bounds).view(len(x), -1)


@torch.no_grad()
def _error(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Error of each output in units of λ u."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return output.abs()
    x, weight = args[0], layer.weight.abs()
    terms = weight[0].numel() + (x.shape[1] if x.ndim == 3 else 0)
    if isinstance(layer, nn.Linear):
        size = F.linear(x.abs(), weight)
    else:
        size = F.conv2d(x.abs(), weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return size * terms**0.5

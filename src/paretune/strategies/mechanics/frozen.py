"""A linear layer of a frozen weight that autocast casts, which keeps no cast copy of it for the backward pass."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def frozen_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``. Under autocast a frozen weight is cast again for the gradient, not kept.

    torch keeps the cast of each weight from the forward to the backward pass: all together half the size of a float32 model.
    """
    device = inputs.device.type
    casts = torch.is_autocast_enabled(device) and weight.dtype != torch.get_autocast_dtype(device)
    if not casts or weight.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(inputs, weight, bias)
    rows: Tensor = _FrozenLinear.apply(inputs.reshape(-1, inputs.shape[-1]), weight, bias)
    return rows.view(*inputs.shape[:-1], -1)


def scaled_linear(inputs: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(x Wᵀ) ⊙ ``scale`` + ``bias``, of a frozen weight."""
    outputs = frozen_linear(inputs, weight, None) * scale
    return outputs if bias is None else outputs + bias


class _FrozenLinear(torch.autograd.Function):
    """Of inputs (rows, columns), so that the output is no view, which could not be changed in place."""

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        given, weight, bias = inputs
        ctx.save_for_backward(weight)
        ctx.dtypes = (given.dtype, None if bias is None else bias.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        grad_inputs = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_inputs = (grad @ weight.to(grad.dtype)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0).to(ctx.dtypes[1])
        return grad_inputs, None, grad_bias

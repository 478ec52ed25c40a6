"""PHM layers (Zhang et al. 2021, https://arxiv.org/abs/2102.08597), and the bottleneck that Compacter makes of two of them.

A PHM layer is y = x H + b with H = sum_i A_i ⊗ (s_i t_i). With x cut into n slices x_a and y into n slices y_b it is
y_b = sum_i sum_a A_i[a, b] (x_a s_i) t_i + b_b, which needs no H: at the wide end of a layer each slice meets n · rank
columns (or rows), and the rule mixes what is left of them at the narrow end.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
# The authors draw the shared rule with std 1e-4 to start near the identity. We start exactly there through t = 0, so
# the rule may have the scale at which H keeps the variance of its input: n terms, each of n entries.
RULE_STD = 0.25


def new_rule(n: int, like: Tensor) -> nn.Parameter:
    """A fresh rule A (n, n, n) on the device and of the type of ``like``."""
    rule = nn.Parameter(torch.empty(n, n, n, device=like.device, dtype=like.dtype))
    nn.init.normal_(rule, std=RULE_STD)
    return rule


class PHM(nn.Module):
    """The factors of y = x H + b with H = sum_i A_i ⊗ (s_i t_i).

    Shapes: ``s`` (n, inputs / n, rank), ``t`` (n, rank, outputs / n), ``b`` (outputs,); the rule A is (n, n, n), and a
    parameter of the layer where none is ``shared``.
    """

    def __init__(
        self, inputs: int, outputs: int, n: int, rank: int, shared: nn.Parameter | None, like: Tensor
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.s = nn.Parameter(torch.empty(n, inputs // n, rank, **made))
        self.t = nn.Parameter(torch.empty(n, rank, outputs // n, **made))
        self.b = nn.Parameter(torch.zeros(outputs, **made))
        if shared is None:
            self.rule = new_rule(n, like)
        for factor in (*self.s.data, *self.t.data):
            nn.init.xavier_normal_(factor)

    def narrowing(self, shared: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factors for inputs wider than outputs: y = ((x_a S) over all a) K + b.

        Returns:
            S (inputs / n, n · rank) and K (n · n · rank, outputs).
        """
        rule = self.rule if shared is None else shared
        n, rank, _ = self.t.shape
        across = self.s.transpose(0, 1).flatten(1)  # p, (i r)
        mixed = _outer(rule, self.t).view(n, n, n, rank, -1).permute(1, 0, 3, 2, 4)  # a, i, r, b, q
        return across, mixed.reshape(n * n * rank, -1)

    def widening(self, shared: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factors for outputs wider than inputs: y_b = (x K)_b T + b_b.

        Returns:
            K (inputs, n · n · rank) and T (n · rank, outputs / n).
        """
        rule = self.rule if shared is None else shared
        n, inputs, rank = self.s.shape
        mixed = _outer(rule, self.s).view(n, n, n, inputs, rank).permute(1, 3, 2, 0, 4)  # a, p, b, i, r
        return mixed.reshape(n * inputs, -1), self.t.flatten(0, 1)


def _outer(rule: Tensor, factor: Tensor) -> Tensor:
    """A_i times the entries of the i-th factor: (n, n · n, entries)."""
    return torch.bmm(rule.flatten(1).unsqueeze(2), factor.flatten(1).unsqueeze(1))


def bottleneck(
    x: Tensor, down: PHM, up: PHM, shared: Tensor | None, activation: Activation, *, add: bool
) -> Tensor:
    """up(activation(down(x))), or x + that if ``add``, over the last axis of ``x``.

    Training keeps for the backward pass only ``x`` and its n · n · rank products for each token.
    """
    factors = (*down.narrowing(shared), down.b, *up.widening(shared), up.b)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        factors = tuple(factor.to(dtype) for factor in factors)  # type: ignore[assignment]
    slices = x.to(factors[0].dtype).reshape(-1, factors[0].shape[0])
    training = torch.is_grad_enabled() and any(factor.requires_grad for factor in factors)
    if training and not torch.compiler.is_compiling():  # a compiler chooses what to keep
        changed, _ = _Bottleneck.apply(slices, *factors, activation, add)
    else:
        changed, _ = _contract(slices, *factors, activation, add)
    found: Tensor = changed.view(*x.shape[:-1], -1)
    return found


def _contract(
    x: Tensor,
    first: Tensor,
    narrow: Tensor,
    b: Tensor,
    widen: Tensor,
    last: Tensor,
    bias: Tensor,
    activation: Activation,
    add: bool,
) -> tuple[Tensor, Tensor]:
    """The output (tokens, outputs) and what the first factor makes of the slices x (tokens · n, inputs / n)."""
    u = (x @ first).view(-1, len(narrow))
    v = (activation(torch.addmm(b, u, narrow)) @ widen).view(-1, len(last))
    if not add:
        return (v @ last).view(-1, len(bias)).add_(bias), u
    # In this order the bias takes no pass of its own over the outputs.
    outputs = (x.view(-1, len(bias)) + bias).view(len(x), -1).addmm_(v, last)
    return outputs.view(-1, len(bias)), u


class _Bottleneck(torch.autograd.Function):
    """:func:`_contract`, which keeps x and u and computes the rest again for the gradient."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _contract(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.activation, ctx.add = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, first, narrow, b, widen, last, _bias, u = ctx.saved_tensors
        again = torch.is_grad_enabled()  # where a gradient of this gradient is wanted
        if again:
            u = (x @ first).view(-1, len(narrow))
        z = torch.addmm(b, u, narrow)
        gelu = ctx.activation is nn.functional.gelu
        with torch.set_grad_enabled(again or not gelu):
            z = z if again or gelu else z.detach().requires_grad_()
            h = ctx.activation(z)
        kept = h if again else h.detach()
        v = (kept @ widen).view(-1, len(last))
        grad_bias = grad.sum(0)
        grad = grad.reshape(len(x), -1)
        grad_last = v.t() @ grad
        grad_v = (grad @ last.t()).view(-1, widen.shape[1])
        grad_widen = kept.t() @ grad_v
        grad_h = grad_v @ widen.t()
        if gelu:
            grad_z = torch.ops.aten.gelu_backward(grad_h, z)  # without a backward pass inside this one
        else:
            (grad_z,) = torch.autograd.grad(h, z, grad_h, create_graph=again)
        grad_u = (grad_z @ narrow.t()).view(-1, first.shape[1])
        grad_first = (grad_u.t() @ x).t()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(grad, grad_u, first.t()) if ctx.add else grad_u @ first.t()
        return grad_x, grad_first, u.t() @ grad_z, grad_z.sum(0), grad_widen, grad_last, grad_bias, None, None

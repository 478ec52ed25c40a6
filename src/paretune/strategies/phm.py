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
        factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.s = nn.Parameter(torch.empty(n, inputs // n, rank, **factory))
        self.t = nn.Parameter(torch.empty(n, rank, outputs // n, **factory))
        self.b = nn.Parameter(torch.zeros(outputs, **factory))
        if shared is None:
            self.rule = new_rule(n, like)
        for factor in (*self.s.data, *self.t.data):
            nn.init.xavier_normal_(factor)


def bottleneck(
    x: Tensor, down: PHM, up: PHM, shared: Tensor | None, activation: Activation, *, add: bool
) -> Tensor:
    """up(activation(down(x))), or x + that if ``add``, over the last axis of ``x``.

    Training keeps for the backward pass only ``x``, its n · n · rank products for each token, and two small factors.
    """
    layers = [(layer.rule if shared is None else shared, layer.s, layer.t, layer.b) for layer in (down, up)]
    inputs = (x, *layers[0], *layers[1])
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs[1:])
    if training and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        outputs: Tensor = _Bottleneck.apply(*inputs, activation, add)
        return outputs
    return _contract(*inputs, activation, add)[0]


def _contract(
    x: Tensor,
    down_rule: Tensor,
    down_s: Tensor,
    down_t: Tensor,
    down_b: Tensor,
    up_rule: Tensor,
    up_s: Tensor,
    up_t: Tensor,
    up_b: Tensor,
    activation: Activation,
    add: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output (..., outputs); then, for the gradient, the products u (tokens, n · n · rank) and both mixed factors.

    ``down`` is y = ((x_a S) over all a) K + b, and ``up`` is y_b = (x K)_b T + b_b: S and T are the factors of all terms
    beside each other, and the rule is in K.
    """
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else down_s.dtype
    slices, first, last = _plain(x, down_s, up_t, dtype)
    narrow, widen = _mixed(down_rule, down_t, up_rule, up_s, dtype)
    u = (slices @ first.t()).view(-1, len(narrow))
    h = activation((u @ narrow).add_(down_b.to(dtype)))
    v = (h @ widen).view(-1, len(last))
    bias = up_b.to(dtype)
    if add:  # in this order the bias takes no pass of its own over the outputs
        outputs = (slices.view(-1, len(bias)) + bias).view(-1, last.shape[1]).addmm_(v, last)
    else:
        outputs = v @ last
        outputs.view(-1, len(bias)).add_(bias)
    return outputs.view(*x.shape[:-1], len(bias)), u, narrow, widen


class _Bottleneck(torch.autograd.Function):
    """:func:`_contract`, which computes most of it again for the gradient.

    Not for torch.func, whose ``setup_context`` would make outputs of the tensors to keep, which costs time; nor for a
    compiler, which chooses itself what to keep.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        outputs, *kept = _contract(*inputs)
        *tensors, _up_b, ctx.activation, ctx.add = inputs
        ctx.save_for_backward(*tensors, *kept)
        bare: Any = outputs.new_empty(0)
        output: Tensor = bare.set_(outputs)  # no view, which could not be changed in place
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, down_rule, down_s, down_t, down_b, up_rule, up_s, up_t, u, narrow, widen = ctx.saved_tensors
        slices, first, last = _plain(x, down_s, up_t, u.dtype)
        again = torch.is_grad_enabled()  # where a gradient of this gradient is wanted
        if again:
            narrow, widen = _mixed(down_rule, down_t, up_rule, up_s, u.dtype)
            u = (slices @ first.t()).view(-1, len(narrow))
        z = (u @ narrow).add_(down_b.to(u.dtype))
        gelu = ctx.activation is nn.functional.gelu
        with torch.set_grad_enabled(again or not gelu):
            z = z if again or gelu else z.detach().requires_grad_()
            h = ctx.activation(z)
        kept = h if again else h.detach()
        v = (kept @ widen).view(-1, len(last))
        grad_up_b = grad.reshape(-1, grad.shape[-1]).sum(0)
        grad = grad.reshape(len(v), -1)
        grad_last = v.t() @ grad
        grad_v = (grad @ last.t()).view(-1, widen.shape[1])
        grad_widen = kept.t() @ grad_v
        grad_h = grad_v @ widen.t()
        if gelu:
            grad_z = torch.ops.aten.gelu_backward(grad_h, z)  # without a backward pass inside this one
        else:
            (grad_z,) = torch.autograd.grad(h, z, grad_h, create_graph=again)
        grad_narrow = u.t() @ grad_z
        grad_u = (grad_z @ narrow.t()).view(-1, len(first))
        grad_first = grad_u.t() @ slices
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(grad, grad_u, first) if ctx.add else grad_u @ first
            grad_x = grad_x.view(x.shape)
        n, _, rank = down_s.shape
        grad_narrow = grad_narrow.view(n, n, rank, n, -1).permute(1, 0, 3, 2, 4)
        grad_widen = grad_widen.view(n, -1, n, n, rank).permute(3, 0, 2, 1, 4)
        grad_down_rule, grad_down_t = _outer_backward(grad_narrow, down_rule, down_t)
        grad_up_rule, grad_up_s = _outer_backward(grad_widen, up_rule, up_s)
        grad_down_s = grad_first.view(n, rank, -1).transpose(1, 2)
        grads_down = (grad_down_rule, grad_down_s, grad_down_t, grad_z.sum(0))
        return grad_x, *grads_down, grad_up_rule, grad_up_s, grad_last.view_as(up_t), grad_up_b, None, None


def _plain(x: Tensor, s: Tensor, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The slices of x (tokens · n, inputs / n), S of ``down`` transposed (n · rank, inputs / n), T of ``up``."""
    return (
        x.to(dtype).reshape(-1, s.shape[1]),
        s.to(dtype).transpose(1, 2).flatten(0, 1),
        t.to(dtype).flatten(0, 1),
    )


def _mixed(
    down_rule: Tensor, down_t: Tensor, up_rule: Tensor, up_s: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """K of ``down`` (n · n · rank, outputs) and of ``up`` (inputs, n · n · rank)."""
    n, rank, _ = down_t.shape
    narrow = _outer(down_rule, down_t).permute(1, 0, 3, 2, 4)  # a, i, r, b, q
    widen = _outer(up_rule, up_s).permute(1, 3, 2, 0, 4)  # a, p, b, i, r
    return narrow.reshape(n * n * rank, -1).to(dtype), widen.reshape(-1, n * n * rank).to(dtype)


def _outer(rule: Tensor, factor: Tensor) -> Tensor:
    """A_i[a, b] times the i-th ``factor`` [j, k]: (i, a, b, j, k)."""
    products = torch.bmm(rule.flatten(1).unsqueeze(2), factor.flatten(1).unsqueeze(1))
    return products.view(*rule.shape, *factor.shape[1:])


def _outer_backward(grad: Tensor, rule: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of rule and factor from that of their products (i, a, b, j, k)."""
    grad = grad.reshape(len(rule), rule[0].numel(), -1).to(rule.dtype)
    grad_rule = torch.bmm(grad, factor.flatten(1).unsqueeze(2))
    grad_factor = torch.bmm(rule.flatten(1).unsqueeze(1), grad)
    return grad_rule.view_as(rule), grad_factor.view_as(factor)

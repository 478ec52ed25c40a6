"""Folding batch norms into the convolutions before them.

In evaluation mode a batch norm is y = s (x - mean) + beta with s = gamma / sqrt(var + eps), so it can move
into the convolution that feeds it: W' = s W, b' = s (b - mean) + beta (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3.2). A third of the time of an attack on EfficientNet-Lite0 goes
away with it.

The pairs are found by running the model: a pair is a convolution whose output *is* the tensor that enters the
batch norm, and enters nothing else.
"""

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretune.attacks.copy.equality import Forward, difference

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """One batch norm that lives in its convolution.

    Args:
        norm: dotted name the batch norm had.
        eps: of the batch norm.
        inputs: the tensors that the folded ones are made of: ``weight`` and ``bias`` of the convolution, ``mean``, ``var``,
            ``gamma`` and ``beta`` of the batch norm, as far as there are any.
        outputs: the convolution's new weight and bias.
    """

    norm: str
    eps: float
    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]


def folded(values: Mapping[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """W' and b' as in the equation above, from the inputs that :class:`Fold` names; in float64 where the device has it.

    So the folded tensors carry one rounding and no more.
    """
    wide = torch.float32 if values["weight"].device.type == "mps" else torch.float64
    value = {role: tensor.to(wide) for role, tensor in values.items()}
    scale = torch.rsqrt(value["var"] + eps)
    if "gamma" in value:
        scale = scale * value["gamma"]
    shift = -value["mean"] if "bias" not in value else value["bias"] - value["mean"]
    shift = shift * scale
    if "beta" in value:
        shift = shift + value["beta"]
    return value["weight"] * scale.view(-1, 1, 1, 1), shift


def fold_batchnorms(module: nn.Module, image: Tensor, forward: Forward) -> list[Fold]:
    """Fold what can be folded in ``module``, in place; return what was.

    Args:
        module: a model in evaluation mode. Its parameters are not changed: the convolutions get new ones.
        image: one image (1, channels, height, width) that the model accepts.
        forward: runs a model on a batch and returns its logits.
    """
    if not any(_is_foldable_norm(part) for part in module.modules()):
        return []
    pairs = find_pairs(module, image, forward)
    if not pairs:
        return []

    def fold(module: nn.Module) -> list[Fold]:
        return [_fold(module, conv, norm) for conv, norm in pairs]

    problem = difference(module, fold, image, forward)
    if problem:
        logger.warning("batch norms stay unfolded in the attack copy: %s", problem)
        return []
    return fold(module)


def find_pairs(module: nn.Module, image: Tensor, forward: Forward) -> list[tuple[str, str]]:
    """Names of each convolution and the batch norm that alone consumes its output, in forward order."""
    outputs: dict[int, tuple[str, Tensor, int, Any]] = {}
    calls: Counter[str] = Counter()
    fed: list[tuple[str, str, Any]] = []

    def after_conv(name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        calls[name] += 1
        # Kept alive by the dict, so that no other tensor gets the same id.
        outputs[id(output)] = (name, output, output._version, output.grad_fn)

    def before_norm(name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entering = args[0]
        calls[name] += 1
        conv, output, version, node = outputs.get(id(entering), ("", None, 0, None))
        if output is entering and output._version == version and node is not None:
            fed.append((conv, name, node))

    with contextlib.ExitStack() as hooks, torch.enable_grad():
        for name, part in module.named_modules():
            if _is_foldable_conv(part):
                hooks.enter_context(part.register_forward_hook(functools.partial(after_conv, name)))
            elif _is_foldable_norm(part):
                hooks.enter_context(part.register_forward_pre_hook(functools.partial(before_norm, name)))
        logits = forward(module, image.detach().clone().requires_grad_())
    consumers = _count_consumers(logits.grad_fn)
    return [
        (conv, norm) for conv, norm, node in fed if calls[conv] == calls[norm] == 1 and consumers[node] == 1
    ]


def _count_consumers(root: Any) -> Counter[Any]:
    """How many operations on the way to ``root`` use the output of each node of the autograd graph."""
    consumers: Counter[Any] = Counter()
    pending, seen = [root], {root}
    while pending:
        node = pending.pop()
        for source, _ in node.next_functions if node is not None else ():
            consumers[source] += 1
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return consumers


def _is_foldable_conv(part: nn.Module) -> bool:
    """A convolution that is linear in its weight (weight-standardised ones are not) and has no hook."""
    from timm.layers import Conv2dSame

    plain = isinstance(part, nn.Conv2d) and type(part).forward in (nn.Conv2d.forward, Conv2dSame.forward)
    return plain and not part._forward_hooks and not part._forward_pre_hooks


def _is_foldable_norm(part: nn.Module) -> bool:
    """torch's or timm's batch norm with running statistics, which no hook or inserted child changes."""
    if not isinstance(part, nn.BatchNorm2d | nn.SyncBatchNorm):
        return False
    from timm.layers import BatchNormAct2d

    if type(part) not in (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d):
        return False
    own_children = {"drop", "act"} if isinstance(part, BatchNormAct2d) else set()
    return (
        part.running_mean is not None
        and {name for name, _ in part.named_children()} <= own_children
        and not part._forward_hooks
        and not part._forward_pre_hooks
    )


def _fold(module: nn.Module, conv_name: str, norm_name: str) -> Fold:
    """Give the convolution its new weight and bias, and put what the batch norm did besides in its place."""
    conv: Any = module.get_submodule(conv_name)
    norm: Any = module.get_submodule(norm_name)
    roles = {
        "weight": conv.weight,
        "bias": conv.bias,
        "mean": norm.running_mean,
        "var": norm.running_var,
        "gamma": norm.weight,
        "beta": norm.bias,
    }
    inputs = {role: tensor for role, tensor in roles.items() if tensor is not None}
    with torch.no_grad():
        weight, bias = folded(inputs, norm.eps)
        new_weight = torch.empty_like(conv.weight).copy_(weight)  # keeps the strides
        conv.weight = nn.Parameter(new_weight, requires_grad=False)
        conv.bias = nn.Parameter(bias.to(new_weight.dtype), requires_grad=False)
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    rest = [part for part in rest if not isinstance(part, nn.Identity)]
    instead = rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()
    module.set_submodule(norm_name, instead)
    return Fold(norm_name, norm.eps, inputs, (conv.weight, conv.bias))

"""Some of the logits of a classifier, from its own tensors."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

# That of timm computes the same; it differs where it is scripted.
_PLAIN = ("torch.nn.modules.linear.Linear", "timm.layers.linear.Linear")


def check_divisible(head: nn.Module, name: str) -> None:
    """Refuse a head whose rows are not the classes one by one, or that something else sees.

    Raises:
        ValueError: it is no plain Linear layer and no convolution of single pixels, or it has hooks.
    """
    plain = f"{type(head).__module__}.{type(head).__name__}" in _PLAIN
    if type(head) is nn.Conv2d:
        shape = (head.kernel_size, head.stride, head.padding, head.groups)
        plain = shape == ((1, 1), (1, 1), (0, 0), 1)
    if not plain or head._forward_hooks or head._forward_pre_hooks:
        raise ValueError(
            f"the head {name!r} must be a plain Linear layer without hooks, or such a Conv2d of 1 x 1, to be divided into "
            f"blocks of classes; got {head}"
        )


class HeadBlock(nn.Module):
    """A block of the classes of ``whole``: its tensors, in full and under their names, of which some rows take part.

    The logits are those of a layer that has these rows alone. The other rows get a gradient of zero.

    Args:
        whole: the head, see :func:`check_divisible`.
        rows: the classes.
    """

    def __init__(self, whole: nn.Module, rows: slice) -> None:
        super().__init__()
        self.weight, self.bias, self.rows = whole.weight, whole.bias, rows
        self.num_classes = rows.stop - rows.start

    def forward(self, features: Tensor) -> Tensor:
        """The logits of these classes."""
        assert isinstance(self.weight, Tensor)
        weight, bias = self.weight[self.rows], self.bias[self.rows] if isinstance(self.bias, Tensor) else None
        if weight.ndim == 4:
            return functional.conv2d(features, weight, bias)
        return functional.linear(features, weight, bias)


def cut_out(whole: nn.Module, rows: slice) -> nn.Module:
    """A layer of its own with these ``rows`` of the head ``whole``."""
    layer = copy.deepcopy(whole)
    for name, tensor in whole.named_parameters():
        value = tensor.detach()[rows].clone(memory_format=torch.preserve_format)
        setattr(layer, name, nn.Parameter(value, requires_grad=tensor.requires_grad))
    setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", rows.stop - rows.start)
    return layer

"""A small network, and the ways in which its layers can share tensors."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paretune import Backbone


class Net(nn.Module):
    """Three residual layers over the tokens of an image, two of them with norms, and batch norms at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.a, self.norm_a = nn.Linear(8, 8), nn.LayerNorm(8)
        self.b, self.norm_b = nn.Linear(8, 8), nn.LayerNorm(8)
        self.c = nn.Linear(8, 8)
        self.bn_a, self.bn_b = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = x + self.a(self.norm_a(x)).tanh()
        x = x + self.b(self.norm_b(x)).tanh()
        x = x + self.c(x).tanh()
        logits: Tensor = self.head(self.bn_b(self.bn_a(x.mean(1)).sigmoid()))
        return logits


def _weight(net: Any) -> None:
    net.b.weight = net.a.weight


def _layer_parts(net: Any) -> None:
    net.b.weight, net.b.bias = net.a.weight, net.a.bias


def _three(net: Any) -> None:
    net.c.weight = net.b.weight = net.a.weight


def _bias(net: Any) -> None:
    net.b.bias = net.a.bias


def _bias_of_norm(net: Any) -> None:
    net.norm_b.bias = net.a.bias


def _norms(net: Any) -> None:
    net.norm_b.weight, net.norm_b.bias = net.norm_a.weight, net.norm_a.bias


def _layer(net: Any) -> None:  # as ALBERT does: one module at two places
    net.b, net.norm_b = net.a, net.norm_a


def _batchnorm(net: Any) -> None:
    net.bn_b = net.bn_a


def _statistics(net: Any) -> None:
    net.bn_b.running_mean, net.bn_b.running_var = net.bn_a.running_mean, net.bn_a.running_var


def _embedding(net: Any) -> None:
    net.embedding = nn.Embedding(8, 8)
    net.embedding.weight = net.b.weight


def _attribute(net: Any) -> None:
    net.shared = net.c.weight


def _head(net: Any) -> None:  # one layer under two names
    net.classifier = net.head


TIES: dict[str, Callable[[Any], None]] = {
    "weight": _weight,
    "weight and bias": _layer_parts,
    "three weights": _three,
    "bias": _bias,
    "bias of a norm": _bias_of_norm,
    "norms": _norms,
    "layer": _layer,
    "batch norm": _batchnorm,
    "statistics": _statistics,
    "embedding": _embedding,
    "attribute": _attribute,
    "head": _head,
}


def make_tied(tie: str | Callable[[Any], None]) -> Backbone:
    """The network with this tie; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        (TIES[tie] if isinstance(tie, str) else tie)(net)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    sites = [name for name in "abc" if name in dict(net.named_modules())]
    return Backbone(net.eval(), image_size=16, head="head", sites=sites)


def untied(backbone: Backbone) -> Backbone:
    """A copy whose layers have tensors of their own."""
    twin = copy.deepcopy(backbone)
    net: Any = twin.module
    for name, part in list(net.named_modules(remove_duplicate=False)):
        if name:
            net.set_submodule(name, copy.deepcopy(part))
    for part in net.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                setattr(part, name, nn.Parameter(parameter.detach().clone()))
    return twin


def sharing(backbone: Backbone) -> list[str]:
    """For each name of a tensor the first name that it has."""
    first: dict[int, str] = {}
    tensors = (
        *backbone.module.named_parameters(remove_duplicate=False),
        *backbone.module.named_buffers(remove_duplicate=False),
    )
    return [first.setdefault(id(tensor), name) for name, tensor in tensors]

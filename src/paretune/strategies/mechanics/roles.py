"""Naming layers by what they do: attention projections, MLP layers, and the parts of a fused ``qkv``."""

import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretune.strategies.mechanics.base import base_layers, plain_tensor

# Last name components of attention projections and MLP layers in timm and transformers.
ROLES: dict[str, tuple[str, ...]] = {
    "q": ("q", "q_proj", "query", "q_proj_weight"),
    "k": ("k", "k_proj", "key", "k_proj_weight"),
    "v": ("v", "v_proj", "value", "v_proj_weight"),
    "o": ("o_proj", "out_proj"),
    "fc1": ("fc1", "pwconv1", "up_proj", "linear1"),
    "fc2": ("fc2", "pwconv2", "down_proj", "linear2"),
}
# Projections fused into one layer, with their parts in the order of the rows.
FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "in_proj_weight": ("q", "k", "v")}
# Projections that an attention module holds itself instead of in layers: nn.MultiheadAttention, open_clip.
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Rows:
    """Which rows of a weight are meant: all of them, or some of the equal parts of a fused projection.

    Args:
        parts: for each part whether it is meant; ``(True,)`` for a weight that is not fused.
        groups: how often the parts follow one another: 1 for q, k, v; the number of heads where each head has its own
            q, k, v one after the other (timm's CoAtNet).
    """

    parts: tuple[bool, ...] = (True,)
    groups: int = 1

    @property
    def whole(self) -> bool:
        """Whether every row is meant."""
        return all(self.parts)

    def of(self, rows: int) -> int:
        """How many of ``rows`` rows are meant."""
        return rows // len(self.parts) * sum(self.parts)

    def spread(self, values: Tensor, filling: float) -> Tensor:
        """One row for each row of the weight: those meant from ``values`` (part by part), the others ``filling``."""
        if self.whole and self.groups == 1:
            return values
        blocks = iter(values.view(sum(self.parts), -1, *values.shape[1:]))
        shape = (values.shape[0] // sum(self.parts), *values.shape[1:])
        parts = torch.stack([next(blocks) if on else values.new_full(shape, filling) for on in self.parts])
        grouped = parts.view(len(self.parts), self.groups, -1, *values.shape[1:])
        return grouped.transpose(0, 1).flatten(0, 2)  # (groups, parts, rows, …) to (rows of the weight, …)

    def __or__(self, other: "Rows") -> "Rows":
        """The rows that either means."""
        parts = tuple(a or b for a, b in zip(self.parts, other.parts, strict=True))
        return Rows(parts, self.groups)


@dataclass(frozen=True)
class Matrix:
    """A weight that a strategy can adapt.

    Args:
        layer: the module that holds it.
        tensor: its name there.
    """

    layer: nn.Module
    tensor: str

    @property
    def weight(self) -> nn.Parameter:
        """The parameter itself, beneath what strategies have added.

        Raises:
            ValueError: it is computed by a parametrization of the model's own.
        """
        parameter = plain_tensor(self.layer, self.tensor)
        if not isinstance(parameter, nn.Parameter):
            raise ValueError(
                f"{type(self.layer).__name__} has parametrizations of its own; remove them before adapting"
            )
        return parameter


def matrices(module: nn.Module, head: str) -> dict[str, Matrix]:
    """The weights of ``module`` that can be adapted, those of its head excepted.

    The weight of a Linear or Conv2d layer has the name of the layer, a projection that an attention module holds itself
    its own full name, such as ``encoder.layers.0.self_attn.in_proj_weight``. A shared layer has several names.
    """
    projections, last = {}, module.get_submodule(head)
    for name, layer in base_layers(module):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if layer is not last:
                projections[name] = Matrix(layer, "weight")
            continue
        for tensor in PROJECTIONS:
            weight = plain_tensor(layer, tensor)
            if isinstance(weight, nn.Parameter) and weight.ndim == 2:
                projections[f"{name}.{tensor}".lstrip(".")] = Matrix(layer, tensor)
    return projections


def named(name: str, pattern: str) -> bool:
    """Whether a glob pattern means the matrix ``name``; the name of an attention module means the projections it holds."""
    parent, _, last = name.rpartition(".")
    return fnmatch.fnmatchcase(name, pattern) or (
        last in PROJECTIONS and fnmatch.fnmatchcase(parent, pattern)
    )


def match_layer(target: str, name: str, layer: nn.Module, module: nn.Module) -> Rows | None:
    """The rows of the matrix ``name`` that ``target`` means: a role or a glob pattern of full names; None if it does not.

    Args:
        target: the role or pattern.
        name: as :func:`matrices` names it.
        layer: that holds the matrix.
        module: the whole model.

    Raises:
        ValueError: it is a fused projection whose parts are not known to be q, k and v of equal size.
    """
    parent, _, last = name.rpartition(".")
    if target not in ROLES:
        return Rows() if named(name, target) else None
    if target in FUSED.get(last, ()):
        return _fused(target, name, layer, module.get_submodule(parent))
    if target == "o" and last == "proj":
        return Rows() if ".attn." in f".{name}" else None
    return Rows() if own_name(name, module) in ROLES[target] else None


def own_name(name: str, module: nn.Module) -> str:
    """The last component of a layer's name; ``fc1`` and ``fc2`` for the two Linear layers in a row that is named ``mlp``."""
    outer, _, last = name.rpartition(".")
    if outer.rpartition(".")[2] == "mlp":
        children = module.get_submodule(outer).named_children()
        linears = [child for child, layer in children if isinstance(layer, nn.Linear)]
        if isinstance(module.get_submodule(outer), nn.Sequential) and len(linears) == 2 and last in linears:
            return ("fc1", "fc2")[linears.index(last)]
    return last


def _fused(target: str, name: str, layer: Any, attention: Any) -> Rows:
    """The rows of one part. That they are where they are said to be is tested on attention modules of timm."""
    last = name.rpartition(".")[2]
    names = FUSED[last]
    parts = tuple(part == target for part in names)
    weight: Any = getattr(layer, last if last in PROJECTIONS else "weight")
    rows, heads = weight.shape[0], getattr(attention, "num_heads", 1)
    if getattr(attention, "head_first", False):
        return Rows(parts, heads)
    if hasattr(attention, "key_dim"):  # TinyViT, EfficientFormer: by heads, and values may be wider than keys
        even = (
            getattr(attention, "val_dim", None) == attention.key_dim
            and rows == heads * len(parts) * attention.key_dim
        )
        groups = heads
    else:
        # Lambda layers and bottleneck attention have keys of another width than values; halo attention interleaves.
        even = rows % len(parts) == 0 and not any(
            hasattr(attention, width) for width in ("dim_qk", "dim_head_qk")
        )
        groups = 1
    if not even:
        raise ValueError(
            f"{target!r} cannot be told apart in {name!r} of a {type(attention).__name__}: its {rows} rows are not "
            f"{', '.join(names)} of one size; name the whole layer by a pattern"
        )
    return Rows(parts, groups)

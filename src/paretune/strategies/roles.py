"""Naming layers by what they do: attention projections, MLP layers, and the parts of a fused ``qkv``."""

import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Last name components of attention projections and MLP layers in timm and transformers.
ROLES: dict[str, tuple[str, ...]] = {
    "q": ("q", "q_proj", "query"),
    "k": ("k", "k_proj", "key"),
    "v": ("v", "v_proj", "value"),
    "o": ("o_proj", "out_proj"),
    "fc1": ("fc1", "pwconv1", "up_proj"),
    "fc2": ("fc2", "pwconv2", "down_proj"),
}
# Projections fused into one layer, with their parts in the order of the rows.
FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}


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
        found = iter(values.view(sum(self.parts), -1, *values.shape[1:]))
        shape = (values.shape[0] // sum(self.parts), *values.shape[1:])
        parts = torch.stack([next(found) if on else values.new_full(shape, filling) for on in self.parts])
        grouped = parts.view(len(self.parts), self.groups, -1, *values.shape[1:])
        return grouped.transpose(0, 1).flatten(0, 2)  # (groups, parts, rows, …) to (rows of the weight, …)

    def __or__(self, other: "Rows") -> "Rows":
        """The rows that either means."""
        parts = tuple(a or b for a, b in zip(self.parts, other.parts, strict=True))
        return Rows(parts, self.groups)


def match_layer(target: str, name: str, layer: nn.Module, module: nn.Module) -> Rows | None:
    """The rows of ``layer`` that ``target`` means: a role or a glob pattern of full names; None if it does not.

    Raises:
        ValueError: the layer is a fused projection whose parts are not known to be q, k and v of equal size.
    """
    parent, _, last = name.rpartition(".")
    if target not in ROLES:
        return Rows() if fnmatch.fnmatchcase(name, target) else None
    if target in FUSED.get(last, ()):
        return _fused(target, name, layer, module.get_submodule(parent))
    if target == "o" and last == "proj":
        return Rows() if ".attn." in f".{name}" else None
    return Rows() if last in ROLES[target] else None


def _fused(target: str, name: str, layer: Any, attention: Any) -> Rows:
    """The rows of one part. That they are where they are said to be is tested on attention modules of timm."""
    names = FUSED[name.rpartition(".")[2]]
    parts = tuple(part == target for part in names)
    rows, heads = layer.weight.shape[0], getattr(attention, "num_heads", 1)
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
            hasattr(attention, own) for own in ("dim_qk", "dim_head_qk")
        )
        groups = 1
    if not even:
        raise ValueError(
            f"{target!r} cannot be told apart in {name!r} of a {type(attention).__name__}: its {rows} rows are not "
            f"{', '.join(names)} of one size; name the whole layer by a pattern"
        )
    return Rows(parts, groups)

"""Tensors that a model uses at several places, and memory that several tensors share: what may change, and what may not."""

from collections.abc import Mapping

import torch
from torch import nn

from paretune.strategies.mechanics.base import holders


def check_head(module: nn.Module, head: str) -> None:
    """Raise ValueError if the head, which trains for other classes, shares a tensor with another layer."""
    of_head = set(module.get_submodule(head).modules())
    for sharing in holders(module).values():
        inner = [tensor for part, tensor in sharing if part in of_head]
        if inner and len(inner) < len(sharing):
            names = {part: name for name, part in module.named_modules()}
            other, tensor = next((names[part], key) for part, key in sharing if part not in of_head)
            shared = f"{other}.{tensor}".lstrip(".")
            raise ValueError(
                f"the head {head!r} shares its {inner[0]} with {shared!r}, which would train with it; "
                f"give it its own: model.{head}.{inner[0]} = torch.nn.Parameter(model.{head}.{inner[0]}.detach().clone())"
            )


def check_memory(module: nn.Module, changing: set[int], names: Mapping[str, str]) -> None:
    """Raise ValueError if a tensor that changes lies in the memory of another, or has numbers that share one place in it.

    Args:
        module: adapted.
        changing: the ``id`` of each tensor that changes.
        names: of parameters, by those that they have in the adapted model.
    """
    spans: dict[torch.device, list[tuple[int, int, str, int]]] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.layout is torch.strided and not tensor.is_meta and tensor.numel():
            last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start, size = tensor.data_ptr(), tensor.element_size()
            if id(tensor) in changing and tensor.numel() > last + 1:
                raise ValueError(
                    f"{names.get(name, name)} is expanded: several of its numbers share one place in memory and cannot "
                    "change apart; give each its own: layer.weight = torch.nn.Parameter(layer.weight.detach().contiguous())"
                )
            span = (start, start + (last + 1) * size, names.get(name, name), id(tensor))
            spans.setdefault(tensor.device, []).append(span)
    for on_device in spans.values():
        reaching: list[tuple[int, int, str, int]] = []
        for span in sorted(on_device):
            reaching = [before for before in reaching if before[1] > span[0]]
            for _, _, other, one in reaching:
                if {one, span[3]} & changing:
                    raise ValueError(
                        f"{other} and {span[2]} are views of one memory, so that a change of one changes the other; give "
                        "each its own: layer.weight = torch.nn.Parameter(layer.weight.detach().clone())"
                    )
            reaching.append(span)

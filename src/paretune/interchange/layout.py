"""How ``adapter_model.safetensors`` is laid out where the directory is one of peft too.

The file then has peft's names and shapes; ``paretune.json`` records the name of each of our tensors there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paretune.interchange.peft.directory import PeftFiles
from paretune.interchange.placing import stored_name
from paretune.strategies.mechanics.roles import Rows


def describe(files: PeftFiles, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``paretune.json`` says of the layout; ``stored`` are our tensors by their names in our files."""
    names = {stored_name(full): theirs for full, theirs in files.names.items()}
    ours = {name: theirs for name, theirs in names.items() if name in stored}
    return {
        "names": ours,
        "fused": files.fused,
        "divided": files.divided,
        "also": sorted(set(files.tensors) - set(ours.values())),
    }


def decode(
    saved: Mapping[str, Tensor], layout: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Our tensors, of the recorded ``shapes``, out of those of peft's file.

    Raises:
        ValueError: the two files disagree.
    """
    names, fused = layout["names"], layout["fused"]
    odd = set(names) ^ set(shapes) or set(saved) ^ {*names.values(), *layout["also"]}
    if odd:
        raise ValueError(f"they disagree on {', '.join(sorted(odd)[:4])}")
    tensors = {}
    for name, theirs in names.items():
        layer, _, last = name.rpartition(".")
        value = saved[theirs]
        if theirs in layout.get("divided", {}):  # else its type stays as it is, which is checked later
            value = value * float(layout["divided"][theirs])
        if layer in fused and last in ("lora_B", "ia3_l"):
            rows = Rows(tuple(bool(part) for part in fused[layer]["parts"]), int(fused[layer]["groups"]))
            value = _of_rows(value if last == "lora_B" else value.flatten(), rows, shapes[name], theirs)
        if value.numel() != torch.Size(shapes[name]).numel():
            raise ValueError(f"{theirs} has shape {tuple(value.shape)}, which is not {tuple(shapes[name])}")
        tensors[name] = value.reshape(shapes[name])
    return tensors


def _of_rows(value: Tensor, rows: Rows, shape: list[int], name: str) -> Tensor:
    """The values of the rows that an adapter has, without the zeros (LoRA) or ones (IA3) of the others."""
    count, parts, filling = shape[0], sum(rows.parts), 0.0 if len(shape) == 2 else 1.0
    value = value.flatten(1) if len(shape) == 2 else value  # of a convolution
    if count > value.shape[0]:
        raise ValueError(f"{name} has {value.shape[0]} rows, fewer than {count}")
    index = rows.spread(torch.arange(1, count + 1), 0)
    if index.shape[0] != value.shape[0]:
        raise ValueError(f"{name} has {value.shape[0]} rows instead of {index.shape[0]}")
    ours = value.new_empty(count, *value.shape[1:])
    ours[index[index > 0] - 1] = value[index > 0]
    if len(shape) == 2:  # each part has its own columns
        number = torch.arange(parts)
        ours = ours.view(parts, count // parts, parts, -1)[number, :, number].reshape(shape)
    if (value != filling).sum() != (ours != filling).sum():
        raise ValueError(f"{name} changes rows that the strategy leaves as they are")
    return ours

"""LoRA as a state dict of loralib; ``reading.py`` has the shapes."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import inside, network_of
from paretune.interchange.composing import product
from paretune.interchange.sharing import check_apart
from paretune.runs.disk import save_tensors, write_atomically
from paretune.strategies.bitfit import is_bias
from paretune.strategies.lora import LoRADelta
from paretune.strategies.mechanics.adapting import require_adaptation
from paretune.strategies.mechanics.base import Delta, base_parameters


def save_loralib(model: nn.Module, path: str | Path) -> float:
    """Write LoRA, biases and the head under loralib's names; returns the ``lora_alpha`` to build its layers with.

    A ``.safetensors`` file holds that number too; a ``.pt`` file, as loralib's, does not. Kernels must
    be square. Layers whose alpha / rank is another have the ratio in their B.

    Raises:
        ValueError: the model carries something else than LoRA, biases and a head, or ``path`` has another suffix.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"path must end in .safetensors or .pt, got {path}")
    adaptation = require_adaptation(model)
    module = network_of(model)
    check_apart(module, adaptation, "loralib")
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    parts = set()
    carriers = dict(Delta.carriers(module))
    for name, layer in carriers.items():
        lists: Any = layer.parametrizations
        if (
            list(lists) != ["weight"]
            or len(lists["weight"]) > 1
            or not isinstance(lists["weight"][0], LoRADelta)
        ):
            raise ValueError(f"loralib has LoRA only, and {name!r} carries something else")
        delta = lists["weight"][0]
        a, b, rank = _write_layer(name, layer, delta)
        tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        alphas[name] = round(delta.scaling * rank, 9)
        if delta.n > 1 or len(delta.rows.parts) > 1:
            parts.add(delta.rows.parts)
    if not alphas:
        raise ValueError(f"loralib has LoRA only, and the model carries {adaptation.strategy!r}")
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    for name, layer_alpha in alphas.items():
        if layer_alpha != alpha:
            tensors[f"{name}.lora_B"] = tensors[f"{name}.lora_B"] * (layer_alpha / alpha)
    base = base_parameters(module)
    for full, name in ((full, base[full]) for full in adaptation.trained if full in base):
        if not inside(name, adaptation.head) and not is_bias(name):
            raise ValueError(f"loralib has no place for {name}, which {adaptation.strategy!r} trains")
        layer_name = name.rpartition(".")[0]
        conv = isinstance(carriers.get(layer_name), nn.Conv2d)
        tensors[f"{layer_name}.conv.bias" if conv else name] = module.get_parameter(full)
    if adaptation.strategy.bn == "adapt":
        raise ValueError("loralib has no place for running statistics, which bn='adapt' trains")
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"format": "pt", "lora_alpha": repr(alpha)}
    if len(parts) == 1:
        metadata["enable_lora"] = json.dumps(parts.pop())
    if path.suffix == ".pt":
        content = io.BytesIO()  # because what torch says of a full disk names neither the file nor the reason
        torch.save(tensors, content)
        write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))
    else:
        save_tensors(path, tensors, metadata)
    return alpha


def _write_layer(name: str, layer: Any, delta: LoRADelta) -> tuple[Tensor, Tensor, int]:
    """A, B and r of loralib's layer; the scaling is left as it is."""
    weight = layer.parametrizations["weight"].original
    with torch.no_grad():
        a, b = delta.factors(weight)
    if isinstance(layer, nn.Linear):
        if len(delta.rows.parts) > 1 and delta.rows.groups == 1:
            return delta.lora_A, delta.lora_B, delta.rank
        return a, b, a.shape[0]
    side, groups = layer.kernel_size[0], layer.groups
    if layer.kernel_size != (side, side):
        raise ValueError(f"loralib has square kernels only; that of {name!r} is {layer.kernel_size}")
    rank = a.shape[0]
    if groups == 1:
        # Row (o, i) of theirs is the slice i of our row o, which a block of rank r for each i gives.
        slices = a.view(rank, side, -1).transpose(0, 1).reshape(rank * side, -1)
        blocks = b[:, None, None, :] * torch.eye(side, dtype=b.dtype, device=b.device)[None, :, :, None]
        return slices, blocks.reshape(-1, side * rank), rank
    rows = layer.out_channels // groups
    return (
        product(b, a).reshape(rows * side, -1),
        torch.eye(rows * side, dtype=b.dtype, device=b.device),
        rows,
    )

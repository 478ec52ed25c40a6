"""State dicts of loralib, the first implementation of LoRA (https://github.com/microsoft/LoRA).

``lora_state_dict`` holds ``NAME.lora_A`` and ``NAME.lora_B`` of each layer, and biases if asked for; nothing says what
``lora_alpha`` or ``enable_lora`` was. Their shapes, of rank r:

- ``Linear``: A (r, in), B (out, r), and the difference is B A;
- ``MergedLinear``, where n of the N equal parts of the rows are enabled: A (n · r, in), B (n · out / N, r), a pair a part;
- ``Conv2d`` with square kernels of side k and g groups: A (r · k, in · k), B (out / g · k, r · k), and the difference is B A
  read row by row as (out, in / g, k, k). Seen as our (out, in / g · k · k), its rank is up to r · k².
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import inside
from paretune.interchange.composing import Imported, factors, lora, own_parameters, product, together
from paretune.interchange.reading import held_by, read_state
from paretune.strategies import Strategy
from paretune.strategies.bitfit import is_bias
from paretune.strategies.mechanics.roles import FUSED, Rows, match_layer


@dataclass(frozen=True)
class _Layer:
    """One layer of ours: the enabled parts (None: the whole), its rank, what alpha must be, and A and B."""

    parts: tuple[bool, ...] | None
    rank: int
    alpha: float
    a: Tensor
    b: Tensor


def read_loralib(
    module: nn.Module, head: str, path: Path, alpha: float | None, enable_lora: Sequence[bool] | None
) -> Imported:
    """What a state dict of loralib means on ``module``, which stays as it is.

    A whole state dict may be given too, merged or not: then all but LoRA, biases and the head must be as in ``module``.

    Raises:
        ValueError: ``alpha`` or ``enable_lora`` is needed, or the tensors do not fit the model.
    """
    saved, metadata = read_state(path)
    if alpha is None and "lora_alpha" in metadata:
        alpha = float(metadata["lora_alpha"])
    if enable_lora is None and "enable_lora" in metadata:
        enable_lora = json.loads(metadata["enable_lora"])
    if alpha is None or not 0 < alpha < math.inf:
        raise ValueError(
            f"{path}: loralib's files do not hold lora_alpha; pass alpha=, a number above 0; got {alpha}"
        )
    saved = held_by(module, saved, path)
    layers: dict[str, Any] = dict(module.named_modules())
    pairs = {name.rpartition(".")[0] for name in saved if name.endswith((".lora_A", ".lora_B"))}
    for name in sorted(pairs):
        if not isinstance(layers.get(name), nn.Linear | nn.Conv2d):
            raise ValueError(
                f"{path} adapts {name!r}, which is no Linear or Conv2d of this {type(module).__name__}"
            )
        for letter in "AB":
            if f"{name}.lora_{letter}" not in saved:
                raise ValueError(f"{path}: {name}.lora_{letter} is missing")
    read = {
        name: _read_layer(name, layers[name], module, saved, alpha, enable_lora, path)
        for name in sorted(pairs)
    }
    rest = _others(module, head, saved, read, path)
    tensors: dict[str, Tensor] = {}
    if head in read:  # which trains in full here
        layer = read.pop(head)
        weight = rest.get(f"{head}.weight", layers[head].weight).detach()
        change = product(layer.b, layer.a).view_as(weight).to(weight)
        rest[f"{head}.weight"] = weight + layer.alpha / layer.rank * change
    for name, layer in read.items():
        tensors |= {f"{name}.lora_A": layer.a, f"{name}.lora_B": layer.b}
    strategies = _strategies(read, [name for name in layers if name and name != head])
    outside = [name for name in rest if not inside(name, head)]
    strategies += own_parameters(module, head, outside, set(read), str(path))
    return Imported(together(strategies), tensors | rest)


def _strategies(read: Mapping[str, _Layer], layers: list[str]) -> list[Strategy]:
    """One LoRA for the whole layers, and one for each choice of parts."""
    strategies: list[Strategy] = []
    for parts in dict.fromkeys(layer.parts for layer in read.values()):
        chosen = {name: layer for name, layer in read.items() if layer.parts == parts}
        roles = None if parts is None else tuple(itertools.compress(FUSED["qkv"], parts))
        ranks = {name: layer.rank for name, layer in chosen.items()}
        alphas = {name: layer.alpha for name, layer in chosen.items()}
        strategies.append(lora(ranks, alphas, layers, targets=roles))
    return strategies


def _read_layer(
    name: str,
    layer: Any,
    module: nn.Module,
    saved: Mapping[str, Tensor],
    alpha: float,
    enable_lora: Sequence[bool] | None,
    path: Path,
) -> _Layer:
    a, b = saved[f"{name}.lora_A"], saved[f"{name}.lora_B"]
    shapes = f"{path}: the factors of {name!r} have the shapes {tuple(a.shape)} and {tuple(b.shape)}"
    if a.ndim != 2 or b.ndim != 2 or 0 in (*a.shape, *b.shape):
        raise ValueError(f"{shapes}, not two axes each")
    if isinstance(layer, nn.Conv2d):
        return _read_conv(layer, a, b, alpha, shapes)
    rows, columns = layer.weight.shape
    rank = b.shape[1]
    n = a.shape[0] // rank
    if a.shape != (n * rank, columns) or rows * n % b.shape[0]:
        raise ValueError(f"{shapes}, the weight {(rows, columns)}")
    count = rows * n // b.shape[0]
    if count == 1:
        return _Layer(None, rank, alpha, *factors(a, b))
    parts = (
        tuple(map(bool, enable_lora)) if enable_lora is not None else (True,) * count if n == count else ()
    )
    if len(parts) != count or sum(parts) != n or rows % count:
        raise ValueError(
            f"{shapes}: {n} of {count} parts are enabled; pass enable_lora=, {count} truth values of which {n} are True, "
            f"such as (True, False, True) for q and v; got {enable_lora}"
        )
    is_fused = name.rpartition(".")[2] == "qkv" and count == 3 and rank <= min(rows // count, columns)
    if is_fused and match_layer("q", name, layer, module) == Rows((True, False, False)):
        return _Layer(parts, rank, alpha, a, b)
    return _Layer(None, n * rank, alpha * n, *factors(a, _dense(b, parts)))


def _dense(b: Tensor, parts: tuple[bool, ...]) -> Tensor:
    """B (rows, n · r) of the whole layer, from the pairs of its n enabled parts."""
    pairs = b.view(sum(parts), -1, b.shape[1])
    return Rows(parts).spread(torch.block_diag(*pairs), 0.0)  # type: ignore[no-untyped-call]


def _read_conv(layer: nn.Conv2d, a: Tensor, b: Tensor, alpha: float, shapes: str) -> _Layer:
    weight, side = layer.weight, layer.kernel_size[0]
    rank = a.shape[0] // side
    wanted = (rank * side, layer.in_channels * side), (layer.out_channels // layer.groups * side, rank * side)
    if layer.kernel_size != (side, side) or (tuple(a.shape), tuple(b.shape)) != wanted or rank == 0:
        raise ValueError(f"{shapes}, the weight {tuple(weight.shape)} in {layer.groups} groups")
    if layer.groups > 1:
        dense = product(b, a).reshape(weight.shape[0], -1)
        ours, theirs = dense, torch.eye(weight.shape[0], dtype=dense.dtype)
    else:
        blocks = b.view(-1, side, side, rank)
        first = blocks[:, :1, :1]
        if torch.equal(blocks, first * torch.eye(side, dtype=b.dtype)[:, :, None]):
            # Ours, as save_loralib writes it.
            ours, theirs = a.view(side, rank, -1).transpose(0, 1).reshape(rank, -1), first.reshape(-1, rank)
        else:
            ours, theirs = torch.block_diag(*[a] * side), b.reshape(weight.shape[0], -1)  # type: ignore[no-untyped-call]
    own_rank = ours.shape[0]
    return _Layer(None, own_rank, alpha / rank * own_rank, *factors(ours, theirs))


def _others(
    module: nn.Module, head: str, saved: Mapping[str, Tensor], read: Mapping[str, _Layer], path: Path
) -> dict[str, Tensor]:
    """The head and the biases that differ; all else must be the base's."""
    state = module.state_dict()
    rest: dict[str, Tensor] = {}
    differing = []
    biases_only = True
    for full, value in saved.items():
        if full.endswith((".lora_A", ".lora_B")):
            continue
        layer, _, last = full.rpartition(".")
        name = f"{layer.removesuffix('.conv')}.{last}" if layer.removesuffix(".conv") in read else full
        if name not in state:
            raise ValueError(f"{path} has {full}, which this {type(module).__name__} does not have")
        ours = state[name].cpu()
        if inside(name, head) or is_bias(name):
            rest[name] = value
            continue
        biases_only = False
        if ours.shape == value.shape and (torch.equal(ours, value) or name.endswith("num_batches_tracked")):
            continue
        merged = read.get(name.rpartition(".")[0]) if name.endswith(".weight") else None
        # loralib merges when it is put into evaluation mode, and its state dict then holds the merged weight.
        if merged is None or ours.shape != value.shape or not _is_merged(ours, value, merged):
            differing.append(name)
    if differing:
        raise ValueError(
            f"{path} is of another base: {len(differing)} tensors besides LoRA, biases and head differ from the model's, "
            f"{differing[0]} among them"
        )
    if biases_only:
        return rest
    return {
        name: value
        for name, value in rest.items()
        if inside(name, head) or not torch.equal(state[name].cpu(), value)
    }


def _is_merged(ours: Tensor, value: Tensor, layer: _Layer) -> bool:
    b = layer.b if layer.parts is None else _dense(layer.b, layer.parts)
    merged = ours + layer.alpha / layer.rank * (b @ layer.a).view_as(ours).to(ours)
    return torch.allclose(merged, value, rtol=1e-4, atol=1e-5 * float(merged.abs().max()))

"""Where the tensors of an adapters-library file go: from their names to those of an adapted ViT of transformers or timm."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paretune.interchange.adapters.config import fixed_scale, refusal
from paretune.strategies.mechanics.base import Anatomy, base_layers
from paretune.strategies.mechanics.roles import match_layer
from paretune.strategies.mechanics.selection import blocks as blocks_of

Tensors = dict[str, Tensor]

# transformers 4 says encoder.layer.0.attention.attention.query, transformers 5 layers.0.attention.q_proj.
_LAYER = re.compile(r"(?:vit\.)?(?:encoder\.)?layers?\.(\d+)\.(.+)")
_SHARED = re.compile(r"(?:vit\.)?shared_parameters\.[^.]+\.(\w+)")
_BOTTLENECK = re.compile(r"(attention|(?:output\.|mlp\.)?output)_adapters\.adapters\.[^.]+\.(.+)")
_LORA = re.compile(r"(.+)\.loras\.[^.]+\.(lora_[AB])")
_ROLES = {
    "attention.attention.query": "q", "attention.q_proj": "q",
    "attention.attention.key": "k", "attention.k_proj": "k",
    "attention.attention.value": "v", "attention.v_proj": "v",
    "intermediate.dense": "fc1", "mlp.fc1": "fc1",
    "output.dense": "fc2", "mlp.fc2": "fc2",
}  # fmt: skip


@dataclass
class _Layer:
    """The tensors of one layer: of the bottleneck behind each branch, and of the low-rank factors by role."""

    bottlenecks: dict[str, Tensors] = field(default_factory=dict)
    factors: dict[str, Tensors] = field(default_factory=dict)


def place_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], module: nn.Module, anatomy: Anatomy
) -> Tensors:
    """The tensors of the adapted ``module`` that those of the file mean, by the names they have in our own files.

    Args:
        config: from :func:`~paretune.interchange.adapters.config.modernised`.
        tensors: of the file.
        module: the model before it is adapted.
        anatomy: of the model.

    Raises:
        ValueError: a tensor is unknown, misses its partner, or belongs to a layer that the model does not have.
    """
    configs = config["configs"] if config.get("architecture") == "union" else [config]
    parts = {part.get("architecture") or "bottleneck": part for part in configs}
    layers, shared = _sorted(tensors)
    names = blocks_of(anatomy.sites)
    if layers and max(layers) >= len(names):
        raise ValueError(f"there are tensors of layer {max(layers)}, and the model has {len(names)} layers")
    placed: Tensors = {}
    for index, layer in sorted(layers.items()):
        for site in anatomy.sites:
            theirs = layer.bottlenecks.pop(site.branch, None) if site.block == names[index] else None
            if theirs is None:
                continue
            ours = _bottleneck(theirs, parts.get("bottleneck", {}))
            if theirs:
                raise ValueError(f"{', '.join(theirs)} behind the {site.branch} of layer {index} is unknown")
            kind = "compacter" if "down.s" in ours else "bottleneck"
            placed |= {f"{site.module}.{kind}.{leaf}": value for leaf, value in ours.items()}
        placed |= _low_rank(layer.factors, names[index], module, parts.get("lora", {}))
    return placed | _shared_rules(shared, placed, anatomy)


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[dict[int, _Layer], Tensors]:
    """The tensors by layer, and those that all layers share."""
    layers: dict[int, _Layer] = {}
    shared: Tensors = {}
    for name, value in tensors.items():
        if of_all := _SHARED.fullmatch(name):
            shared[of_all[1]] = value
            continue
        number, rest = of_layer.groups() if (of_layer := _LAYER.fullmatch(name)) else ("", "")
        if inserted := _BOTTLENECK.fullmatch(rest):
            branch = "attention" if inserted[1] == "attention" else "mlp"
            layers.setdefault(int(number), _Layer()).bottlenecks.setdefault(branch, {})[inserted[2]] = value
        elif (factor := _LORA.fullmatch(rest)) and factor[1] in _ROLES:
            role = _ROLES[factor[1]]
            layers.setdefault(int(number), _Layer()).factors.setdefault(role, {})[factor[2]] = value
        else:
            raise ValueError(f"{name} is no tensor of a bottleneck, a Compacter, a LoRA or an (IA)³ in a ViT")
    return layers, shared


def _bottleneck(theirs: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Tensors of our Bottleneck or CompacterAdapter; takes what it uses out of ``theirs``."""
    scale: Any = fixed_scale(config)
    if scale is None:
        scale = _take(theirs, "scaling")
    if "adapter_up.weight" in theirs:
        # The strategy has a field for a constant above 0.
        factor = 1.0 if isinstance(scale, float) and scale > 0 else scale
        return {
            "down.weight": _take(theirs, "adapter_down.0.weight"),
            "down.bias": _take(theirs, "adapter_down.0.bias"),
            "up.weight": (_take(theirs, "adapter_up.weight").T * factor).T,
            "up.bias": _take(theirs, "adapter_up.bias") * factor,
        }
    if isinstance(scale, Tensor) and scale.numel() > 1:
        raise refusal("scaling", "channel", "a sum of Kronecker products cannot absorb one scale a channel")
    ours = {f"down.{leaf}": value for leaf, value in _phm(theirs, "adapter_down.0.").items()}
    ours |= {f"up.{leaf}": value for leaf, value in _phm(theirs, "adapter_up.").items()}
    return ours | {"up.t": ours["up.t"] * scale, "up.b": ours["up.b"] * scale}


def _phm(theirs: Tensors, prefix: str) -> Tensors:
    """Tensors of our PHM: s (n, inputs / n, rank), t (n, rank, outputs / n), b (outputs,), and its rule if not shared."""
    if prefix + "W" in theirs:
        # Not factorised: a product with the identity.
        whole = theirs.pop(prefix + "W")
        identity = torch.eye(min(whole.shape[1:]), dtype=whole.dtype).repeat(whole.shape[0], 1, 1)
        s, t = (whole, identity) if whole.shape[2] < whole.shape[1] else (identity, whole)
    else:
        s, t = _take(theirs, prefix + "W_left"), _take(theirs, prefix + "W_right")
    b = theirs.pop(prefix + "b", s.new_zeros(t.shape[0] * t.shape[2]))
    return {"s": s, "t": t, "b": b} | _rule(theirs, prefix)


def _rule(theirs: Tensors, prefix: str = "") -> Tensors:
    """A (n, n, n), multiplied out if it is factorised; empty if there is none."""
    if prefix + "phm_rule" in theirs:
        return {"rule": theirs.pop(prefix + "phm_rule")}
    if prefix + "phm_rule_left" in theirs:
        return {"rule": theirs.pop(prefix + "phm_rule_left") @ _take(theirs, prefix + "phm_rule_right")}
    return {}


def _shared_rules(shared: Tensors, placed: Mapping[str, Tensor], anatomy: Anatomy) -> Tensors:
    """The rule, under the name of the first adapter of each strategy; there is one strategy for each width of bottleneck."""
    rule = _rule(shared)
    if shared:
        raise ValueError(f"{', '.join(shared)} is unknown")
    first: dict[int, str] = {}
    for site in anatomy.sites:
        bias = placed.get(f"{site.module}.compacter.down.b")
        if bias is not None:
            first.setdefault(bias.numel(), site.module)
    return {f"{name}.compacter.rule": value for name in first.values() for value in rule.values()}


def _low_rank(
    factors: Mapping[str, Tensors], block: str, module: nn.Module, config: Mapping[str, Any]
) -> Tensors:
    """Tensors of the LoRA or (IA)³ of one block, for ``factors`` by role; those of a fused layer follow one another."""
    layers: dict[str, dict[int, Tensors]] = {}
    for name, layer in base_layers(module):
        for role, theirs in factors.items() if name.startswith(f"{block}.") else ():
            rows = match_layer(role, name, layer, module) if isinstance(layer, nn.Linear) else None
            if rows is not None:
                layers.setdefault(name, {})[rows.parts.index(True)] = theirs
    placed: Tensors = {}
    for name, by_part in layers.items():
        parts = [by_part[part] for part in sorted(by_part)]
        b = torch.cat([_take(theirs, "lora_B") for theirs in parts])
        if any("lora_A" in theirs for theirs in parts):
            placed[f"{name}.lora_A"] = torch.cat([_take(theirs, "lora_A") for theirs in parts])
            placed[f"{name}.lora_B"] = b
        else:
            placed[f"{name}.ia3_l"] = b.flatten() * config.get("alpha", 1)  # its (IA)³ is scaled by alpha
    return placed


def _take(theirs: Tensors, name: str) -> Tensor:
    if name not in theirs:
        raise ValueError(f"{name} is missing beside {', '.join(theirs) or 'nothing'}")
    return theirs.pop(name)

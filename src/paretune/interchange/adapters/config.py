"""What an ``adapter_config.json`` of the adapters library means in strategies of ours.

The keys are those of adapters 1.3 (``adapters/configuration/adapter_config.py``). Settings that act in training only (how
tensors were initialised, dropout, stochastic depth) change no logit and are passed over.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from paretune.strategies import IA3, Adapter, Compacter, LoRA, Strategy

Placement = Literal["both", "attention", "mlp"]

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "leakyrelu": "leaky_relu",
    "leaky_relu": "leaky_relu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
_IN_TRAINING = {
    "init_weights", "init_weights_seed", "dropout", "stochastic_depth", "phm_c_init", "phm_init_range", "learn_phm",
    "hypercomplex_nonlinearity", "dtype",
}  # fmt: skip
_BOTTLENECK: dict[str, Any] = {
    "mh_adapter": True,
    "output_adapter": True,
    "reduction_factor": 16,
    "non_linearity": "relu",
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,  # matters with ln_after only
    "is_parallel": False,
    "scaling": 1.0,
    "leave_out": (),
    "cross_adapter": False,  # a ViT has no cross attention
    "inv_adapter_reduction_factor": None,
    "phm_layer": False,
    "phm_dim": 4,
    "phm_rank": 1,
    "phm_bias": True,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "factorized_phm_W": True,
}
_BOTTLENECK_REFUSED = {
    "ln_before": (False, "our bottlenecks have no norm"),
    "ln_after": (False, "our bottlenecks have no norm"),
    "use_gating": (False, "our bottlenecks have no gate"),
    "inv_adapter": (None, "nothing is inserted behind the embeddings"),
    "shared_W_phm": (False, "each of our projections has factors of its own"),
}
_LORA: dict[str, Any] = {
    "selfattn_lora": True,
    "intermediate_lora": False,
    "output_lora": False,
    "leave_out": (),
    "r": 8,
    "alpha": 8,
    "attn_matrices": ("q", "v"),
    "composition_mode": "add",
}
_LORA_REFUSED = {
    "use_gating": (False, "our factors have no gate"),
    "use_dora": (False, "our LoRA does not decompose the weight"),
    "vera_d": (None, "our LoRA has no random factors shared by all layers"),
    "vera_b": (None, "our LoRA has no random factors shared by all layers"),
}


def modernised(file: Mapping[str, Any]) -> dict[str, Any]:
    """The entry ``config`` of a file in the terms of adapters 1.3, which corrects older files as it loads them.

    Without a version, ``gelu`` was the tanh approximation; before 1.1.0, LoRA was scaled by 1 whatever alpha (its pull
    request 770).
    """
    config, version = dict(file["config"]), file.get("version")
    if version is None:
        renamed = {"gelu": "gelu_new", "gelu_orig": "gelu"}.get(str(config.get("non_linearity")))
        config |= {"non_linearity": renamed} if renamed else {}
    elif re.match(r"adapters\.(0\.|1\.0\.)", str(version)) and config.get("architecture") == "lora":
        config["alpha"] = config.get("r", _LORA["r"])
    return config


def read_strategies(config: Mapping[str, Any], width: int, blocks: Sequence[str]) -> list[Strategy]:
    """The strategies that together are the adapter.

    Args:
        config: from :func:`modernised`.
        width: of the residual stream.
        blocks: names of the residual blocks of the model, the layers of the file in their order.

    Raises:
        ValueError: no strategy of ours is the same function; names the key and its value.
    """
    architecture = config.get("architecture")
    if architecture == "union":
        parts = config.get("configs")
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise refusal("configs", parts, "it must be a list of configurations")
        kinds = [part.get("architecture") for part in parts]
        if len(set(kinds)) < len(kinds):
            raise refusal("configs", parts, "it has two of one architecture")
        return [strategy for part in parts for strategy in read_strategies(part, width, blocks)]
    if architecture == "lora":
        return [_lora(_settings(config, _LORA, _LORA_REFUSED), blocks)]
    if architecture in (None, "bottleneck"):
        return _bottlenecks(_settings(config, _BOTTLENECK, _BOTTLENECK_REFUSED), width, blocks)
    raise refusal("architecture", architecture, "bottlenecks, Compacter, LoRA and (IA)³ can be read")


def refusal(key: str, value: object, why: str) -> ValueError:
    """The error for a setting that cannot be carried over."""
    return ValueError(f"adapter_config.json has {key}={value!r}, which cannot be read exactly: {why}")


def fixed_scale(config: Mapping[str, Any]) -> float | None:
    """The constant factor in front of a bottleneck's change; None where it is a tensor of the file."""
    scaling = config.get("scaling", _BOTTLENECK["scaling"])
    if isinstance(scaling, int | float):
        return float(scaling)
    if scaling in ("learned", "channel"):
        return None
    raise refusal("scaling", scaling, "it must be a number, 'learned' or 'channel'")


def _settings(
    config: Mapping[str, Any], known: Mapping[str, Any], refused: Mapping[str, tuple[object, str]]
) -> dict[str, Any]:
    for key, value in config.items():
        if key in refused and value != refused[key][0]:
            raise refusal(key, value, refused[key][1])
        if value is not None and key not in {*known, *refused, *_IN_TRAINING, "architecture"}:
            raise refusal(key, value, "no such setting is known")
    return {key: default if config.get(key) is None else config[key] for key, default in known.items()}


def _lora(settings: Mapping[str, Any], blocks: Sequence[str]) -> Strategy:
    matrices = [key for key in settings["attn_matrices"] if key in ("q", "k", "v")]  # its ViT adapts no other
    targets = (
        *(matrices if settings["selfattn_lora"] else ()),
        *(("fc1",) if settings["intermediate_lora"] else ()),
        *(("fc2",) if settings["output_lora"] else ()),
    )
    if not targets:
        raise refusal("attn_matrices", settings["attn_matrices"], "it adapts no layer of a ViT")
    where = _where(settings["leave_out"], blocks)
    if settings["composition_mode"] == "scale":
        return IA3(targets=targets, where=where)
    if settings["composition_mode"] != "add":
        raise refusal("composition_mode", settings["composition_mode"], "it must be 'add' or 'scale'")
    rank, alpha = settings["r"], settings["alpha"]
    return LoRA(rank=rank, alpha=None if alpha == rank else float(alpha), targets=targets, where=where)


def _bottlenecks(settings: Mapping[str, Any], width: int, blocks: Sequence[str]) -> list[Strategy]:
    """One strategy for each width of bottleneck that occurs."""
    placement: Placement = "both" if settings["output_adapter"] else "attention"
    if not settings["mh_adapter"]:
        placement = "mlp"
        if not settings["output_adapter"]:
            raise refusal("output_adapter", False, "with mh_adapter=False there is no adapter at all")
    common: dict[str, Any] = {"activation": _activation(settings), "reads": _reads(settings)}
    n, factor = settings["phm_dim"], settings["reduction_factor"]
    layers: dict[int, list[int]] = {}
    for layer in range(len(blocks)):
        if layer not in settings["leave_out"]:
            layers.setdefault(max(1, int(width // _reduction(factor, layer))), []).append(layer)
    if not layers:
        raise refusal("leave_out", settings["leave_out"], "no layer of the model is left")
    strategies: list[Strategy] = []
    for narrow, chosen in layers.items():
        if narrow > width:
            raise refusal("reduction_factor", factor, "our bottlenecks are no wider than the branch")
        common["reduction"] = width / narrow
        others = [layer for layer in range(len(blocks)) if layer not in chosen]
        common["where"] = _where(others, blocks, "attention" if placement == "attention" else "")
        if not settings["phm_layer"]:
            scale = fixed_scale(settings) or 1.0
            style: Any = "pfeiffer" if placement == "mlp" else "houlsby"
            strategies.append(Adapter(style=style, scale=scale if scale > 0 else 1.0, **common))
            continue
        if narrow % n:
            raise refusal("reduction_factor", factor, f"phm_dim={n} does not divide {narrow}")
        # A matrix that is not factorised is one of full rank times an identity.
        rank = settings["phm_rank"] if settings["factorized_phm_W"] else narrow // n
        both: Any = "mlp" if placement == "mlp" else "both"
        shared = settings["shared_phm_rule"]
        strategies.append(Compacter(n=n, rank=rank, placement=both, shared_rule=shared, **common))
    return strategies


def _reads(settings: Mapping[str, Any]) -> str:
    """What enters the bottleneck; the change must be added to branch and stream, each counted once.

    In its ViT the library passes no norm to the adapter, so that ``original_ln_before`` and ``_after`` add the stream to the
    branch before and after the adapter, whose own shortcut starts before (``residual_before_ln``) or after the first sum.
    """
    before, after = settings["original_ln_before"], settings["original_ln_after"]
    around_branch = settings["residual_before_ln"]
    if settings["is_parallel"]:
        if not after:
            raise refusal("original_ln_after", after, "the residual stream would be cut")
        return "stream"
    if around_branch not in (True, False):
        raise refusal("residual_before_ln", around_branch, "a ViT has no norm there")
    stream_counts = int(after) + int(before and not around_branch)
    if stream_counts != 1:
        why = f"the residual stream would be added {stream_counts} times instead of once"
        raise refusal("original_ln_after", after, why)
    return "sum" if before else "branch"


def _activation(settings: Mapping[str, Any]) -> str:
    name = str(settings["non_linearity"]).lower()
    if name not in _ACTIVATIONS:
        raise refusal("non_linearity", settings["non_linearity"], f"known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _reduction(factor: Any, layer: int) -> float:
    if isinstance(factor, Mapping):
        factor = factor.get(str(layer), factor.get("default"))
    if not isinstance(factor, int | float) or not factor > 0:
        raise refusal("reduction_factor", factor, f"layer {layer} needs a number above 0")
    return factor


def _where(leave_out: Sequence[int], blocks: Sequence[str], condition: str = "") -> tuple[str, ...]:
    """The blocks that are not left out, as the field ``where`` of a strategy."""
    kept = [block for layer, block in enumerate(blocks) if layer not in leave_out]
    if len(kept) == len(blocks):
        return (condition or "all",)
    if not kept:
        raise refusal("leave_out", list(leave_out), "no layer of the model is left")
    return tuple(f"{block} & {condition}" if condition else block for block in kept)

"""An adapter in peft's own terms: its ``adapter_config.json`` and its names of tensors (https://github.com/huggingface/peft).

peft adds a branch to the output of a layer where we add a difference to its weight. For Linear layers and ungrouped
convolutions the two are the same function; what is not is refused here, with the reason.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from paretune.backbones.backbone import inside
from paretune.backbones.passing import blank_image
from paretune.interchange.checks import check_plain_head
from paretune.interchange.patterns import fold
from paretune.interchange.peft.directory import PeftFiles
from paretune.interchange.peft.own import add_own_parameters
from paretune.interchange.placing import stored_name, stored_tensors_full_names
from paretune.interchange.sharing import check_apart
from paretune.strategies.ia3 import IA3, IA3Delta
from paretune.strategies.lora import LoRA, LoRADelta
from paretune.strategies.mechanics.adapting import Adaptation
from paretune.strategies.mechanics.base import Anatomy, Delta, Union, base_layers, base_parameters
from paretune.strategies.mechanics.patterns import selector
from paretune.strategies.mechanics.views import shared_copy
from paretune.strategies.mechanics.wrapped import names_in_peft, wrapped_layers
from paretune.strategies.normtune import NormTune
from paretune.strategies.peft import Peft

# peft (at least up to 0.21) adds the difference of an attention's output projection twice, merged or not.
OUT_PROJ_TIMES = 2


def peft_files(module: nn.Module, adaptation: Adaptation) -> PeftFiles:
    """The adapter on ``module`` as peft would have saved it.

    Raises:
        ValueError: peft cannot express it exactly; the message says why.
    """
    strategy = adaptation.strategy
    parts = strategy.strategies if isinstance(strategy, Union) else (strategy,)
    tuners = [part for part in parts if isinstance(part, LoRA | IA3 | Peft)]
    foreign = [part for part in parts if part.why_not_mergeable]
    if foreign:
        raise ValueError(f"peft has no {type(foreign[0]).__name__}")
    check_plain_head(module, adaptation.head)
    check_apart(module, adaptation, "peft")
    carriers = dict(Delta.carriers(module))
    deltas = [part for part in module.modules() if isinstance(part, Delta)]
    if not all(isinstance(delta, LoRADelta | IA3Delta) for delta in deltas):
        raise ValueError(f"peft has no tuner for {strategy!r}")
    match tuners:
        case [Peft() as tuner]:
            files = _by_peft_itself(module, tuner, adaptation.head)
        case [LoRA() as tuner]:
            files = _lora(module, tuner, adaptation)
            _check_called(module, wrapped_by_peft(carriers, carriers), adaptation)
        case [IA3()]:
            files = _ia3(module)
            _check_called(module, carriers, adaptation)
        case [] if isinstance(strategy, NormTune):
            files = _norms(module, adaptation)
        case _:
            what = "several at once" if tuners else "such a strategy"
            raise ValueError(f"peft has no tuner for {what}: {strategy!r}")
    add_own_parameters(files, module, adaptation)
    beyond = set(stored_tensors_full_names(module, adaptation)) - set(files.names)
    if beyond:
        raise ValueError(f"peft has no place for {min(beyond)}")
    kind = type(module)
    files.config |= {
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        "base_model_name_or_path": None,
        "inference_mode": True,
        "revision": None,
        "task_type": None,
    }
    return files


def is_plain(layer: nn.Module) -> bool:
    """Whether a difference of the weight of ``layer`` is what peft's branch beside it computes."""
    kind: Any = parametrize.type_before_parametrizations(layer)
    if isinstance(layer, nn.Conv2d):
        # timm's Conv2dSame pads by the size of its input, and so do the copies that peft makes of it.
        known = kind is nn.Conv2d or (kind.__name__ == "Conv2dSame" and kind.__module__.startswith("timm."))
        return known and layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear) and kind.forward is nn.Linear.forward


def is_attention(layer: nn.Module) -> bool:
    """Whether peft's LoRA has a layer of its own for ``layer``, which adapts ``in_proj_weight`` and ``out_proj``."""
    kind = parametrize.type_before_parametrizations(layer)
    return kind is nn.MultiheadAttention and bool(layer._qkv_same_embed_dim)


def wrapped_by_peft(names: Iterable[str], adapted: Container[str]) -> list[str]:
    """What peft puts a layer of its own around to adapt ``names``, if it has ``adapted`` all of these.

    For the output projection of an attention that is the attention.
    """
    outer = {name: name.removesuffix(".out_proj") for name in names}
    return sorted({outer[name] if outer[name] in adapted else name for name in names})


def _lora(module: nn.Module, strategy: LoRA, adaptation: Adaptation) -> PeftFiles:
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    files = PeftFiles({})
    carriers = dict(Delta.carriers(module))
    attentions = {name for name, layer in carriers.items() if not isinstance(layer, nn.Linear | nn.Conv2d)}
    halves = {
        name for name in attentions if not is_attention(carriers[name]) or f"{name}.out_proj" not in carriers
    }
    odd = [
        name
        for name, layer in carriers.items()
        if name in halves or not (name in attentions or is_plain(layer))
    ]
    for name, layer in carriers.items():
        lists: Any = layer.parametrizations
        tensor = next(iter(lists))
        weight = lists[tensor]
        if name in halves:
            raise ValueError(
                f"peft's LoRA adapts in_proj_weight and out_proj of an nn.MultiheadAttention, both of them; in {name!r} "
                f"it is {tensor} alone, or the module another{_instead(module, odd, adaptation)}"
            )
        if name in odd:
            kind = parametrize.type_before_parametrizations(layer).__name__
            about = "a forward of its own"
            if isinstance(layer, nn.Conv2d):
                settings = ("groups", "dilation", "padding_mode")
                about = ", ".join(f"{name}={getattr(layer, name)!r}" for name in settings)
            raise ValueError(
                f"peft's LoRA is no difference of the weight of {name!r}, a {kind} with {about}"
                f"{_instead(module, odd, adaptation)}"
            )
        delta = weight[0]
        if len(weight) != 1 or not isinstance(delta, LoRADelta):
            raise ValueError(f"peft has one tuner a layer, and {name!r} carries {len(weight)} differences")
        with torch.no_grad():
            a, b = delta.factors(weight.original)
        rank = a.shape[0]
        alpha = delta.scaling * (math.sqrt(rank) if strategy.rslora else rank)
        outer, _, last = name.rpartition(".")
        theirs = name
        if outer in attentions and last == "out_proj":
            if (ranks[outer], alphas[outer]) != (rank, _clean(alpha)):
                raise ValueError(
                    f"peft's LoRA has one rank and alpha for all of {outer!r}; rank is {ranks[outer]} and {rank}, alpha "
                    f"{alphas[outer]} and {_clean(alpha)}"
                )
            theirs = f"{outer}.base_layer.out_proj"
            b = b / OUT_PROJ_TIMES
        else:
            ranks[name], alphas[name] = rank, _clean(alpha)
        if isinstance(layer, nn.Conv2d):
            a, b = a.view(rank, -1, *layer.kernel_size), b[:, :, None, None]
        full = f"{name}.parametrizations.{tensor}.0"
        files.add(f"{full}.lora_A", f"{theirs}.lora_A.weight", a)
        files.add(f"{full}.lora_B", f"{theirs}.lora_B.weight", b)
        if theirs != name:
            files.divided[files.names[f"{full}.lora_B"]] = OUT_PROJ_TIMES
        _note_rows(files, stored_name(f"{full}.").removesuffix("."), delta)
    common_rank = Counter(ranks.values()).most_common(1)[0][0]
    common_alpha = Counter(alphas.values()).most_common(1)[0][0]
    files.config = {
        "peft_type": "LORA",
        "r": common_rank,
        "lora_alpha": common_alpha,
        "lora_dropout": strategy.dropout,
        "use_rslora": strategy.rslora,
        "rank_pattern": _pattern(ranks, common_rank),
        "alpha_pattern": _pattern(alphas, common_alpha),
        "target_modules": selector(ranks, module),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return files


def _ia3(module: nn.Module) -> PeftFiles:
    files = PeftFiles({})
    inputs, targets = [], []
    for name, layer in Delta.carriers(module):
        lists: Any = layer.parametrizations
        tensor = next((tensor for tensor in ("gain", "weight") if tensor in lists), "")
        if not tensor:
            raise ValueError(f"peft's IA3 scales layers alone, not the {next(iter(lists))} of {name!r}")
        delta: IA3Delta = lists[tensor][0]
        targets.append(name)
        if delta.rows is None:
            inputs.append(name)
        scale = delta.ia3_l if delta.rows is None else delta.rows.spread(delta.ia3_l, 1.0)
        if isinstance(layer, nn.Conv2d):
            scale = scale.view(1, -1, 1, 1)
        else:
            scale = scale.view(1, -1) if delta.rows is None else scale.view(-1, 1)
        files.add(f"{name}.parametrizations.{tensor}.0.ia3_l", f"{name}.ia3_l", scale)
        if delta.rows is not None:
            _note_rows(files, name, delta)
    files.config = {
        "peft_type": "IA3",
        "target_modules": selector(targets, module),
        "feedforward_modules": selector(inputs, module),
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
    }
    return files


def _norms(module: nn.Module, adaptation: Adaptation) -> PeftFiles:
    """peft's tuner trains a copy of each norm, with all that it holds."""
    base = base_parameters(module)
    trained = {base[name] for name in adaptation.trained if not inside(name, adaptation.head)}
    norms = sorted({name.rpartition(".")[0] for name in trained})
    _check_called(module, norms, adaptation)
    files = PeftFiles({"peft_type": "LN_TUNING", "target_modules": selector(norms, module)})
    for norm in norms:
        for key, value in module.get_submodule(norm).state_dict(keep_vars=True).items():
            files.add(f"{norm}.{key}", f"{norm}.ln_tuning_layers.{key}", value)
    return files


def _by_peft_itself(module: nn.Module, strategy: Peft, head: str) -> PeftFiles:
    import peft

    config = peft.get_peft_config(strategy.to_dict()["config"]).to_dict()
    files = PeftFiles({key: _json(value) for key, value in config.items() if key != "peft_version"})
    state = module.state_dict(keep_vars=True)
    for name, full in names_in_peft(module).items():
        if not inside(full, head):  # which is saved whole
            files.add(full, name, state[full])
    layers = wrapped_layers(module)
    if files.config.get("target_modules") is not None:
        files.config["target_modules"] = selector(layers, module)
    if "feedforward_modules" in files.config:
        inputs = [name for name, layer in layers.items() if layer.is_feedforward]
        files.config["feedforward_modules"] = selector(inputs, module)
    if files.config.get("init_lora_weights"):
        files.config["init_lora_weights"] = True  # how they started is past, and needs no data
    # What peft wrapped is named above, one by one.
    files.config |= {
        key: None for key in ("exclude_modules", "layers_to_transform", "layers_pattern") if key in config
    }
    return files


def _note_rows(files: PeftFiles, name: str, delta: LoRADelta | IA3Delta) -> None:
    rows = delta.rows
    if rows is not None and len(rows.parts) > 1:
        files.fused[name] = {"parts": list(rows.parts), "groups": rows.groups}


def _check_called(module: nn.Module, names: Iterable[str], adaptation: Adaptation) -> None:
    passed_by = never_called(module, names, adaptation.anatomy)
    if passed_by:
        raise ValueError(
            f"the model never calls {passed_by[0]!r} but reads its weight, so that peft's layer has no effect"
            f"{_instead(module, passed_by, adaptation)}"
        )


def _instead(module: nn.Module, odd: Collection[str], adaptation: Adaptation) -> str:
    """What to name to have peft's directory: the layers of the adapter that are not ``odd`` and that the model calls."""
    good = [name for name, _ in Delta.carriers(module) if name not in odd]
    try:
        passed_by = never_called(module, wrapped_by_peft(good, good), adaptation.anatomy)
    except ValueError:
        return ""
    good = [name for name in good if wrapped_by_peft([name], good)[0] not in passed_by]
    if not good:
        return "; none of the layers that it adapts would do"
    layers = [name for name, layer in base_layers(module) if isinstance(layer, nn.Linear | nn.Conv2d)]
    argument = "targets" if isinstance(adaptation.strategy, LoRA) else "where"
    return f"; {argument}={fold(good, layers)!r} would do"


def never_called(module: nn.Module, names: Iterable[str], anatomy: Anatomy) -> list[str]:
    """Those of the layers ``names`` whose weight the model reads without calling them: there peft's branch has no effect.

    Raises:
        ValueError: the model cannot be run with wrappers such as peft's in place of these layers.
    """
    if anatomy.image_size is None:
        raise ValueError("whether the model calls its layers is unknown without an image size")
    trial = shared_copy(module)
    wrappers = {name: _Wrapper(trial.get_submodule(name)) for name in names}
    for name, wrapper in wrappers.items():
        trial.set_submodule(name, wrapper)
    try:
        with torch.no_grad():
            trial(blank_image(trial, anatomy.channels, anatomy.image_size))
    except Exception as error:  # any module may be inside
        raise ValueError(f"the model fails when its layers are wrapped as peft does: {error}") from error
    return [name for name, wrapper in wrappers.items() if not wrapper.called]


class _Wrapper(nn.Module):
    """Stands in for a layer as peft's do: it has the layer's weight and bias, and of its other attributes none.

    That of an attention module has them all.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = layer
        self.called = False

    def __getattr__(self, name: str) -> Any:
        layer = self._modules["base_layer"] if name != "base_layer" else None
        if isinstance(layer, nn.MultiheadAttention):
            return getattr(layer, name)
        return super().__getattr__(name)

    @property
    def weight(self) -> Any:
        """Of the layer."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """Of the layer."""
        return self.base_layer.bias

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer computes."""
        self.called = True
        return self.base_layer(*args, **kwargs)


def _pattern(values: Mapping[str, float], common: float) -> dict[str, float]:
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != common}


def _json(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value


def _clean(number: float) -> float:
    rounded = round(number, 9)  # scaling · rank is what was given as alpha, up to rounding
    return int(rounded) if rounded == int(rounded) else rounded

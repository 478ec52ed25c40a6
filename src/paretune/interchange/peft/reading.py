"""A directory of peft in our terms: LoRA, (IA)³ and norm tuning without peft, its other tuners through peft itself."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import inside
from paretune.interchange.composing import Imported, factors, lora, own_parameters, product, together
from paretune.interchange.patterns import fold
from paretune.interchange.peft.directory import PREFIX
from paretune.interchange.peft.older_names import current_name
from paretune.interchange.peft.writing import OUT_PROJ_TIMES, is_attention, is_plain
from paretune.interchange.reading import held_by, member, read_first, read_json
from paretune.strategies import IA3, Peft, Strategy
from paretune.strategies.mechanics.patterns import Pattern
from paretune.strategies.mechanics.roles import ROLES, matrices, own_name
from paretune.strategies.peft import INSTALL

CONFIG = "adapter_config.json"
# Fields that say nothing about the function, and those read below.
_SILENT = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type",
}  # fmt: skip
_READ = {
    "alpha_pattern", "bias", "feedforward_modules", "init_ia3_weights", "init_lora_weights", "lora_alpha", "lora_bias",
    "lora_dropout", "modules_to_save", "r", "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip
# Initialisations after which the base is as it was.
_HARMLESS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_files(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a directory of peft, under its own names, checked against no model.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or hostile.
    """
    config = read_json(member(directory, CONFIG))
    tensors = read_first(directory, ("adapter_model.safetensors", "adapter_model.bin"))
    if tensors is None:
        raise FileNotFoundError(f"{directory} has no adapter_model.safetensors")
    return config, tensors


def read_peft(module: nn.Module, head: str, directory: Path) -> Imported:
    """What a directory of peft means on ``module``, which stays as it is.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, names layers that the model does not have, or asks for what cannot be done exactly.
    """
    config, tensors = read_files(directory)
    reader = _Reader(module, head, config, directory)
    return reader.read({name.removeprefix(PREFIX): value for name, value in tensors.items()})


class _Reader:
    """Reads one directory for one model."""

    def __init__(self, module: nn.Module, head: str, config: dict[str, Any], directory: Path) -> None:
        self.module, self.head, self.config, self.directory = module, head, config, directory
        self.layers: dict[str, Any] = dict(module.named_modules())
        self.state = module.state_dict()
        self.patterns: dict[str, Pattern] = {}

    def read(self, saved: Mapping[str, Tensor]) -> Imported:
        kind = str(self.config.get("peft_type", "")).upper()
        # peft leaves these beside what it reads itself, when it saves all biases and a module whole.
        saved = {name: value for name, value in saved.items() if ".original_module." not in name}
        saved = {name: value for name, value in saved.items() if not _leftover(name, saved)}
        strange = {
            name
            for name, value in self.config.items()
            if name not in _SILENT | _READ and value not in (None, False, {}, [])
        }
        if self.config.get("init_lora_weights") not in _HARMLESS:
            raise ValueError(
                f"{self.directory}: init_lora_weights={self.config['init_lora_weights']!r} has changed the base, so "
                "that the adapter is no difference to it; save it again with peft's path_initial_model_for_weight_conversion"
            )
        if kind not in ("LORA", "IA3", "LN_TUNING") or strange:
            return self._through_peft(saved)
        ending = {
            "LORA": (".lora_A.weight", ".lora_B.weight", ".lora_B.bias"),
            "IA3": (".ia3_l",),
            "LN_TUNING": (),
        }[kind]
        adapted: dict[str, dict[str, Tensor]] = {}
        rest: dict[str, Tensor] = {}
        for name, value in held_by(self.module, saved, self.directory).items():
            last = next((end for end in ending if name.endswith(end)), None)
            if last is None:
                plain = name.replace(".base_layer.", ".").replace(".ln_tuning_layers.", ".")
                rest[current_name(plain, self.state)] = value
            else:
                adapted.setdefault(name.removesuffix(last), {})[last.removeprefix(".")] = value
        layers = {current_name(name.replace(".base_layer.", "."), self.layers): name for name in adapted}
        unknown = [name for name in layers if name not in self.layers]
        unknown += [name for name in rest if name not in self.state]
        if unknown:
            raise ValueError(
                f"{self.directory} adapts {unknown[0]!r}, which this {type(self.module).__name__} does not have"
            )
        if len(layers) != len(adapted) or (kind != "LN_TUNING" and not adapted):
            raise ValueError(f"{self.directory} has no tensors of a {kind} adapter, or two of one layer")
        self._check_targets(layers, rest)
        attentions = {
            name
            for name in layers
            if kind == "LORA" and is_attention(self.layers[name]) and f"{name}.out_proj" in layers
        }
        alone = [name for name in layers if name not in attentions]
        odd = [name for name in alone if not isinstance(self.layers[name], nn.Linear | nn.Conv2d)]
        # Ours scales the inputs of the second layers of MLPs only.
        odd += [
            name
            for name in (layers if kind == "IA3" else ())
            if self._selected("feedforward_modules", name) and own_name(name, self.module) not in ROLES["fc2"]
        ]
        if odd or (kind == "LORA" and not all(is_plain(self.layers[name]) for name in alone)):
            return self._through_peft(saved)
        tensors: dict[str, Tensor] = {}
        strategies: list[Strategy] = []
        tuner = {name: adapted[original] for name, original in layers.items()}
        if kind == "LORA":
            strategies = self._lora(tuner, layers, tensors, rest)
        elif kind == "IA3":
            strategies = self._ia3(tuner, tensors)
        # The head, biases, and modules saved whole.
        outside = [name for name in rest if not inside(name, self.head)]
        strategies += own_parameters(self.module, self.head, outside, set(layers), str(self.directory))
        if any(name.endswith(("running_mean", "running_var")) for name in outside):
            strategies = [dataclasses.replace(strategy, bn="adapt") for strategy in strategies]
        return Imported(together(strategies), tensors | rest)

    def _through_peft(self, tensors: Mapping[str, Tensor]) -> Imported:
        saved = self.config.get("modules_to_save") or []
        settings = {
            key: value
            for key, value in self.config.items()
            if value is not None
            and key not in _SILENT - {"peft_type", "exclude_modules", "layers_pattern", "layers_to_transform"}
        }
        settings.pop("modules_to_save", None)
        if "init_lora_weights" in settings:
            settings["init_lora_weights"] = True  # the file has what became of them
        # RandLora has its bases in each layer, and once more above them.
        tensors = {
            name: value
            for name, value in tensors.items()
            if not name.startswith("base_model.")
            or not any(
                other.endswith(name.removeprefix("base_model")) and torch.equal(tensor, value)
                for other, tensor in tensors.items()
                if other != name
            )
        }
        if settings.get("peft_type") == "ADALORA":
            tensors = self._of_all_ranks(tensors, settings.pop("rank_pattern", None) or {})
        try:
            import peft

            strategy = Peft(peft.get_peft_config(settings))
        except ImportError as error:
            raise ImportError(f"{self.directory} needs peft; {INSTALL}") from error
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{self.directory / CONFIG} is refused by peft: {error}") from error
        biases = settings.get("bias", "none") != "none"  # which the tuner trains where they are
        whole = {
            name: value
            for name, value in tensors.items()
            if name in self.state and (inside(name, self.head) or not (biases and name.endswith(".bias")))
        }
        beyond = [name for name in whole if not inside(name, self.head)]
        if beyond:
            raise ValueError(
                f"{self.directory}: modules_to_save={saved} holds {beyond[0]!r} outside the head {self.head!r}"
            )
        rest = {name: value for name, value in tensors.items() if name not in whole}
        return Imported(strategy, whole, rest)

    def _of_all_ranks(self, saved: Mapping[str, Tensor], masks: Any) -> dict[str, Tensor]:
        """Tensors of AdaLoRA with zeros for the ranks that it has given up, which ``masks`` says of each layer."""
        tensors = dict(saved)
        for key, mask in masks.items():
            layer = key.rpartition(".lora_E")[0]
            kept = torch.tensor(mask, dtype=torch.bool).flatten()
            for last in ("lora_A", "lora_E", "lora_B"):
                value = tensors[f"{layer}.{last}"]
                shape = (len(value), len(kept)) if last == "lora_B" else (len(kept), *value.shape[1:])
                whole = value.new_zeros(shape)
                (whole.T if last == "lora_B" else whole)[kept] = value.T if last == "lora_B" else value
                tensors[f"{layer}.{last}"] = whole
        return tensors

    def _lora(
        self,
        tuner: Mapping[str, Mapping[str, Tensor]],
        originals: Mapping[str, str],
        tensors: dict[str, Tensor],
        rest: dict[str, Tensor],
    ) -> list[Strategy]:
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        rslora = bool(self.config.get("use_rslora"))
        for name, parts in tuner.items():
            for part in ("lora_A.weight", "lora_B.weight"):
                if part not in parts:
                    raise ValueError(f"{self.directory}: {originals[name]}.{part} is missing")
            layer = self.layers[name]
            outer, _, last = name.rpartition(".")
            times, key = 1, originals[name]
            if last == "out_proj" and outer in tuner:  # of an attention, whose rank and alpha it has
                times, key = OUT_PROJ_TIMES, originals[outer]
            of_attention = not isinstance(layer, nn.Linear | nn.Conv2d)
            full_weight: Tensor = layer.in_proj_weight if of_attention else layer.weight
            a, b = parts["lora_A.weight"].flatten(1), parts["lora_B.weight"].flatten(1)
            rank, columns = a.shape
            rows = full_weight.shape[0]
            if b.shape != (rows, rank) or columns != full_weight[0].numel() or rank == 0:
                raise ValueError(
                    f"{self.directory}: the factors of {originals[name]!r} have the shapes {tuple(a.shape)} and "
                    f"{tuple(b.shape)}, the weight is seen as ({rows}, {full_weight[0].numel()})"
                )
            declared = self._number(key, "rank_pattern", "r", 8)
            if declared != rank:
                raise ValueError(
                    f"{self.directory}: {originals[name]!r} has rank {rank}, but the config says {declared}"
                )
            alpha = times * self._number(key, "alpha_pattern", "lora_alpha", 8)
            scaling = alpha / (math.sqrt(rank) if rslora else rank)
            if "lora_B.bias" in parts and (of_attention or times != 1):
                raise ValueError(f"{self.directory}: {originals[name]}.lora_B.bias is not read")
            if "lora_B.bias" in parts:
                bias = rest.get(f"{name}.bias", self.state.get(f"{name}.bias"))
                if bias is None or bias.shape != parts["lora_B.bias"].shape:
                    raise ValueError(
                        f"{self.directory}: {originals[name]}.lora_B.bias has no bias of the layer to add to"
                    )
                rest[f"{name}.bias"] = bias + scaling * parts["lora_B.bias"].to(bias)
            if name == self.head:  # which trains in full here
                weight = rest.get(f"{name}.weight", layer.weight).detach()
                rest[f"{name}.weight"] = weight + scaling * product(b, a).view_as(weight).to(weight)
                continue
            matrix = f"{name}.in_proj_weight" if of_attention else name
            ranks[matrix], alphas[matrix] = rank, alpha
            place = f"{name}.parametrizations.in_proj_weight.0" if of_attention else name
            tensors |= dict(zip((f"{place}.lora_A", f"{place}.lora_B"), factors(a, b), strict=True))
        if not ranks:
            return []
        dropout = float(self.config.get("lora_dropout") or 0.0)
        return [lora(ranks, alphas, list(matrices(self.module, self.head)), rslora, dropout)]

    def _ia3(self, tuner: Mapping[str, Mapping[str, Tensor]], tensors: dict[str, Tensor]) -> list[Strategy]:
        outputs: list[str] = []
        inputs: list[str] = []
        for name, parts in tuner.items():
            scale = parts["ia3_l"]
            if name == self.head:
                raise ValueError(f"{self.directory} scales the head {name!r}, which trains in full here")
            layer = self.layers[name]
            of_inputs = self._selected("feedforward_modules", name)
            width = layer.weight.shape[1 if of_inputs else 0]
            if scale.numel() != width or (of_inputs and getattr(layer, "groups", 1) > 1):
                raise ValueError(
                    f"{self.directory}: {name}.ia3_l has {scale.numel()} scales, {name!r} {width} channels"
                )
            (inputs if of_inputs else outputs).append(name)
            tensors[f"{name}.ia3_l"] = scale.flatten()
        linears = [
            name
            for name, layer in self.layers.items()
            if isinstance(layer, nn.Linear | nn.Conv2d) and name != self.head
        ]
        chosen = fold(outputs, linears)
        # "hidden" would mean these too.
        if any(own_name(name, self.module) in ROLES["fc2"] for name in outputs):
            apart: list[Strategy] = [IA3(targets=chosen)]
            return apart + ([IA3(targets=("hidden",), where=fold(inputs, linears))] if inputs else [])
        targets = (*chosen, "hidden") if inputs else chosen
        return [IA3(targets=targets, where=fold(tuner, linears) if inputs else ("all",))]

    def _number(self, name: str, patterns: str, default: str, otherwise: float) -> Any:
        given = self.config.get(patterns) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{self.directory}: {patterns} is {given!r} instead of an object")
        where = f"{self.directory}: {patterns}"
        value = next(
            (number for key, number in given.items() if self._matches(rf"(.*\.)?({key})", name, where)),
            self.config.get(default, otherwise),
        )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(
                f"{self.directory}: {default} of {name!r} is {value!r} instead of a number above 0"
            )
        return value

    def _matches(self, text: str, name: str, where: str) -> bool:
        if text not in self.patterns:
            self.patterns[text] = Pattern(text, where)
        return self.patterns[text](name)

    def _selected(self, key: str, name: str) -> bool:
        """As peft reads its lists of modules."""
        given = self.config.get(key) or []
        if isinstance(given, str):
            return self._matches(given, name, f"{self.directory}: {key}")
        if not isinstance(given, list) or not all(isinstance(pattern, str) for pattern in given):
            raise ValueError(f"{self.directory}: {key} is {given!r} instead of names")
        # For its feedforward_modules, peft compares ends of strings, for target_modules whole components.
        ends = tuple(given) if key == "feedforward_modules" else tuple(f".{pattern}" for pattern in given)
        return name in given or (bool(ends) and name.endswith(ends))

    def _check_targets(self, layers: Mapping[str, str], rest: Mapping[str, Tensor]) -> None:
        """Every layer that the config names must have its tensors."""
        given = self.config.get("target_modules")
        if not given or given == "all-linear" or self.config.get("layers_to_transform") is not None:
            return
        renamed = any(name != original.replace(".base_layer.", ".") for name, original in layers.items())
        for name in () if renamed else self.layers:
            if not self._selected("target_modules", name) or self._selected("exclude_modules", name):
                continue
            if name not in layers and not any(inside(key, name) for key in rest):
                raise ValueError(
                    f"{self.directory}: the tensors of {name!r} are missing, which target_modules names"
                )
        for name, original in layers.items():
            outer = original.removesuffix(".base_layer.out_proj")
            if not self._selected("target_modules", outer):
                raise ValueError(
                    f"{self.directory} has tensors of {name!r}, which target_modules does not name"
                )


def _leftover(name: str, names: Mapping[str, Tensor]) -> bool:
    return ".modules_to_save." in name and name.replace(".modules_to_save.", ".") in names

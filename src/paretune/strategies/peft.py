"""Any tuner of peft as a strategy (https://github.com/huggingface/peft), checked before it trains.

peft wraps layers, and some models pass the wrapper by: they read ``layer.weight`` and never call the layer. There the tuner
has no effect, without a word. And not every tuner of convolutions computes what its layer does. So each is tried on a copy.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import nn

from paretune._values import FrozenDict
from paretune.backbones.backbone import inside, logits_of
from paretune.strategies.mechanics.base import Anatomy, Strategy
from paretune.strategies.mechanics.patterns import Pattern, require_plain, selector
from paretune.strategies.mechanics.wrapped import (
    TOLERANCE,
    keep_as_buffers,
    names_in_peft,
    prepared,
    random_images,
    relative_distance,
    unwrap,
    wrapped_layers,
)

INSTALL = "pip install 'paretune[peft]'"
# What peft writes into a configuration while it works, and what says nothing about the tuner.
_NOT_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
}


@dataclass(frozen=True)
class Peft(Strategy):
    """Let peft do it: LoHa, LoKr, OFT, DoRA and others.

    Example: ``Peft({"peft_type": "LOHA", "r": 4, "target_modules": ["qkv", "fc1"]})`` or ``Peft(peft.LoHaConfig(...))``.

    Args:
        config: a ``peft.PeftConfig``, or a mapping of its fields with ``peft_type``. The head is not
            wrapped: it trains in full. A regular expression stands for the names that it matches within a second.
    """

    config: Mapping[str, Any]

    why_everywhere: ClassVar[str] = "name the layers by the target_modules of its config"
    needs_values: ClassVar[bool] = True  # some tuners choose by the weights
    why_alone: ClassVar[str] = "peft replaces the layers that other strategies would act on"

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.config
        if not isinstance(given, Mapping):
            if not hasattr(given, "peft_type") or not hasattr(given, "to_dict"):
                raise TypeError(
                    f"config must be a peft.PeftConfig or a mapping of its fields, got {type(given).__name__}"
                )
            given = _settings(given)
        if "peft_type" not in given:
            raise ValueError(f"config needs a peft_type such as 'LOHA'; got the fields {', '.join(given)}")
        object.__setattr__(self, "config", FrozenDict(given))

    def try_on(self, module: nn.Module, anatomy: Anatomy) -> None:
        """Try the tuner on a copy.

        Raises:
            ImportError: peft is not installed; the message has the install line.
            ValueError: peft refuses; or on this model its tuner changes the logits at the start, or leaves a parameter
                without effect; or peft would save something that cannot be given back.
        """
        trial = prepared(module)
        images = random_images(trial, anatomy)
        with torch.no_grad():
            before = logits_of(trial(images)) if images is not None else None
        # Some initialisations take no float64.
        self._inject(trial.to(next(module.parameters()).dtype), anatomy)
        if images is not None and before is not None:
            precision = next(trial.parameters()).dtype
            with torch.no_grad():
                try:
                    after = self._run(trial.double(), images)
                except ValueError:  # some take no float64 (AdaMSS)
                    images = images.to(precision)
                    after = self._run(trial.to(precision), images)
            apart = relative_distance(after, before)
            if apart > TOLERANCE:
                raise ValueError(
                    f"{self._name}: peft's layers change the logits of {type(module).__name__} by {apart:.2g} of the "
                    "largest before any training; choose other target_modules, or a strategy of paretune's own"
                )
            self._check_effect(trial, images)

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Let peft wrap the targeted layers.

        Raises:
            ImportError: peft is not installed; the message has the install line.
            ValueError: peft refuses, or would rewrite the weights of the base. The model is unchanged then.
        """
        trial = copy.deepcopy(module)
        self._inject(trial, anatomy)
        names_in_peft(trial)
        unwrap(trial)
        before, after = module.state_dict(), trial.state_dict()
        if list(before) != list(after) or not all(map(torch.equal, before.values(), after.values())):
            raise ValueError(
                f"{self._name}: this initialisation rewrites the weights of the base, which then could not be given back; "
                "choose one that leaves them as they are"
            )
        self._inject(module, anatomy)
        return [
            name
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and not inside(name, anatomy.head)
        ]

    @property
    def _name(self) -> str:
        return f"Peft({self.config['peft_type']})"

    def _inject(self, module: nn.Module, anatomy: Anatomy) -> None:
        try:
            import peft
        except ImportError as error:
            raise ImportError(f"Peft needs peft; {INSTALL}") from error
        fields = {key: _thawed(value) for key, value in self.config.items()}
        try:
            if str(fields["peft_type"]).upper() == "XLORA":
                raise ValueError("it would load other adapters, from wherever its config says")
            config = peft.get_peft_config(fields)
            if getattr(config, "modules_to_save", None):
                raise ValueError("modules_to_save is not needed; the head is trained and saved in any case")
            self._name_layers(config, module)
            if getattr(config, "exclude_modules", "") is None:
                config.exclude_modules = re.escape(anatomy.head)
            peft.inject_adapter_in_model(config, module)
            keep_as_buffers(module)
        except Exception as error:  # of a foreign library, anything may be raised
            reason = str(error)[:1000] or type(error).__name__
            raise ValueError(f"{self._name}: peft refuses {type(module).__name__}: {reason}") from error
        wrapped = wrapped_layers(module)
        inside_head = [name for name in wrapped if inside(name, anatomy.head)]
        if any(isinstance(wrapper.get_base_layer(), nn.MultiheadAttention) for wrapper in wrapped.values()):
            raise ValueError(
                f"{self._name}: peft replaces tensors of nn.MultiheadAttention whenever it runs, and could not give the "
                "base back; use paretune's LoRA, which also reads peft's files"
            )
        if not wrapped or inside_head:
            what = (
                f"wraps the head {anatomy.head!r}, which trains in full" if inside_head else "wraps no layer"
            )
            raise ValueError(f"{self._name}: peft {what}; choose other target_modules or exclude_modules")

    def _name_layers(self, config: Any, module: nn.Module) -> None:
        """Give peft the names that the patterns of ``config`` mean, because it would match them without a bound."""
        for field in ("target_modules", "exclude_modules", "feedforward_modules"):
            text = getattr(config, field, None)
            if isinstance(text, str) and text != "all-linear":
                pattern = Pattern(text, field)
                meant = [name for name, _ in module.named_modules() if name and pattern(name)]
                chosen = selector(meant, module)
                if not chosen and field == "target_modules":
                    raise ValueError(f"target_modules={text[:80]!r} matches no module")
                setattr(config, field, set(chosen) if isinstance(chosen, list) else chosen)
        for field in vars(config):
            given = getattr(config, field) if field.endswith("_pattern") else None
            for text in [given] if isinstance(given, str) else given or ():
                require_plain(text, field)

    def _run(self, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
        try:
            return logits_of(module(images))
        except Exception as error:  # of a foreign library, anything may be raised
            raise ValueError(
                f"{self._name}: peft's layers fail in {type(module).__name__}: {error}"
            ) from error

    def _check_effect(self, trial: nn.Module, images: torch.Tensor) -> None:
        """Raise if a parameter that would train gets no gradient, at a place where none is zero."""
        parameters = {
            name: parameter
            for wrapper, layer in wrapped_layers(trial).items()
            for name, parameter in ((f"{wrapper}.{key}", value) for key, value in layer.named_parameters())
            if parameter.requires_grad
        }
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in parameters.values():
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter.device, parameter.dtype))
        trial.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_()
        logits = self._run(trial, images)
        with torch.no_grad():
            apart = relative_distance(self._run(trial, images), logits)
        if apart > TOLERANCE:
            raise ValueError(
                f"{self._name}: without gradients {type(trial).__name__} passes peft's layers by and reads their weights; "
                f"its logits differ by {apart:.2g} of the largest; use paretune's LoRA, which changes the weight itself"
            )
        outcome = logits.square().sum()
        gradients = (
            torch.autograd.grad(outcome, list(parameters.values()), allow_unused=True)
            if outcome.requires_grad
            else [None] * len(parameters)
        )
        dead = [
            name for name, grad in zip(parameters, gradients, strict=True) if grad is None or not grad.any()
        ]
        if dead or not parameters:
            shown = ", ".join(dead[:3]) if dead else "any layer"
            more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
            raise ValueError(
                f"{self._name}: peft's parameters have no effect in {type(trial).__name__}: {shown}{more}. The model reads "
                "the weight of these layers and never calls them; use paretune's LoRA, which changes the weight itself"
            )


def _settings(config: Any) -> dict[str, Any]:
    """The fields of a peft configuration that differ from its defaults."""
    try:
        defaults = type(config)().to_dict()
    except Exception:  # of peft, for which some fields must be given (AdaLoRA)
        defaults = {}
    fields = {"peft_type": config.peft_type} | {
        key: value
        for key, value in config.to_dict().items()
        if key not in _NOT_SETTINGS and (key not in defaults or defaults[key] != value)
    }
    return {key: value.value if isinstance(value, Enum) else value for key, value in fields.items()}


def _thawed(value: Any) -> Any:
    """As peft wants it: lists and dicts."""
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value

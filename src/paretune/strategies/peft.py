"""Any tuner of peft as a strategy (https://github.com/huggingface/peft), checked before it trains.

peft wraps layers, and some models pass the wrapper by: they read ``layer.weight`` and never call the layer. There the tuner
has no effect, without a word. And not every tuner of convolutions computes what its layer does. So each is tried on a copy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import nn

from paretune._values import FrozenDict
from paretune.backbones import logits_of
from paretune.strategies.base import Anatomy, Strategy
from paretune.strategies.wrapped import (
    TOLERANCE,
    prepared,
    random_images,
    relative_distance,
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
            wrapped: it trains in full.
    """

    config: Mapping[str, Any]

    learning_rate: ClassVar[float] = 2e-3
    why_everywhere: ClassVar[str] = "name the layers by the target_modules of its config"
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

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Let peft wrap the targeted layers.

        Raises:
            ImportError: peft is not installed; the message has the install line.
            ValueError: peft refuses; or on this model its tuner changes the logits at the start, or leaves a parameter
                without effect. The model is unchanged then.
        """
        trial = prepared(module)
        images = random_images(trial, anatomy)
        with torch.no_grad():
            before = logits_of(trial(images)) if images is not None else None
        # Some initialisations take no float64.
        self._inject(trial.to(next(module.parameters()).dtype), anatomy)
        if images is not None and before is not None:
            trial.double()
            with torch.no_grad():
                apart = relative_distance(self._run(trial, images), before)
            if apart > TOLERANCE:
                raise ValueError(
                    f"{self._name}: peft's layers change the logits of {type(module).__name__} by {apart:.2g} of the "
                    "largest before any training; choose other target_modules, or a strategy of paretune's own"
                )
            self._check_effect(trial, images)
        self._inject(module, anatomy)
        return [
            name
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and not name.startswith(f"{anatomy.head}.")
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
        tensors = list(module.state_dict(keep_vars=True).values())
        before = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
        try:
            config = peft.get_peft_config(fields)
            if getattr(config, "modules_to_save", None):
                raise ValueError("modules_to_save is not needed; the head is trained and saved in any case")
            if getattr(config, "exclude_modules", "") is None:
                config.exclude_modules = re.escape(anatomy.head)
            peft.inject_adapter_in_model(config, module)
        except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{self._name}: peft refuses {type(module).__name__}: {error}") from error
        wrapped = wrapped_layers(module)
        inside_head = [
            name for name in wrapped if name == anatomy.head or name.startswith(f"{anatomy.head}.")
        ]
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
        if [(tensor._version, tensor.data_ptr()) for tensor in tensors] != before:
            raise ValueError(
                f"{self._name}: this initialisation rewrites the weights of the base, which then could not be given back; "
                "choose one that leaves them as they are"
            )

    def _run(self, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
        try:
            return logits_of(module(images))
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise ValueError(
                f"{self._name}: peft's layers fail in {type(module).__name__}: {error}"
            ) from error

    def _check_effect(self, trial: nn.Module, images: torch.Tensor) -> None:
        """Raise if a parameter that would train gets no gradient, at a place where none is zero."""
        own = {
            name: parameter
            for wrapper, layer in wrapped_layers(trial).items()
            for name, parameter in ((f"{wrapper}.{key}", value) for key, value in layer.named_parameters())
            if parameter.requires_grad
        }
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in own.values():
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter.device, parameter.dtype))
        trial.requires_grad_(False)
        for parameter in own.values():
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
        found = (
            torch.autograd.grad(outcome, list(own.values()), allow_unused=True)
            if outcome.requires_grad
            else [None] * len(own)
        )
        dead = [
            name for (name, _), grad in zip(own.items(), found, strict=True) if grad is None or not grad.any()
        ]
        if dead or not own:
            shown = ", ".join(dead[:3]) if dead else "any layer"
            more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
            raise ValueError(
                f"{self._name}: peft's parameters have no effect in {type(trial).__name__}: {shown}{more}. The model reads "
                "the weight of these layers and never calls them; use paretune's LoRA, which changes the weight itself"
            )


def _settings(config: Any) -> dict[str, Any]:
    """The fields of a peft configuration that differ from its defaults."""
    defaults = type(config)().to_dict()
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

"""What a directory of peft holds."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PREFIX = "base_model.model."  # of every tensor's name


@dataclass
class PeftFiles:
    """What a directory of peft holds.

    Args:
        config: of ``adapter_config.json``.
        tensors: of ``adapter_model.safetensors``, by peft's names.
        names: full name in the adapted model of each tensor that it trains, and the name among ``tensors``.
        fused: layers of which only some rows have an adapter; peft's file has zeros (LoRA) or ones (IA3) for the others.
        divided: names among ``tensors`` of those that peft applies more than once, and how often; its file has that part.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    fused: dict[str, dict[str, Any]] = field(default_factory=dict)
    divided: dict[str, float] = field(default_factory=dict)

    def add(self, full_name: str, name: str, value: Tensor) -> None:
        """Store ``value``, the tensor ``full_name`` of the model."""
        # peft's file has a copy for each layer that shares it.
        self.tensors[PREFIX + name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        self.names.setdefault(full_name, PREFIX + name)

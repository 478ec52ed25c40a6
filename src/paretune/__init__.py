"""Robust, parameter-efficient fine-tuning of vision models, and the robustness-accuracy frontier of each strategy.

Names load on first use, so that ``import paretune`` is quick and never touches a GPU.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "backbones": ("Backbone", "load_backbone"),
    "sites": ("Site",),
    "weights": ("offline_weights",),
    "data": ("ImageData", "load_data"),
    "strategies": (
        "BitFit",
        "Compacter",
        "FullFineTune",
        "LinearProbe",
        "LoRA",
        "adapt",
        "merge_adapter",
        "remove_adapter",
        "trainable_parameters",
    ),
    "interchange": ("load_adapter", "read_adapter", "save_adapter"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"paretune.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'paretune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""Robust, parameter-efficient fine-tuning of vision models, and the robustness-accuracy frontier of each strategy.

Names load on first use, so that ``import paretune`` is quick and never touches a GPU.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "analysis": ("analyze",),
    "attacks": ("APGD", "AutoAttack", "L1", "L2", "Linf", "PGD", "attack_copy"),
    "backbones": ("Backbone", "load_backbone"),
    "data": ("ImageData", "load_data"),
    "evaluation": ("evaluate",),
    "interchange": ("import_adapter", "load_adapter", "save_adapter", "save_merged"),
    "interchange.card_notes": ("update_card",),
    "interchange.export": ("export_model",),
    "interchange.hub": ("push_to_hub",),
    "multi": ("Adapters",),
    "objectives": ("AdversarialTraining", "Natural"),
    "optimizers": ("AdamW",),
    "pareto": ("area", "frontier"),
    "report": ("plot_frontiers", "write_report"),
    "report.analysis_page": ("write_analysis",),
    "results": ("load_points", "load_runs"),
    "schedules": ("EpsilonSchedule",),
    "sinks": ("MLflow", "TensorBoard", "Trackio", "WandB"),
    "sites": ("Site",),
    "stats": ("compare", "recommend"),
    "strategies": (
        "Adapter",
        "BitFit",
        "Compacter",
        "FullFineTune",
        "IA3",
        "LinearProbe",
        "LoRA",
        "NormTune",
        "Peft",
        "VisualPrompt",
        "adapt",
        "merge_adapter",
        "remove_adapter",
        "trainable_parameters",
    ),
    "training": ("train",),
    "weights": ("offline_weights",),
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

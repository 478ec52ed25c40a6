"""Robust, parameter-efficient fine-tuning of vision models, and the robustness-accuracy frontier of each strategy.

The folders follow the flow: images (:mod:`~paretune.data`), a pretrained model (:mod:`~paretune.backbones`), what is trained
of it (:mod:`~paretune.strategies`), against which attack (:mod:`~paretune.attacks`), the loop (:mod:`~paretune.training`),
what it reaches (:mod:`~paretune.evaluation`, :mod:`~paretune.runs`), which strategy is best (:mod:`~paretune.frontiers`,
:mod:`~paretune.report`), and files that travel (:mod:`~paretune.interchange`). What most work needs is here by its name.

Names and folders load on first use, so that ``import paretune`` is quick and never touches a GPU.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "data": ("load_data",),
    "backbones": ("Backbone", "load_backbone"),
    "strategies": (
        "Adapter",
        "BitFit",
        "Compacter",
        "FullFineTune",
        "IA3",
        "LinearProbe",
        "LoRA",
        "VisualPrompt",
        "adapt",
        "merge_adapter",
        "remove_adapter",
    ),
    "attacks": ("AutoAttack", "FGSM", "L2", "Linf", "PGD", "Square"),
    "training": ("AdversarialTraining", "EpsilonSchedule", "train"),
    "evaluation": ("evaluate",),
    "runs": ("load_points",),
    "frontiers": ("analyze", "area", "compare", "recommend"),
    "report": ("write_report",),
    "sweeps": ("sweep",),
    "interchange": ("export_model", "import_adapter", "load_adapter", "save_adapter"),
}
_HOME = {name: folder for folder, names in _NAMES.items() for name in names}
_FOLDERS = (*_NAMES, "kernels", "watch", "selftest", "commands")

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return importlib.import_module(f"paretune.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"paretune.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'paretune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_FOLDERS, "__version__"])

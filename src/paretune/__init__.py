"""Robust, parameter-efficient fine-tuning of vision models, and the robustness-accuracy frontier of each strategy.

The folders follow the flow: images (:mod:`~paretune.data`), a pretrained model (:mod:`~paretune.backbones`), what is trained
of it (:mod:`~paretune.strategies`), against which attack (:mod:`~paretune.attacks`), the loop (:mod:`~paretune.training`),
what it reaches (:mod:`~paretune.evaluation`, :mod:`~paretune.runs`), which strategy is best (:mod:`~paretune.frontiers`,
:mod:`~paretune.report`), and files that travel (:mod:`~paretune.interchange`). What most work needs is here by its name.

Names and folders load on first use, so that ``import paretune`` is quick and never touches a GPU.
"""

import importlib
from typing import TYPE_CHECKING, Any

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
    "attacks": ("AutoAttack", "FGSM", "L2", "Linf", "PGD"),
    "training": ("AdversarialTraining", "EpsilonSchedule", "train"),
    "evaluation": ("evaluate",),
    "runs": ("load_points",),
    "frontiers": ("analyze", "area", "compare", "recommend"),
    "report": ("write_report",),
    "sweeps": ("compare_until", "inheritance", "sweep"),
    "interchange": ("import_adapter", "load_adapter", "save_adapter"),
}
_HOME = {name: folder for folder, names in _NAMES.items() for name in names}
_FOLDERS = (*_NAMES, "kernels", "watch", "selftest", "commands")

__all__ = sorted(_HOME)


if TYPE_CHECKING:  # for type checkers and editors; at run time these load on first use
    from paretune import attacks as attacks
    from paretune import backbones as backbones
    from paretune import commands as commands
    from paretune import data as data
    from paretune import evaluation as evaluation
    from paretune import frontiers as frontiers
    from paretune import interchange as interchange
    from paretune import kernels as kernels
    from paretune import report as report
    from paretune import runs as runs
    from paretune import selftest as selftest
    from paretune import strategies as strategies
    from paretune import sweeps as sweeps
    from paretune import training as training
    from paretune import watch as watch
    from paretune.attacks import FGSM as FGSM
    from paretune.attacks import L2 as L2
    from paretune.attacks import PGD as PGD
    from paretune.attacks import AutoAttack as AutoAttack
    from paretune.attacks import Linf as Linf
    from paretune.backbones import Backbone as Backbone
    from paretune.backbones import load_backbone as load_backbone
    from paretune.data import load_data as load_data
    from paretune.evaluation import evaluate as evaluate
    from paretune.frontiers import analyze as analyze
    from paretune.frontiers import area as area
    from paretune.frontiers import compare as compare
    from paretune.frontiers import recommend as recommend
    from paretune.interchange import import_adapter as import_adapter
    from paretune.interchange import load_adapter as load_adapter
    from paretune.interchange import save_adapter as save_adapter
    from paretune.report import write_report as write_report
    from paretune.runs import load_points as load_points
    from paretune.strategies import IA3 as IA3
    from paretune.strategies import Adapter as Adapter
    from paretune.strategies import BitFit as BitFit
    from paretune.strategies import Compacter as Compacter
    from paretune.strategies import FullFineTune as FullFineTune
    from paretune.strategies import LinearProbe as LinearProbe
    from paretune.strategies import LoRA as LoRA
    from paretune.strategies import VisualPrompt as VisualPrompt
    from paretune.strategies import adapt as adapt
    from paretune.strategies import merge_adapter as merge_adapter
    from paretune.strategies import remove_adapter as remove_adapter
    from paretune.sweeps import compare_until as compare_until
    from paretune.sweeps import inheritance as inheritance
    from paretune.sweeps import sweep as sweep
    from paretune.training import AdversarialTraining as AdversarialTraining
    from paretune.training import EpsilonSchedule as EpsilonSchedule
    from paretune.training import train as train
else:

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

"""Strategies, and putting one on a model or taking it off again."""

from paretune.strategies.adapter import Adapter
from paretune.strategies.bitfit import BitFit
from paretune.strategies.compacter import Compacter
from paretune.strategies.full import FullFineTune
from paretune.strategies.ia3 import IA3
from paretune.strategies.lora import LoRA
from paretune.strategies.mechanics.adapting import (
    Adaptation,
    adapt,
    adaptation_of,
    merge_adapter,
    remove_adapter,
    trainable_parameters,
)
from paretune.strategies.mechanics.base import Strategy, Union
from paretune.strategies.normtune import NormTune
from paretune.strategies.peft import Peft
from paretune.strategies.probe import LinearProbe
from paretune.strategies.prompt import VisualPrompt
from paretune.strategies.ssf import SSF

STRATEGIES: dict[str, type[Strategy]] = {
    "FullFineTune": FullFineTune,
    "LinearProbe": LinearProbe,
    "BitFit": BitFit,
    "NormTune": NormTune,
    "LoRA": LoRA,
    "IA3": IA3,
    "SSF": SSF,
    "Compacter": Compacter,
    "Adapter": Adapter,
    "VisualPrompt": VisualPrompt,
    "Union": Union,
    "Peft": Peft,
}

__all__ = [
    "IA3",
    "SSF",
    "STRATEGIES",
    "Adaptation",
    "Adapter",
    "BitFit",
    "Compacter",
    "FullFineTune",
    "LinearProbe",
    "LoRA",
    "NormTune",
    "Peft",
    "Strategy",
    "Union",
    "VisualPrompt",
    "adapt",
    "adaptation_of",
    "merge_adapter",
    "remove_adapter",
    "trainable_parameters",
]

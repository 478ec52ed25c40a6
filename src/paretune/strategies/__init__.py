"""Strategies, and putting one on a model or taking it off again."""

from paretune.strategies.adapting import (
    Adaptation,
    adapt,
    adaptation_of,
    merge_adapter,
    remove_adapter,
    trainable_parameters,
)
from paretune.strategies.base import Strategy
from paretune.strategies.bitfit import BitFit
from paretune.strategies.compacter import Compacter
from paretune.strategies.full import FullFineTune
from paretune.strategies.lora import LoRA
from paretune.strategies.probe import LinearProbe

STRATEGIES: dict[str, type[Strategy]] = {
    "FullFineTune": FullFineTune,
    "LinearProbe": LinearProbe,
    "BitFit": BitFit,
    "LoRA": LoRA,
    "Compacter": Compacter,
}

__all__ = [
    "STRATEGIES",
    "Adaptation",
    "BitFit",
    "Compacter",
    "FullFineTune",
    "LinearProbe",
    "LoRA",
    "Strategy",
    "adapt",
    "adaptation_of",
    "merge_adapter",
    "remove_adapter",
    "trainable_parameters",
]

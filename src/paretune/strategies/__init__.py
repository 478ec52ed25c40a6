"""Strategies, and putting one on a model or taking it off again."""

# "as", because type checkers do not compute the __all__ below.
from paretune.strategies.adapter import Adapter as Adapter
from paretune.strategies.bitfit import BitFit as BitFit
from paretune.strategies.compacter import Compacter as Compacter
from paretune.strategies.full import FullFineTune as FullFineTune
from paretune.strategies.ia3 import IA3 as IA3
from paretune.strategies.lora import LoRA as LoRA
from paretune.strategies.mechanics.adapting import (
    Adaptation,
    adapt,
    adaptation_of,
    merge_adapter,
    remove_adapter,
    trainable_parameters,
)
from paretune.strategies.mechanics.base import Strategy
from paretune.strategies.mechanics.base import Union as Union
from paretune.strategies.normtune import NormTune as NormTune
from paretune.strategies.peft import Peft as Peft
from paretune.strategies.probe import LinearProbe as LinearProbe
from paretune.strategies.prompt import VisualPrompt as VisualPrompt
from paretune.strategies.ssf import SSF as SSF

#: The strategies by the names that the command line reads.
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
    "STRATEGIES",
    "Adaptation",
    "Strategy",
    "adapt",
    "adaptation_of",
    "merge_adapter",
    "remove_adapter",
    "trainable_parameters",
    *STRATEGIES,
]

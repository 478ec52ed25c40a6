"""Strategies, and putting one on a model or taking it off again."""

from paretune.strategies.mechanics.adapting import (
    Adaptation,
    adapt,
    adaptation_of,
    merge_adapter,
    remove_adapter,
    trainable_parameters,
)
from paretune.strategies.mechanics.base import Strategy

# In the order in which the command line and the tables have them; "as", because type checkers do not compute __all__.
# isort: off
from paretune.strategies.full import FullFineTune as FullFineTune
from paretune.strategies.probe import LinearProbe as LinearProbe
from paretune.strategies.bitfit import BitFit as BitFit
from paretune.strategies.normtune import NormTune as NormTune
from paretune.strategies.lora import LoRA as LoRA
from paretune.strategies.lnlora import LNLoRA as LNLoRA
from paretune.strategies.ia3 import IA3 as IA3
from paretune.strategies.ssf import SSF as SSF
from paretune.strategies.repadapter import RepAdapter as RepAdapter
from paretune.strategies.fact import FacT as FacT
from paretune.strategies.sparse import Sparse as Sparse
from paretune.strategies.compacter import Compacter as Compacter
from paretune.strategies.adapter import Adapter as Adapter
from paretune.strategies.adaptformer import AdaptFormer as AdaptFormer
from paretune.strategies.prompt import VisualPrompt as VisualPrompt
from paretune.strategies.mechanics.base import Union as Union
from paretune.strategies.peft import Peft as Peft
# isort: on

#: The strategies by the names that the command line reads: all that are imported here.
STRATEGIES: dict[str, type[Strategy]] = {
    name: kind
    for name, kind in globals().items()
    if isinstance(kind, type) and issubclass(kind, Strategy) and kind is not Strategy
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

"""The strategies that the contract runs over, each under the name it has in the table of support."""

from collections.abc import Callable

from torch import nn

import paretune as pt
from paretune.strategies import Strategy


def _loha(backbone: pt.Backbone) -> Strategy:
    """peft's LoHa on every Linear and Conv2d outside the head."""
    names = [
        name
        for name, layer in backbone.module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name != backbone.head
    ]
    return pt.Peft({"peft_type": "LOHA", "r": 2, "target_modules": names})


# A function where the strategy has to know the names of the model's layers.
MATRIX: dict[str, Strategy | Callable[[pt.Backbone], Strategy]] = {
    "FullFineTune": pt.FullFineTune(),
    "LinearProbe": pt.LinearProbe(),
    "Last two blocks": pt.FullFineTune(where="last:2"),
    "BitFit": pt.BitFit(),
    "NormTune": pt.strategies.NormTune(),
    "LoRA": pt.LoRA(rank=2),
    "LoRA of q and v": pt.LoRA(rank=2, targets=("q", "v")),
    "IA3": pt.IA3(),
    "Compacter": pt.Compacter(),
    "Compacter++": pt.Compacter(placement="mlp"),
    "Adapter": pt.Adapter(),
    "Parallel adapter": pt.Adapter(style="parallel"),
    "Depthwise adapter": pt.Adapter(kernel=3),
    "Padding prompt": pt.VisualPrompt(size=4),
    "Deep prompt": pt.VisualPrompt(kind="deep", size=3),
    "LoRA + BitFit": pt.LoRA(rank=2) + pt.BitFit(),
    "Peft LoHa": _loha,
}


def made_for(name: str, backbone: pt.Backbone) -> Strategy:
    """The strategy of this name for this backbone."""
    entry = MATRIX[name]
    return entry if isinstance(entry, Strategy) else entry(backbone)

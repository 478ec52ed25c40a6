"""The strategies that the contract runs over, each under the name it has in the table of support."""

import csv
from collections.abc import Callable
from pathlib import Path

from torch import nn

import paretune as pt
from paretune.strategies import STRATEGIES, Strategy, Union


def _loha(backbone: pt.Backbone) -> Strategy:
    """peft's LoHa on every Linear and Conv2d outside the head."""
    names = [
        name
        for name, layer in backbone.module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name != backbone.head
    ]
    return pt.strategies.Peft({"peft_type": "LOHA", "r": 2, "target_modules": names})


# Of each kind its default, or what stands here: where that needs arguments, does not suit small images, or is not all of it.
# A function where the strategy has to know the names of the model's layers.
_VARIANTS: dict[type[Strategy], dict[str, Strategy | Callable[[pt.Backbone], Strategy]]] = {
    pt.FullFineTune: {"FullFineTune": pt.FullFineTune(), "Last two blocks": pt.FullFineTune(where="last:2")},
    pt.LoRA: {"LoRA": pt.LoRA(rank=2), "LoRA of q and v": pt.LoRA(rank=2, targets=("q", "v"))},
    pt.strategies.FacT: {
        "FacT": pt.strategies.FacT(rank=4),
        "FacT-TK": pt.strategies.FacT(form="TK", rank=4),
    },
    # So many that in each small layer one has an effect, and is not behind a unit that random weights have switched off.
    pt.strategies.Sparse: {"Sparse": pt.strategies.Sparse(score="random", budget=0.9)},
    pt.Compacter: {"Compacter": pt.Compacter(), "Compacter++": pt.Compacter(placement="mlp")},
    pt.Adapter: {
        "Adapter": pt.Adapter(),
        "Parallel adapter": pt.Adapter(style="parallel"),
        "Depthwise adapter": pt.Adapter(kernel=3),
    },
    pt.VisualPrompt: {
        "Padding prompt": pt.VisualPrompt(size=4),
        "Deep prompt": pt.VisualPrompt(kind="deep", size=3),
    },
    Union: {"LoRA + BitFit": pt.LoRA(rank=2) + pt.BitFit()},
    pt.strategies.Peft: {"Peft LoHa": _loha},
}
MATRIX = {
    name: entry
    for kind in STRATEGIES.values()
    for name, entry in (_VARIANTS.get(kind) or {kind.__name__: kind()}).items()
}
TABLE = Path(__file__).parents[2] / "benchmarks" / "support.csv"


def made_for(name: str, backbone: pt.Backbone) -> Strategy:
    """The strategy of this name for this backbone."""
    entry = MATRIX[name]
    return entry if isinstance(entry, Strategy) else entry(backbone)


def read_rows() -> dict[tuple[str, str], dict[str, str]]:
    """What has been measured, by architecture and strategy; a new strategy has no rows yet."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {(row["architecture"], row["strategy"]): row for row in csv.DictReader(file)}

"""Tensors that several layers share, of which other libraries know nothing: there each layer has an adapter of its own."""

from collections import Counter

from torch import nn

from paretune.strategies.mechanics.adapting import Adaptation
from paretune.strategies.mechanics.base import Delta, holders


def check_apart(module: nn.Module, adaptation: Adaptation, library: str) -> None:
    """Raise ValueError if the adapter on ``module`` changes a tensor that is used at several places.

    Our adapter changes all of them. One of ``library`` would change each on its own, or only the first.
    """
    parameters = dict(module.named_parameters())
    of_base = [name for name in adaptation.trained if name in adaptation.base_names]
    changed = [*(parameters[name] for name in of_base), *Delta.originals(module)]
    places = holders(module)
    uses = Counter(child for part in module.modules() for child in part._modules.values())
    names = {part: name for name, part in module.named_modules()}
    for tensor in changed:
        sharing = places[id(tensor)]
        if len(sharing) > 1 or uses[sharing[0][0]] > 1:
            (first, attribute), (other, _) = sharing[0], sharing[-1]
            where = f"{names[first]!r} and {names[other]!r} share one {attribute}"
            if first is other:
                where = f"{names[first]!r} stands at several places of the model"
            raise ValueError(f"{library} has an adapter for each layer, and {where}")

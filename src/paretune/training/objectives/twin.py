"""The pretrained model beside the one in training."""

import copy
import weakref

import torch
from torch import Tensor

from paretune.backbones.backbone import Backbone
from paretune.strategies.mechanics.adapting import base_state, remove_adapter

# One for all terms of a sum.
_TWINS: "weakref.WeakKeyDictionary[Backbone, weakref.ref[Backbone]]" = weakref.WeakKeyDictionary()


def pretrained_twin(model: Backbone) -> Backbone:
    """``model`` as it was before it was adapted: a copy, in evaluation mode and without gradients, to be read only.

    As long as somebody has it, all who ask for that of the same model, with the same values, get the same.
    """
    kept = _TWINS.get(model)
    other = None if kept is None else kept()
    if other is not None and _same(_pretrained(model), _pretrained(other)):
        return other
    twin = copy.deepcopy(model)
    remove_adapter(twin)
    twin.eval().requires_grad_(False)
    _TWINS[model] = weakref.ref(twin)
    return twin


def _pretrained(model: Backbone) -> dict[str, Tensor]:
    """All values of ``model`` as they were before it was adapted."""
    return base_state(model.module) | {"mean": model.mean, "std": model.std}


def _same(values: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether names, values, and where these are and of what type, agree."""

    def place(value: Tensor) -> tuple[torch.device, torch.dtype]:
        return value.device, value.dtype

    return values.keys() == others.keys() and all(
        place(value) == place(others[name]) and torch.equal(value, others[name])
        for name, value in values.items()
    )

"""The pretrained model beside the one in training."""

import copy
import weakref

import torch
from torch import Tensor

from paretune.backbones.backbone import Backbone
from paretune.strategies.mechanics.adapting import remove_adapter

# One for all terms of a sum.
_TWINS: "weakref.WeakKeyDictionary[Backbone, weakref.ref[Backbone]]" = weakref.WeakKeyDictionary()


def pretrained_twin(model: Backbone) -> Backbone:
    """``model`` as it was before it was adapted: a copy, in evaluation mode and without gradients, to be read only.

    As long as somebody has it, all who ask for that of the same model, with the same values, get the same.
    """
    twin = copy.deepcopy(model)
    remove_adapter(twin)
    twin.eval().requires_grad_(False)
    kept = _TWINS.get(model)
    other = None if kept is None else kept()
    if other is not None and _same(_values(twin), _values(other)):
        return other
    _TWINS[model] = weakref.ref(twin)
    return twin


def _values(model: Backbone) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _same(values: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    alike = values.keys() == others.keys() and all(v.device == others[n].device for n, v in values.items())
    return alike and all(torch.equal(value, others[name]) for name, value in values.items())

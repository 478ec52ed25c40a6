"""What strategies and exporters need to know about a model that is no Backbone."""

from torch import nn

from paretune.backbones.backbone import Backbone
from paretune.strategies.mechanics.adapting import adaptation_of
from paretune.strategies.mechanics.base import Anatomy


def anatomy_of(model: nn.Module) -> Anatomy:
    """What strategies are told about ``model``."""
    present = adaptation_of(model)
    if present is not None:
        return present.anatomy
    if not isinstance(model, Backbone):
        model = Backbone(model)
    return Anatomy(model.head, model.sites, model.image_size, model.mean.shape[1])

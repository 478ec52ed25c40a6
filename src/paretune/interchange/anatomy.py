"""What strategies and exporters need to know about a model that is no Backbone."""

from typing import Any

from torch import nn

from paretune.backbones import Backbone
from paretune.strategies.adapting import adaptation_of
from paretune.strategies.base import Anatomy


def anatomy_of(model: nn.Module) -> Anatomy:
    """What strategies are told about ``model``; of a plain module, the image size is read off its configuration."""
    present = adaptation_of(model)
    if present is not None:
        return present.anatomy
    if not isinstance(model, Backbone):
        recorded: Any = getattr(model, "pretrained_cfg", None) or {}
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        config = getattr(model, "config", None)
        size = size or getattr(config, "image_size", None)
        size = size or getattr(getattr(config, "vision_config", None), "image_size", None)
        size = size or recorded.get("input_size", (224,))[-1]
        model = Backbone(model, image_size=size[0] if isinstance(size, tuple | list) else size)
    return Anatomy(model.head, model.sites, model.image_size, model.mean.shape[1])

"""Pretrained classifiers behind one type: images in [0, 1] go in, logits come out."""

from paretune.backbones.backbone import Backbone, Task
from paretune.backbones.loading import load_backbone
from paretune.backbones.offline import offline_weights
from paretune.backbones.prototypes import prototype_head
from paretune.backbones.sites import Site

__all__ = ["Backbone", "Site", "Task", "load_backbone", "offline_weights", "prototype_head"]

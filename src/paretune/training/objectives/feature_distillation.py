"""Features that stay those of the pretrained model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone
from paretune.backbones.features import entering_head
from paretune.data.images import ImageData
from paretune.training.objectives.anchored import Anchor
from paretune.training.objectives.base import Copies, Term, TrainingBatch
from paretune.training.objectives.twin import pretrained_twin


@dataclass(frozen=True)
class FeatureDistillation(Anchor):
    """½ · ‖φ(x) − φ_org(x)‖², to be added to what learns: ``Natural() + 0.1 * FeatureDistillation()``.

    φ(x) are the features of an image as it is, which enter the head, and φ_org(x) those of the pretrained model, before
    :func:`~paretune.adapt`, in evaluation mode. It is a sum over the features and a mean over the images: the loss of hints
    (Romero et al. 2015, "FitNets", https://arxiv.org/abs/1412.6550, equation 3) at the last layer, whose width is that of
    the teacher, so that there is no regressor.
    """

    def gradient_evaluations(self, classes: int, *, attacked: bool = True) -> int:
        """One, on the images as they are."""
        return 1

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """With a copy of the model before it was adapted."""
        return _Following(model)


class _Following(Term):
    def __init__(self, model: Backbone) -> None:
        self.model, self.origin = model, pretrained_twin(model)

    def attacked(self, copy: Copies, batch: TrainingBatch) -> Tensor:
        with torch.no_grad(), entering_head(self.origin) as seen:
            self.origin(batch.images)
        return seen[0]

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Tensor) -> tuple[Tensor, Tensor | None]:
        with entering_head(self.model) as seen:
            model(batch.images)
        return batch.mean((seen[0] - attacked).square().sum(1)) / 2, None

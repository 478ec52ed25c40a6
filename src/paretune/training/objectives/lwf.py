"""Learning without forgetting: the former answers to the new images."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone
from paretune.backbones.features import entering_head
from paretune.backbones.heads import pretrained_head
from paretune.data.images import ImageData
from paretune.training.objectives.anchored import Anchor
from paretune.training.objectives.base import Copies, Term, TrainingBatch
from paretune.training.objectives.distillation import check_temperature
from paretune.training.objectives.twin import pretrained_twin


@dataclass(frozen=True)
class LwF(Anchor):
    """−Σ_i y'_i log ŷ'_i, to be added to what learns: ``Natural() + LwF()``.

    Li and Hoiem 2016, "Learning without Forgetting", https://arxiv.org/abs/1606.09282, equations 2 and 3. y are the answers
    of the pretrained model, before :func:`~paretune.adapt`, to the images of the batch, as they are; ŷ are those of the
    model in training, both through the head that the weights came with, of the classes of pretraining, and both softened:
    y' = softmax(logits / temperature). The mean is over the images; the paper adds it with weight 1.

    In the paper the head of the old task is trained along; here it stays as it was, so that what moves is what the strategy
    trains.

    Args:
        temperature: T, above 0; 2 in the paper.

    Raises:
        ValueError: it is no finite number above 0.
    """

    _: KW_ONLY
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_temperature(self)

    def gradient_evaluations(self, classes: int, *, attacked: bool = True) -> int:
        """One, on the images as they are."""
        return 1

    def check(self, model: Backbone, data: ImageData) -> None:
        """Raise ValueError if the weights came without a head; see :func:`~paretune.backbones.heads.pretrained_head`."""
        pretrained_head(model)

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """With a copy of the model before it was adapted, and the head that its weights came with."""
        return _Remembering(self.temperature, model)


class _Remembering(Term):
    def __init__(self, temperature: float, model: Backbone) -> None:
        self.temperature, self.model = temperature, model
        self.head, self.origin = pretrained_head(model), pretrained_twin(model)

    def attacked(self, copy: Copies, batch: TrainingBatch) -> Tensor:
        with torch.no_grad(), entering_head(self.origin) as seen:
            self.origin(batch.images)
        return (self.head(seen[0]) / self.temperature).softmax(1)

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Tensor) -> tuple[Tensor, Tensor | None]:
        with entering_head(self.model) as seen:
            model(batch.images)
        with torch.autocast(batch.images.device.type, enabled=False):
            answers = (self.head(seen[0]) / self.temperature).log_softmax(1)
            return batch.mean(-(attacked * answers).sum(1)), None

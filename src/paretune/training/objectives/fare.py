"""FARE: features under attack that stay those of the pretrained model."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone
from paretune.backbones.features import entering_head, without_head
from paretune.data.images import ImageData
from paretune.training.objectives.attacked import Attacked
from paretune.training.objectives.base import Copies, Term, TrainingBatch
from paretune.training.objectives.twin import pretrained_twin


@dataclass(frozen=True)
class FARE(Attacked):
    """The squared distance of the features under attack from those that the pretrained model has of the image (Schlarmann et
    al. 2024, "Robust CLIP", https://arxiv.org/abs/2402.12336, equation 3), without labels.

    ‖φ(x') - φ_org(x)‖², a sum over the features and a mean over the images, where the attack maximises the same. φ is what
    enters the head; φ_org is the model before :func:`~paretune.adapt`, in evaluation mode. That is the loss ``l2`` of
    https://github.com/chs20/RobustVLM, whose attack is APGD; here it is PGD.

    The head gets no gradient of it. So training takes it alone only for a head that is not trained
    (:func:`paretune.backbones.prototype_head`), and otherwise beside an objective that trains the head, as in
    ``Natural() + 0.1 * FARE(...)``. The log has the accuracy on the attacked images.

    Args:
        inner: a :class:`~paretune.PGD`, which is made to maximise the distance (``loss="l2"``). None takes that of the task,
            on the command line and in sweeps.

    Raises:
        TypeError: ``inner`` is no attack.
        ValueError: ``inner`` is no untargeted PGD with a random start.
    """

    maximises: ClassVar[Literal["ce", "kl", "l2"]] = "l2"

    @property
    def trains_head(self) -> bool:
        """It does not."""
        return False

    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """With a copy of the model before it was adapted.

        Raises:
            ValueError: the network does more with what its head returns than return it.
        """
        return _Matching(self, model)

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Not of the value, which :meth:`begin` sets to work."""
        raise NotImplementedError("call begin() first")


class _Matching(Term):
    def __init__(self, objective: FARE, model: Backbone) -> None:
        self.objective, self.model = objective, model
        without_head(model)  # for its errors
        self.origin = pretrained_twin(model)

    def attacked(self, copy: Copies, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), entering_head(self.origin) as seen:
            self.origin(batch.images)
        (wanted,) = seen
        assert self.objective.inner is not None  # training refuses it
        return batch.attack(self.objective.inner, copy.features, reference=wanted), wanted

    def loss(
        self, model: nn.Module, batch: TrainingBatch, attacked: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        images, wanted = attacked
        with entering_head(self.model) as seen:
            logits = batch.checked(model(images))
        (features,) = seen
        return batch.mean((features - wanted).square().sum(1)), logits.detach()

"""A classifier that answers with one of some of its classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import logits_of


class Among(nn.Module):
    """The logits (batch, chosen) of some classes of ``model``, which it shares.

    So do those 200 classes of ImageNet compete that ImageNet-A and -R have (Hendrycks et al. 2021,
    https://arxiv.org/abs/1907.07174 and https://arxiv.org/abs/2006.16241): the others are no answer and no target of an
    attack.

    Args:
        model: a classifier.
        classes: numbers of the logits, in ascending order.
    """

    classes: Tensor

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("classes", torch.tensor(classes), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of these classes.

        Raises:
            ValueError: the model has no such class.
        """
        logits = logits_of(self.model(images))
        if logits.shape[1] <= int(self.classes[-1]):
            raise ValueError(
                f"the data is of the classes {self.classes.tolist()}, and the model has {logits.shape[1]} logits"
            )
        return logits[:, self.classes]

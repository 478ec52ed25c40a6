"""What is no logits is refused in the same words wherever a model is asked."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks.inputs import check_logits
from paretune.backbones.backbone import answer
from paretune.data.image_split import ImageSplit


class Odd(nn.Module):
    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(12, 4), last

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.layer(images.flatten(1)))


@pytest.mark.parametrize(
    "last",
    [
        lambda z: z[:, 0],
        lambda z: z[:, :, None],
        lambda z: z.round().long(),
        lambda z: z > 0,
        lambda z: z.argmax(1),
    ],
)
def test_every_way_to_a_model_says_the_same(last: Callable[[Tensor], Tensor]) -> None:
    model, images, labels = Odd(last), torch.rand(3, 3, 2, 2), torch.zeros(3, dtype=torch.int64)
    data = ImageSplit(labels, torch.arange(3), images.__getitem__, "three")
    told = set()
    for ask in (
        lambda: answer(model, images),
        lambda: check_logits(model(images), 3, 0),
        lambda: pt.evaluate(model, data),
        lambda: pt.PGD(pt.Linf(0.1), steps=1)(model, images, labels),
        lambda: pt.attacks.attack_copy(model).exact(images),
    ):
        with pytest.raises(ValueError, match="the model must return") as refused:
            ask()
        told.add(str(refused.value))
    assert len(told) == 1

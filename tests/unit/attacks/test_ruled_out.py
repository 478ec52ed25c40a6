"""Classes that a model rules out with a logit of minus infinity: attacks go on as if they were not there, or refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks import APGD, FAB, FGSM, PGD, Attack, AutoAttack, Linf, Square
from paretune.attacks.losses import dlr, nearest_classes, targeted_dlr
from tests.unit.attacks.victims import Linear

THREAT = Linf(8 / 255)


class Masked(nn.Module):
    """Another model with more columns, all minus infinity, among its own."""

    def __init__(self, model: nn.Module, at: int = 0, count: int = 2) -> None:
        super().__init__()
        self.model, self.at, self.count = model, at, count

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        nothing = logits.new_full((len(logits), self.count), -torch.inf)
        return torch.cat([logits[:, : self.at], nothing, logits[:, self.at :]], dim=1)


def victims(classes: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    model = nn.Sequential(Linear(16, 3, 4, 4), nn.Tanh(), Linear(classes, 16, seed=1)).eval()
    images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    return model, Masked(model, at=classes), images, model(images).argmax(dim=1)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(THREAT, steps=5),
        FGSM(THREAT),
        *(APGD(THREAT, loss=loss, steps=8) for loss in ("ce", "dlr", "dlr-targeted")),
        APGD(THREAT, loss="dlr", steps=4, keep="last"),
        FAB(THREAT, steps=8),
        FAB(THREAT, steps=8, targets=None),
        Square(THREAT, queries=30),
        AutoAttack(THREAT, steps=6, queries=30),
    ],
    ids=str,
)
def test_attacks_do_as_on_the_model_without_the_classes_that_are_ruled_out(attack: Attack) -> None:
    plain, masked, images, labels = victims(5)
    assert torch.equal(attack(masked, images, labels), attack(plain, images, labels))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (APGD(THREAT, loss="dlr-targeted"), "at least 4 classes, got 3 .of 5, 2 have a logit of minus inf"),
        (AutoAttack(THREAT), "AutoAttack on a model without those logits"),
    ],
    ids=str,
)
def test_a_loss_of_more_classes_than_are_left_is_refused(attack: Attack, message: str) -> None:
    _, masked, images, labels = victims(3)
    with pytest.raises(ValueError, match=message):
        attack(masked, images, labels)


def test_training_with_a_ratio_of_more_classes_than_are_left_is_refused() -> None:
    _, masked, images, labels = victims(2)
    with pytest.raises(ValueError, match=r"loss or its gradient is NaN.*minus infinity"):
        APGD(THREAT, loss="dlr", steps=2, keep="last")(masked, images, labels)


def test_ratios_leave_out_what_is_ruled_out() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    labels, targets = torch.arange(6) % 4, (torch.arange(6) + 1) % 4
    wide = F.pad(logits, (0, 2), value=-torch.inf)
    assert torch.equal(dlr(wide, labels), dlr(logits, labels))
    assert torch.equal(targeted_dlr(wide, labels, targets), targeted_dlr(logits, labels, targets))
    few: dict[Any, Tensor] = {dlr: wide[:, 3:], targeted_dlr: wide[:, 2:]}
    assert dlr(few[dlr], labels * 0).isnan().all()
    assert targeted_dlr(few[targeted_dlr], labels * 0, labels * 0 + 1).isnan().all()


def test_the_nearest_classes_are_never_ruled_out() -> None:
    off = -torch.inf
    logits = torch.tensor([[3.0, 2.0, 1.0, off, off], [3.0, off, 2.0, off, off]])
    assert nearest_classes(logits, torch.tensor([0, 0]), 4).tolist() == [[1, 2], [2, 2]]
    assert nearest_classes(logits[:0], torch.tensor([], dtype=torch.int64), 4).shape == (0, 4)

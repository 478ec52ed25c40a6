"""Attacks that go on from where the last ones on the same images have ended."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import paretune as pt
from paretune.attacks import FGSM, attack_copy
from paretune.data.augmenting import Augmented, read_augmentation
from paretune.training import ATTA
from paretune.training.objectives import TrainingBatch
from tests import tiny

LINF = pt.Linf(8 / 255)
ROWS = [3, 0, 7, 12]


class Fixed:
    """A model that stands still, and batches of the same four images in any epoch."""

    def __init__(self, augmentation: str = "none", inner: pt.PGD | None = None, reset: int = 10) -> None:
        self.data = tiny.data()
        self.model = tiny.backbone(pt.FullFineTune()).eval()
        copy = attack_copy(self.model)
        self.copy: Any = lambda: copy
        self.train = Augmented(self.data.train, read_augmentation(augmentation), 0)
        self.objective = ATTA(inner or pt.PGD(LINF, steps=1), reset=reset)
        self.term: Any = self.objective.begin(self.model, self.data, 0)

    def batch(self, epoch: int, epsilon: float = LINF.epsilon) -> TrainingBatch:
        images, labels = self.train[epoch, ROWS]
        ids = self.data.train.ids[ROWS]
        where = {"epoch": epoch, "train": self.train, "epsilon": epsilon, "seed": epoch}
        return TrainingBatch.on(torch.device("cpu"), images, labels, ids, torch.arange(4), **where)

    def attacked(self, epoch: int, epsilon: float = LINF.epsilon) -> tuple[Tensor, Tensor]:
        batch = self.batch(epoch, epsilon)
        return batch.images, self.term.attacked(self.copy, batch)


def test_the_first_attack_is_that_of_pgd_and_the_next_begins_where_it_ended() -> None:
    fixed = Fixed()
    inner = pt.PGD(LINF, steps=1, step_size=LINF.epsilon / 2, keep="last")
    assert fixed.objective.inner == inner
    images, first = fixed.attacked(0)
    labels = fixed.batch(0).labels
    assert torch.equal(first, inner(fixed.copy(), images, labels, seed=0))
    _, second = fixed.attacked(1)
    kept = images + LINF.epsilon * ((first - images) / LINF.epsilon).half().float()
    assert torch.equal(second, inner(fixed.copy(), images, labels, seed=1, start=kept))
    assert not torch.equal(second, inner(fixed.copy(), images, labels, seed=1))


def test_what_is_kept_scales_with_epsilon() -> None:
    fixed = Fixed(inner=pt.PGD(LINF, steps=1, step_size=1e-9))  # which moves nothing
    images, first = fixed.attacked(0)
    _, half = fixed.attacked(1, LINF.epsilon / 2)
    assert torch.allclose(half - images, (first - images) / 2, atol=1e-4)
    _, full = fixed.attacked(2)
    assert torch.allclose(full, first, atol=1e-4)


@pytest.mark.parametrize("augmentation", ["flip", "crop", "flip+crop"])
def test_flips_and_crops_carry_it_along(augmentation: str) -> None:
    fixed = Fixed(augmentation, pt.PGD(LINF, steps=1, step_size=1e-9))
    images, first = fixed.attacked(0)
    change = first - images
    seen = fixed.train.unplace(torch.ones_like(change), 0, fixed.batch(0).ids)
    plain = fixed.train.unplace(change, 0, fixed.batch(0).ids)
    batch = fixed.batch(1)
    now = fixed.term.attacked(fixed.copy, batch) - batch.images
    known = fixed.train.place(seen, 1, batch.ids) > 0
    expected = fixed.train.place(plain, 1, batch.ids)
    inside = known & (now.abs() < LINF.epsilon) & (batch.images > 0.04) & (batch.images < 0.96)
    assert inside.float().mean() > 0.05
    assert torch.allclose(now[inside], expected[inside], atol=1e-3)


def test_the_memory_is_forgotten_after_so_many_epochs() -> None:
    fixed = Fixed(reset=2)
    inner = fixed.objective.inner
    assert isinstance(inner, pt.PGD)
    for epoch in (0, 1):
        fixed.attacked(epoch)
    images, third = fixed.attacked(2)
    assert torch.equal(third, inner(fixed.copy(), images, fixed.batch(2).labels, seed=2))


def test_of_an_image_that_comes_twice_in_a_batch_the_last_is_kept() -> None:
    fixed = Fixed()
    images, labels = fixed.train[0, [3, 3]]
    ids, places = fixed.data.train.ids[[3, 3]], torch.arange(2)
    where: dict[str, Any] = {"epoch": 0, "train": fixed.train, "epsilon": LINF.epsilon, "seed": 0}
    batch = TrainingBatch.on(torch.device("cpu"), images, labels, ids, places, **where)
    attacked = fixed.term.attacked(fixed.copy, batch)
    assert not torch.equal(attacked[0], attacked[1])
    kept = fixed.term.kept[fixed.term.rows[torch.searchsorted(fixed.term.ids, ids[:1])]]
    assert torch.equal(kept, ((attacked[1:] - images[1:]) / LINF.epsilon).half())


def test_without_an_attack_nothing_is_remembered() -> None:
    fixed = Fixed()
    images, same = fixed.attacked(0, 0.0)
    assert torch.equal(images, same)
    assert fixed.term.tensors() == {}


@pytest.mark.parametrize("augmentation", ["randomresizedcrop", "randaugment"])
def test_what_moves_pixels_otherwise_is_refused(augmentation: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot carry perturbations"):
        tiny.run(tmp_path / "run", objective=ATTA(pt.PGD(LINF)), augmentation=augmentation)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ATTA(FGSM(LINF)), "must be a PGD"),
        (lambda: ATTA(pt.PGD(LINF, momentum=1.0)), "without momentum"),
        (lambda: ATTA(pt.PGD(LINF), reset=0), "reset must be"),
    ],
)
def test_wrong_fields_are_named(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_starts_are_checked() -> None:
    fixed = Fixed()
    images, labels = fixed.data.train[ROWS]
    with pytest.raises(ValueError, match="start must be like images"):
        pt.PGD(LINF, keep="last")(fixed.model, images, labels, start=images[:, :1])
    with pytest.raises(ValueError, match="keep='last'"):
        pt.PGD(LINF)(fixed.model, images, labels, start=images)
    outside = pt.PGD(LINF, keep="last", step_size=1e-9)(fixed.model, images, labels, start=images + 1)
    assert LINF.allows(outside, images).all()

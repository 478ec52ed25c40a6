"""What no attack and no measurement counts: logits that name no class, labels that name none, images out of range."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import NFGSM, AutoAttack, Linf, masking_findings
from paretune.data.image_split import ImageSplit
from paretune.training.guards import TrainingDiverged
from tests import tiny
from tests.contracts.test_attacks import SMALL

CLASSES = 4
every_attack = pytest.mark.parametrize("attack", SMALL, ids=repr)
IN_BALL = [attack for attack in SMALL if not isinstance(attack, NFGSM)]


class Classifier(nn.Module):
    """Four logits of flat images, and what ``spoil`` makes of them and of the brightness of each image."""

    def __init__(self, spoil: Callable[[Tensor, Tensor], Tensor] = lambda logits, _: logits) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, 3 * 8 * 8, generator=draw))
        self.spoil = spoil

    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1) @ self.weight.T
        return self.spoil(logits, images.flatten(1).mean(dim=1, keepdim=True))


BAD_LOGITS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "one logit": (lambda z, _: z[:, :1], r"at least 2 classes, got shape \(\d+, 1\); from one logit"),
    "no logit": (lambda z, _: z[:, :0], r"at least 2 classes, got shape \(\d+, 0\)"),
    "flat": (lambda z, _: z[:, 0], r"must return logits \(\w+, classes\), got shape \(\d+,\)"),
    "1x1 map": (lambda z, _: z[:, :, None, None], r"must return logits .* got shape \(\d+, 4, 1, 1\)"),
    "map": (lambda z, _: z[:, :, None, None].expand(-1, -1, 2, 2), r"got shape \(\d+, 4, 2, 2\)"),
    "too many rows": (lambda z, _: torch.cat([z, z]), r"must return logits \(\d+, classes\), got shape"),
    "votes": (lambda z, _: z.round().long(), r"floating-point logits, got torch\.int64"),
    "one-hot": (lambda z, _: z == z.amax(dim=1, keepdim=True), r"floating-point logits, got torch\.bool"),
    "nan": (lambda z, _: z * math.nan, "NaN"),
    "nan in one class": (lambda z, _: z + torch.tensor([0.0, 0, math.nan, 0]), "NaN"),
    "nan for some images": (lambda z, mean: z.masked_fill(mean > 0.5, math.nan), "NaN"),
    "nan in one class of some images": (
        lambda z, mean: z.masked_fill((mean > 0.5) & torch.tensor([False, True, False, False]), math.nan),
        "NaN",
    ),
    "infinite": (lambda z, _: z + math.inf, "infinite"),
    "infinite twice": (lambda z, _: z.masked_fill(torch.tensor([1, 1, 0, 0]) > 0, math.inf), "infinite"),
    "infinite for some images": (lambda z, mean: z.masked_fill(mean > 0.5, math.inf), "infinite"),
    "no class possible": (lambda z, _: z.masked_fill(z < math.inf, -math.inf), "infinite"),
}
every_bad_model = pytest.mark.parametrize(("spoil", "message"), BAD_LOGITS.values(), ids=list(BAD_LOGITS))


def problem(images: int = 12) -> tuple[Tensor, Tensor]:
    """Images on a grid of 1/16, dark and bright ones in turns, and the classes that an unspoilt model sees."""
    draw = torch.Generator().manual_seed(1)
    made = torch.randint(0, 8, (images, 3, 8, 8), generator=draw) / 16
    made[1::2] += 0.5
    return made, Classifier()(made).argmax(dim=1)


def split(images: Tensor, labels: Any) -> ImageSplit:
    return ImageSplit(labels, torch.arange(len(images)), lambda rows: images[rows], "fingerprint")


@pytest.mark.some
@every_bad_model
@every_attack
def test_no_attack_counts_logits_that_name_no_class(attack: pt.PGD, spoil: Any, message: str) -> None:
    images, labels = problem()
    with pytest.raises(ValueError, match=message):
        attack(Classifier(spoil), images, labels)


@every_bad_model
def test_no_measurement_counts_logits_that_name_no_class(spoil: Any, message: str) -> None:
    images, labels = problem()
    model = Classifier(spoil)
    for attacks in ([], [pt.PGD(Linf(0.01), steps=1)], [AutoAttack(Linf(0.01), steps=1, queries=1)]):
        # A batch size that leaves the bad images to a later batch.
        with pytest.raises(ValueError, match=message):
            pt.evaluate(model, split(images, labels), attacks, batch_size=1)
    with pytest.raises(ValueError, match=message):
        masking_findings(model, images, labels, Linf(0.01), steps=2, queries=2)


@pytest.mark.parametrize("attack", IN_BALL, ids=repr)
def test_a_model_that_is_whole_on_the_images_only_is_not_measured(attack: pt.PGD) -> None:
    class Brittle(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            moved = (images * 16 != (images * 16).round()).flatten(1).any(dim=1, keepdim=True)
            return super().forward(images).masked_fill(moved, math.nan)

    images, labels = problem()
    assert pt.evaluate(Brittle(), split(images, labels)).clean.all()
    with pytest.raises(ValueError, match="NaN"):
        pt.evaluate(Brittle(), split(images, labels), [attack])


def test_a_class_ruled_out_by_minus_infinity_is_measured() -> None:
    images, labels = problem(40)
    assert len(set(labels.tolist())) > 1
    one = int(labels.bincount().argmax())
    model = Classifier(lambda z, _: z.masked_fill(torch.arange(CLASSES) == one, -math.inf))
    attack = pt.PGD(Linf(0.001), steps=2)
    scores = pt.evaluate(model, split(images, labels), [attack])
    assert np.array_equal(scores.clean, (labels != one).numpy())
    assert scores.robust[attack].any()


BAD_LABELS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "beyond the logits": (lambda y: y.clone().index_fill_(0, torch.tensor([5]), CLASSES), "below the model's 4 classes"),
    "negative": (lambda y: y.clone().index_fill_(0, torch.tensor([5]), -1), "class indices from 0, got -1"),
    "float": (lambda y: y.float(), "integer dtype, got torch.float32"),
    "bool": (lambda y: y > 0, "integer dtype, got torch.bool"),
    "column": (lambda y: y[:, None], "one class for each image"),
    "one-hot": (lambda y: nn.functional.one_hot(y, CLASSES), "one class for each image"),
}  # fmt: skip
every_bad_label = pytest.mark.parametrize(("change", "message"), BAD_LABELS.values(), ids=list(BAD_LABELS))


@pytest.mark.some
@every_bad_label
@every_attack
def test_no_attack_takes_labels_that_name_no_class(attack: pt.PGD, change: Any, message: str) -> None:
    images, labels = problem()
    with pytest.raises(ValueError, match=message):
        attack(Classifier(), images, change(labels))


@every_bad_label
def test_no_measurement_takes_labels_that_name_no_class(change: Any, message: str) -> None:
    images, labels = problem()
    for attacks in ([], [pt.PGD(Linf(0.01), steps=1)]):
        with pytest.raises(ValueError, match=message):
            pt.evaluate(Classifier(), split(images, change(labels)), attacks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (255 * x).to(torch.uint8), r"floating point in \[0, 1\], got torch\.uint8"),
        (lambda x: 255 * x, r"must lie in \[0, 1\], got values from 0 to .*images / 255"),
        (lambda x: (x - 0.5) / 0.5, r"must lie in \[0, 1\], got values from -1"),
        (lambda x: x.where(x < 0.9, math.nan), "images hold NaN"),
    ],
)
def test_no_measurement_takes_images_out_of_range(change: Any, message: str) -> None:
    images, labels = problem()
    with pytest.raises(ValueError, match=message):
        pt.evaluate(Classifier(), split(change(images), labels))


def test_a_split_without_examples_is_no_measurement() -> None:
    images, labels = problem()
    with pytest.raises(ValueError, match="data has no examples"):
        pt.evaluate(Classifier(), split(images[:0], labels[:0]))


def test_integer_labels_of_any_width_are_the_same_labels() -> None:
    images, labels = problem()
    wrong = labels.roll(1)
    expected = pt.evaluate(Classifier(), split(images, wrong)).clean
    assert 0 < expected.sum() < len(expected)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert np.array_equal(pt.evaluate(Classifier(), split(images, wrong.to(dtype))).clean, expected)


def test_a_model_without_tensors_is_measured() -> None:
    class Halves(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))], dim=1)

    images, _ = problem()
    labels = Halves()(images).argmax(dim=1)
    assert pt.evaluate(Halves(), split(images, labels)).clean.all()


@pytest.mark.parametrize(
    "objective", [pt.training.Natural(), pt.AdversarialTraining(pt.PGD(Linf(0.01), steps=1))]
)
@pytest.mark.parametrize(
    ("tail", "error", "message"),
    [
        (nn.Linear(10, 1, bias=False), ValueError, "10 outputs, but the network returns 1 logits"),
        (nn.Linear(10, 5, bias=False), ValueError, "10 outputs, but the network returns 5 logits"),
        (nn.Unflatten(1, (10, 1, 1)), ValueError, r"must return logits .*got shape \(\d+, 10, 1, 1\)"),
    ],
)
def test_training_refuses_logits_that_name_no_class(
    tmp_path: Any, objective: Any, tail: nn.Module, error: type[Exception], message: str
) -> None:
    network = nn.Sequential(*tiny.network(), tail)
    model = pt.adapt(pt.Backbone(network, head="5", image_size=8), pt.FullFineTune())
    with pytest.raises(error, match=message):
        tiny.run(tmp_path, model=model, objective=objective)


def test_weights_that_become_nan_in_the_last_step_end_training_as_diverged(tmp_path: Any) -> None:
    @dataclass(frozen=True)
    class Spoiling(pt.training.AdamW):
        def build(self, model: pt.Backbone, lr: float) -> torch.optim.Optimizer:
            trained = [*pt.strategies.trainable_parameters(model).values()]
            return torch.optim.SGD([{"params": trained, "factor": 1.0}], lr=math.inf)

        def factor(self, at: float) -> float:
            return math.inf

    with pytest.raises(TrainingDiverged, match="NaN or infinity at step 1"):
        tiny.run(tmp_path, steps=1, optimizer=Spoiling())

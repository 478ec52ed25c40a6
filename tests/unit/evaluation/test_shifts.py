"""Measuring what shifts make: correctness by example, under attack too, and among some of the classes."""

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import paretune as pt
from paretune.backbones.among import Among
from paretune.data import ImageData, ImageSplit
from paretune.shifts import Shift, shifted
from tests import tiny
from tests.unit.attacks.victims import Linear

ATTACK = pt.PGD(pt.Linf(8 / 255), steps=3)


def _inverted(images: Tensor, ids: Tensor) -> Tensor:
    return 1 - images


def _noisy(images: Tensor, ids: Tensor) -> Tensor:
    noise = [
        torch.rand(image.shape, generator=torch.Generator().manual_seed(int(i)))
        for image, i in zip(images, ids, strict=True)
    ]
    return ((0.7 * images + 0.3 * torch.stack(noise)) * 255).round() / 255


@dataclass(frozen=True)
class Both(Shift):
    """Two shifts of pixels, one of them of 8 bits."""

    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        return {
            "inverted": split.changed(_inverted, "Inverted()"),
            "noisy 1": split.changed(_noisy, "Noisy(1)"),
        }


@pytest.fixture(scope="module")
def data() -> ImageData:
    return pt.load_data("digits", img_size=8, limit=150)


@pytest.fixture(scope="module")
def model(data: ImageData) -> Linear:
    """Class means as a linear classifier."""
    model = Linear(10, 3, 8, 8)
    images, labels = data.train[:]
    means = torch.stack([images[labels == label].mean(0).flatten() for label in range(10)])
    model.load_state_dict({"weight": means, "bias": -0.5 * means.square().sum(1)})
    return model


def test_bits_are_those_of_the_shifted_images_measured_alone(model: Linear, data: ImageData) -> None:
    scores = pt.evaluate(model, data.report, [ATTACK], shifts=[Both()], attack_elsewhere=True, batch_size=16)
    assert [*scores.elsewhere] == ["inverted", "noisy 1"]
    images, labels = data.report[:]
    for name, change in {"inverted": _inverted, "noisy 1": _noisy}.items():
        there = scores.elsewhere[name]
        changed = change(images, data.report.ids)
        clean = model(changed).argmax(1) == labels
        np.testing.assert_array_equal(there.clean, clean.numpy())
        attacked = ATTACK(model, changed[clean], labels[clean], seed=0, places=clean.nonzero().flatten())
        survived = torch.zeros_like(clean)
        survived[clean] = model(attacked).argmax(1) == labels[clean]
        np.testing.assert_array_equal(there.robust[ATTACK], survived.numpy())
        assert there.paired
        assert there.shift == {"inverted": "Inverted()", "noisy 1": "Noisy(1)"}[name]
    assert (
        0 < scores.elsewhere["noisy 1"].robust_accuracy(ATTACK) < scores.elsewhere["noisy 1"].clean_accuracy
    )
    clean = pt.evaluate(model, data.report, [ATTACK])
    np.testing.assert_array_equal(clean.clean, scores.clean)
    np.testing.assert_array_equal(clean.robust[ATTACK], scores.robust[ATTACK])
    assert pt.evaluate(model, data.report, [ATTACK], shifts=[Both()]).elsewhere["inverted"].robust == {}


def test_a_shifted_split_gives_each_image_the_same_pixels_whatever_the_batch(data: ImageData) -> None:
    """Also when images of 8 bits come from memory, and in another process."""
    whole = Both().of(data.report)["noisy 1"][:][0]
    split = Both().of(data.report)["noisy 1"]
    for rows in ([3, 1, 1], [2], [], [5, 3]):
        torch.testing.assert_close(split[rows][0], whole[rows], rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(split))
    torch.testing.assert_close(again[:][0], whole, rtol=0, atol=0)
    assert split.fingerprint == Both().of(data.report)["noisy 1"].fingerprint != data.report.fingerprint
    first = split.first(7)
    torch.testing.assert_close(first[:][0], whole[:7], rtol=0, atol=0)
    assert len(first) == 7
    assert first.paired
    assert first.fingerprint != split.fingerprint
    assert split.first(10_000) is split


def test_an_interrupted_evaluation_goes_on_with_its_shifts(
    model: Linear, data: ImageData, tmp_path: Path
) -> None:
    options = {"shifts": [Both()], "attack_elsewhere": True, "state": tmp_path, "batch_size": 16}
    scores = pt.evaluate(model, data.report, [ATTACK], **options)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert any("elsewhere" in path.parts for path in files)
    again = pt.evaluate(model, data.report, [ATTACK], **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    for name, there in scores.elsewhere.items():
        np.testing.assert_array_equal(again.elsewhere[name].clean, there.clean)
        np.testing.assert_array_equal(again.elsewhere[name].robust[ATTACK], there.robust[ATTACK])


def _some_classes(data: ImageData, among: tuple[int, ...]) -> ImageSplit:
    images, labels = data.report[:]
    rows = torch.isin(labels, torch.tensor(among)).nonzero().flatten()
    reader = images[rows].__getitem__
    return ImageSplit(labels[rows], data.report.ids[rows], reader, "some", data.classes, among=among)


@pytest.mark.some(1)
@pytest.mark.parametrize("attack", [ATTACK, pt.AutoAttack(pt.Linf(8 / 255))], ids=["pgd", "autoattack"])
def test_a_model_answers_among_the_classes_of_the_images(
    model: Linear, data: ImageData, attack: pt.PGD | pt.AutoAttack
) -> None:
    """As a model does that has no other logits: clean and under attack, with the same draws."""
    among = (2, 5, 7, 8, 9)
    split = _some_classes(data, among)
    smaller = Linear(len(among), 3, 8, 8)
    smaller.load_state_dict({"weight": model.weight[[*among]], "bias": model.bias[[*among]]})
    labels = torch.searchsorted(torch.tensor(among), split.labels)
    alone = ImageSplit(labels, split.ids, split[:][0].__getitem__, "alone")
    scores, expected = pt.evaluate(model, split, [attack]), pt.evaluate(smaller, alone, [attack])
    np.testing.assert_array_equal(scores.clean, expected.clean)
    np.testing.assert_array_equal(scores.robust[attack], expected.robust[attack])
    always_zero = copy.deepcopy(model)
    always_zero.bias.data[0] += 1000
    assert not pt.evaluate(always_zero, data.report).clean[data.report.labels != 0].any()
    np.testing.assert_array_equal(pt.evaluate(always_zero, split).clean, scores.clean)
    victim = pt.attacks.attack_copy(model)
    again = pt.evaluate(model, split, [attack], victim=victim)
    np.testing.assert_array_equal(again.robust[attack], scores.robust[attack])


def test_a_backbone_with_an_adapter_answers_among_some_classes(data: ImageData) -> None:
    backbone = tiny.backbone(pt.LoRA(rank=2)).eval()
    split = _some_classes(data, (0, 3, 4))
    scores = pt.evaluate(backbone, split, [ATTACK])
    with torch.no_grad():
        logits = backbone(split[:][0])[:, [0, 3, 4]]
    expected = torch.tensor([0, 3, 4])[logits.argmax(1)] == split.labels
    np.testing.assert_array_equal(scores.clean, expected.numpy())
    assert not (scores.robust[ATTACK] & ~scores.clean).any()


def test_what_cannot_be_measured_is_refused(model: Linear, data: ImageData) -> None:
    with pytest.raises(
        TypeError, match=r"shifts must hold shifts such as Corruption\('fog', severity=3\), got 'fog'"
    ):
        pt.evaluate(model, data.report, shifts=["fog"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="'inverted' is made twice, at last by Both"):
        pt.evaluate(model, data.report, shifts=[Both(), Both()])
    with pytest.raises(ValueError, match="give shifts"):
        pt.evaluate(model, data.report, [ATTACK], attack_elsewhere=True)
    with pytest.raises(ValueError, match="labels must be among the classes"):
        ImageSplit(
            torch.tensor([1, 4]), torch.arange(2), torch.rand(2, 3, 8, 8).__getitem__, "x", among=(0, 1)
        )
    with pytest.raises(ValueError, match=r"of the classes \[0, 11\], and the model has 10 logits"):
        Among(model, (0, 11))(torch.rand(1, 3, 8, 8))
    there = shifted(data, [Both()])
    with pytest.raises(ValueError, match="'inverted' is the name of a domain"):
        shifted(there, [Both()])
    broken = data.report.changed(lambda images, ids: images * 2, "Twice()")
    with pytest.raises(ValueError, match=r"a shift must keep the shape of images and values in \[0, 1\]"):
        broken[:4]
    with pytest.raises(ValueError, match="shift_limit"):
        shifted(data, [Both()], 0)


def test_scores_print_their_shifts(model: Linear, data: ImageData) -> None:
    scores = pt.evaluate(model, data.report, shifts=[Both()])
    inverted, noisy = (scores.elsewhere[name].clean_accuracy for name in ("inverted", "noisy 1"))
    assert f"clean on 2 shifts, {(inverted + noisy) / 2:.3f} on average" in repr(scores)
    assert f"noisy 1     {noisy:.3f}" in repr(scores)


def test_shifts_of_images_of_some_classes_are_measured_among_these(model: Linear, data: ImageData) -> None:
    split = _some_classes(data, (2, 5, 9))
    scores = pt.evaluate(model, split, [ATTACK], shifts=[Both()], attack_elsewhere=True)
    images, _ = Both().of(split)["inverted"][:]
    with torch.no_grad():
        answers = torch.tensor([2, 5, 9])[model(images)[:, [2, 5, 9]].argmax(1)]
    np.testing.assert_array_equal(scores.elsewhere["inverted"].clean, (answers == split.labels).numpy())
    alone = pt.evaluate(model, Both().of(split)["noisy 1"], [ATTACK])
    np.testing.assert_array_equal(scores.elsewhere["noisy 1"].robust[ATTACK], alone.robust[ATTACK])

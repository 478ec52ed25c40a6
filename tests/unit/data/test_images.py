"""Data sets: what a split hands out, what a user gets wrong, and the readers of every source."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import paretune.data.images
from paretune.data import pixels as data_pixels
from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData, load_data


def numbered(count: int = 60, classes: int = 3, channels: int = 3, size: int = 4) -> tuple[Tensor, Tensor]:
    """Bytes where every pixel of example k is k, so that an image says which example it is."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, size, size)
    return images.clone(), torch.arange(count) % classes


def splits_of(data: ImageData) -> dict[str, ImageSplit]:
    return {"train": data.train, "select": data.select, "report": data.report}


def read_all(data: ImageData) -> Tensor:
    return torch.cat([split[:][0] for split in splits_of(data).values()])


def noise(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


# --- a split -----------------------------------------------------------------------------------------------------


def test_images_labels_and_ids_belong_together() -> None:
    images, labels = numbered()
    data = ImageData.from_tensors(images, labels)
    for split in splits_of(data).values():
        read, targets = split[:]
        assert read.dtype == torch.float32
        assert targets.dtype == split.ids.dtype == torch.int64
        assert torch.equal((read * 255).round().to(torch.uint8), images[split.ids])
        assert torch.equal(targets, labels[split.ids])
        assert torch.equal(targets, split.labels)


def test_every_kind_of_index_reads_the_same_images() -> None:
    split = ImageData.from_tensors(*numbered()).train
    images, labels = split[:]
    mask = torch.zeros(len(split), dtype=torch.bool)
    mask[[1, 4]] = True
    for index in (
        [1, 4],
        (1, 4),
        slice(1, 5, 3),
        torch.tensor([1, 4]),
        torch.tensor([1, 4], dtype=torch.uint8),
        np.array([1, 4]),
        [1 - len(split), 4 - len(split)],
        mask,
    ):
        batch, targets = split[index]
        assert torch.equal(batch, images[[1, 4]])
        assert torch.equal(targets, labels[[1, 4]])
    assert torch.equal(split[4:0:-3][0], images[[4, 1]])
    for index in (4, -1, np.int64(4), torch.tensor(4)):
        image, label = split[index]
        assert torch.equal(image, images[int(index)])
        assert label.shape == ()
        assert label == labels[int(index)]
    for index in ([], slice(5, 3), torch.zeros(0, dtype=torch.int64), mask & ~mask):
        batch, targets = split[index]
        assert batch.shape == (0, 3, 4, 4)
        assert targets.shape == (0,)


def test_wrong_indices_are_refused() -> None:
    split = ImageData.from_tensors(*numbered()).train
    for index in (len(split), -len(split) - 1, [0, len(split)]):
        with pytest.raises(IndexError):
            split[index]
    for index in (1.0, [0.5], torch.tensor([[0]]), True):
        with pytest.raises(TypeError, match="index must be an int"):
            split[index]


def test_a_split_can_be_iterated() -> None:
    split = ImageData.from_tensors(*numbered()).select
    assert [int(label) for _, label in split] == split.labels.tolist()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on how torch starts workers
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_one_batch_per_list_of_indices(workers: int) -> None:
    split = ImageData.from_tensors(*numbered()).train
    batches: list[list[int]] = [[0, 5, 2], [1, 4]]
    loader: DataLoader[Any] = DataLoader(split, sampler=batches, batch_size=None, num_workers=workers)
    for (images, labels), batch in zip(loader, batches, strict=True):
        assert torch.equal(images, split[batch][0])
        assert torch.equal(labels, split[batch][1])


def test_a_loader_may_also_collate() -> None:
    split = ImageData.from_tensors(*numbered()).train
    images, labels = next(iter(DataLoader(split, batch_size=4)))
    assert torch.equal(images, split[:4][0])
    assert torch.equal(labels, split[:4][1])


def test_what_is_read_can_be_changed_without_changing_the_data() -> None:
    for channels in (1, 3):
        split = ImageData.from_tensors(noise(60, channels, 4, 4), torch.arange(60) % 3).train
        before, _ = split[:]
        images, labels = split[:]
        images[:, 0] += 1
        labels += 1
        assert torch.equal(split[:][0], before)
        assert not torch.equal(images[:, 1], images[:, 0])


def test_tensors_are_copied() -> None:
    images, labels = numbered()
    data = ImageData.from_tensors(images, labels)
    before, _ = data.report[:]
    images.zero_()
    labels.zero_()
    assert torch.equal(data.report[:][0], before)
    assert len(data.report.labels.unique()) == 3


def test_gray_images_are_stored_once_and_read_as_three_equal_channels() -> None:
    images = noise(60, 1, 4, 4)
    data = ImageData.from_tensors(images, torch.arange(60) % 3)
    read, _ = data.train[:]
    assert read.is_contiguous()
    assert torch.equal(read, images[data.train.ids].expand(-1, 3, -1, -1))
    stored = data.train._read.args[0]
    assert stored.shape == (len(data.train), 1, 4, 4)


def test_bytes_stay_bytes_until_they_are_resized() -> None:
    stored = ImageData.from_tensors(*numbered()).train._read.args[0]
    assert stored.dtype == torch.uint8
    resized = ImageData.from_tensors(*numbered(), img_size=8).train._read.args[0]
    assert resized.dtype == torch.float32
    assert resized.shape[-2:] == (8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_becomes_float32(dtype: torch.dtype) -> None:
    data = ImageData.from_tensors(noise(60, 3, 4, 4).to(dtype), torch.arange(60) % 3)
    assert data.train[0][0].dtype == torch.float32


def test_gradients_do_not_reach_the_data() -> None:
    data = ImageData.from_tensors(noise(60, 3, 4, 4).requires_grad_(), torch.arange(60) % 3)
    assert not data.train[0][0].requires_grad


# --- size ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4), (9, 4), (4, 9), (40, 30), (16, 16)])
@pytest.mark.parametrize("bytes_", [False, True])
def test_images_get_the_size_asked_for_and_stay_in_range(shape: tuple[int, int], bytes_: bool) -> None:
    images = noise(12, 3, *shape).round()  # black and white pixels make bicubic interpolation overshoot
    images = (images * 255).to(torch.uint8) if bytes_ else images
    data = ImageData.from_tensors(images, torch.arange(12) % 2, img_size=16)
    read, _ = data.train[:]
    assert data.image_size == 16
    assert read.shape[1:] == (3, 16, 16)
    assert read.min() >= 0
    assert read.max() <= 1


def test_resizing_keeps_flat_colours_and_cuts_the_centre() -> None:
    """A 4 x 8 image with a bright middle half: its centre square is bright, and nothing else remains."""
    images = torch.zeros(12, 3, 4, 8)
    images[..., 2:6] = 0.75
    data = ImageData.from_tensors(images, torch.arange(12) % 2, img_size=4)
    torch.testing.assert_close(data.train[:][0], torch.full_like(data.train[:][0], 0.75))


def test_shrinking_is_antialiased() -> None:
    """Fine stripes shrink to grey; reading only the pixels around each new centre would see white alone."""
    stripes = (torch.arange(32) % 4 == 1) | (torch.arange(32) % 4 == 2)
    images = stripes.float().expand(12, 3, 32, 32)
    shrunk, _ = ImageData.from_tensors(images, torch.arange(12) % 2, img_size=8).train[:]
    assert (shrunk[..., 1:-1] - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("bytes_", [False, True])
def test_resizing_at_each_fetch_equals_resizing_at_load(
    bytes_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets whose resized copy would not fit in memory give the same images."""
    images = noise(60, 1, 6, 5)
    images = (images * 255).to(torch.uint8) if bytes_ else images
    at_load = ImageData.from_tensors(images, torch.arange(60) % 3, img_size=16)
    monkeypatch.setattr(data_pixels, "_RESIZED_BYTES", 0)
    at_fetch = ImageData.from_tensors(images, torch.arange(60) % 3, img_size=16)
    assert at_fetch.train._read.args[0].shape[-2:] == (6, 5)
    torch.testing.assert_close(at_fetch.train[:][0], at_load.train[:][0])
    assert at_fetch.fingerprint == at_load.fingerprint


# --- arguments -----------------------------------------------------------------------------------------------------

GOOD = noise(60, 3, 4, 4)
LABELS = torch.arange(60) % 3


def spoiled(example: int, value: float) -> Tensor:
    images = GOOD.clone()
    images[example, 1, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (spoiled(7, 1.5), LABELS, r"\[0, 1\]; example 7 has values from .* to 1.5"),
        (spoiled(8, -0.1), LABELS, r"example 8 has values from -0.1"),
        (spoiled(9, float("nan")), LABELS, r"example 9 .*nan"),
        (spoiled(9, float("inf")), LABELS, r"example 9 .*inf"),
        (GOOD * 255, LABELS, r"example 0 .*the first of 60 .*Divide bytes by 255"),
        ((GOOD * 255).to(torch.int64), LABELS, r"uint8 in \[0, 255\]; got torch.int64.*\.to\(torch.uint8\)"),
        (GOOD > 0.5, LABELS, r"got torch.bool"),
        (GOOD[0], LABELS, r"shape \(examples, channels, height, width\).*got \(3, 4, 4\)"),
        (GOOD.permute(0, 2, 3, 1), LABELS, r"1 or 3 channels.*got \(60, 4, 4, 3\)"),
        (GOOD[:0], LABELS[:0], r"no empty axis; got \(0, 3, 4, 4\)"),
        (GOOD, LABELS[:59], r"differ in length: 60 and 59"),
        (GOOD, LABELS.float(), r"labels must be integers.*torch.float32"),
        (GOOD, LABELS > 0, r"labels must be integers.*torch.bool"),
        (GOOD, LABELS[:, None], r"labels must be integers of shape \(examples,\).*\(60, 1\)"),
        (GOOD, LABELS - 1, r"between 0 and 1 for 2 classes; example 0 has -1"),
        (GOOD, LABELS * 2, r"class '1' \(label 1\) .* has 0 examples"),
        (GOOD, LABELS * 0, r"only one class \(0\)"),
        (GOOD, LABELS + 10**12, r"without gaps; 60 of them reach 1000000000002"),
    ],
)
def test_wrong_tensors_are_named(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData.from_tensors(images, labels)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dog"], r"between 0 and 1 for 2 classes; example 2 has 2"),
        (["cat", "dog", "owl", "yak"], r"class 'yak' \(label 3\) of 'tensors' has 0 examples"),
        (["cat", "dog", "cat"], r"different names; got \['cat', 'dog', 'cat'\]"),
    ],
)
def test_classes_must_match_the_labels(classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData.from_tensors(GOOD, LABELS, classes)


def test_a_class_needs_one_example_per_split() -> None:
    labels = torch.tensor([0] * 57 + [1] * 2 + [0])
    with pytest.raises(ValueError, match=r"class '1' .* has 2 examples for train and select and report"):
        ImageData.from_tensors(GOOD, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 0}, r"img_size must be a whole number from 1 .*got 0"),
        ({"img_size": -3}, r"img_size must be .*got -3"),
        ({"img_size": 5.5}, r"img_size must be .*got 5.5"),
        ({"seed": -1}, r"seed=-1 must be an integer of at least 0"),
        ({"seed": "a"}, r"seed='a'"),
        ({"limit": 0}, r"limit=0 must be an integer of at least 1"),
        ({"limit": 29}, r"limit=29 .* 10 classes in each of 3 splits; it must be at least 30"),
        ({"splits": (0.5, 0.5)}, r"splits must be three positive shares that sum to 1; got \(0.5, 0.5\)"),
        ({"splits": (0.5, 0.5, 0.5)}, r"splits must be"),
        ({"splits": (1.0, 0.0, 0.0)}, r"splits must be"),
        ({"splits": (0.5, float("nan"), 0.5)}, r"splits must be"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data("digits", **arguments)


def test_images_that_are_not_square_keep_their_size() -> None:
    images = noise(60, 3, 4, 6)
    data = ImageData.from_tensors(images, LABELS)
    assert data.image_size == (4, 6)
    for split in splits_of(data).values():
        assert torch.equal(split[:][0], images[split.ids])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", r"'digit' .* did you mean 'digits'\? Choices: digits, fashion-mnist, cifar10"),
        ("Fashion_MNIST", r"did you mean 'fashion-mnist'"),
        ("zzz", r"'zzz' is no known data set and no folder; Choices"),
        ("", r"'' is no known data set"),
    ],
)
def test_unknown_names_list_the_known(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(name)


def test_an_absent_folder_is_not_mistaken_for_a_name(tmp_path: Path) -> None:
    for path in (tmp_path / "digits", str(tmp_path / "nothing")):
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            load_data(path)


# --- digits --------------------------------------------------------------------------------------------------------


def test_digits_are_the_ones_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = load_data("digits")
    assert data.classes == tuple("0123456789")
    assert data.image_size == 8
    images, labels = data.report[:]
    assert torch.equal(images[:, 0], torch.from_numpy(digits.images[data.report.ids] / 16).float())
    assert torch.equal(labels, torch.from_numpy(digits.target[data.report.ids]))


def test_representations_are_short() -> None:
    data = load_data("digits", img_size=32)
    assert repr(data) == "ImageData('digits', classes=10, image_size=32, train=1078, select=269, report=450)"
    assert repr(data.report) == f"ImageSplit(450 examples, {data.report.fingerprint[:12]})"


def test_the_examples_in_the_documentation_run() -> None:
    assert doctest.testmod(paretune.data.images).failed == 0


# --- Fashion-MNIST ---------------------------------------------------------------------------------------------------

"""Data sets: what a split hands out, what a user gets wrong, and the readers of every source."""

import doctest
import gzip
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import paretune.data.images
from paretune.data import pixels as data_pixels
from paretune.data import sources
from paretune.data.images import ImageData, ImageSplit, load_data


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


def write_idx(path: Path, values: np.ndarray[Any, Any], *, cut: int = 0) -> None:
    header = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()[: values.size - cut]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, *, suffix: str = "", train: int = 100, test: int = 40) -> None:
    """Images that say which example they are, with the test set counted on."""
    for part, start, count in (("train", 0, train), ("t10k", train, test)):
        numbers = np.arange(start, start + count)
        images = np.broadcast_to(numbers[:, None, None], (count, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", numbers % 10)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "."])
def test_fashion_mnist_is_read_from_a_torchvision_root(tmp_path: Path, suffix: str, place: str) -> None:
    write_fashion(tmp_path / place, suffix=suffix)
    data = load_data("fashion-mnist", root=tmp_path)
    assert data.name == "fashion-mnist"
    assert data.classes[9] == "Ankle boot"
    assert sorted(data.report.ids.tolist()) == list(range(100, 140))  # the official test set, all of it
    assert (len(data.train), len(data.select)) == (80, 20)
    images, labels = data.report[:]
    assert images.shape == (40, 3, 28, 28)
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), data.report.ids)
    assert torch.equal(labels, data.report.ids % 10)


def test_without_a_root_the_debian_package_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion(tmp_path / "debian", suffix=".gz")
    write_fashion(tmp_path / "data" / "FashionMNIST" / "raw", train=200, test=50)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    assert len(load_data("fashion-mnist").report) == 40
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    assert len(load_data("fashion-mnist").report) == 50


def test_absent_fashion_mnist_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"apt-get install dataset-fashion-mnist.*root='data', download=True"
    ):
        load_data("fashion-mnist")
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"download=True"):
        load_data("fashion-mnist", root=tmp_path)


def test_download_goes_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def fake(root: Path, download: bool) -> None:
        assert download
        write_fashion(root / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fake)
    assert len(load_data("fashion-mnist", root=tmp_path, download=True).report) == 40
    assert (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").exists()


@pytest.mark.parametrize("damage", ["cut", "cut gzip", "no gzip", "empty", "wrong kind", "unequal"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    write_fashion(tmp_path, suffix=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    if damage == "cut":
        write_idx(path, np.zeros((100, 28, 28)), cut=1)
    elif damage == "cut gzip":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "no gzip":
        path.write_bytes(b"<html>not found</html>")
    elif damage == "empty":
        path.write_bytes(gzip.compress(b""))
    elif damage == "wrong kind":
        path.write_bytes((tmp_path / "train-labels-idx1-ubyte.gz").read_bytes())
    else:
        write_idx(path, np.zeros((99, 28, 28)))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz.* replace"):
        load_data("fashion-mnist", root=tmp_path)


@pytest.mark.skipif(
    not sources.DEBIAN_FASHION_MNIST.is_dir(), reason="needs the Debian package dataset-fashion-mnist"
)
def test_the_debian_package_is_read() -> None:
    data = load_data("fashion-mnist", limit=600)
    assert len(data.train) + len(data.select) + len(data.report) == 600
    whole = load_data("fashion-mnist")
    assert [len(split) for split in splits_of(whole).values()] == [48_000, 12_000, 10_000]
    assert whole.train.labels.bincount().tolist() == [4800] * 10
    images, _ = whole.report[:256]
    assert 0.25 < images.mean() < 0.32  # 0.286 over the whole set


# --- CIFAR ---------------------------------------------------------------------------------------------------------


def write_cifar10(root: Path, per_file: int = 20) -> None:
    """The folder that torchvision reads, with images that say which example they are."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for index, name in enumerate(names):
        numbers = np.arange(index * per_file, (index + 1) * per_file)
        pixels = np.broadcast_to(numbers[:, None], (per_file, 3072)).astype(np.uint8)
        pixels[:, 2 * 1024 + 5 * 32 + 7] = 255  # blue, row 5, column 7
        entry = {"data": pixels, "labels": (numbers % 10).tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))


def test_cifar_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.cifar

    write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: True)
    data = load_data("cifar10", root=tmp_path)
    assert data.classes[3] == "class 3"
    assert sorted(data.report.ids.tolist()) == list(range(100, 120))
    images, labels = data.train[:]
    assert images.shape == (80, 3, 32, 32)
    assert torch.equal((images[:, 1, 5, 7] * 255).round().long(), data.train.ids)
    assert torch.equal(images[:, 2, 5, 7], torch.ones(80))
    assert (images == 1).sum() == 80
    assert torch.equal(labels, data.train.ids % 10)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_absent_cifar_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"load_data\('{name}', root='.*', download=True\)"):
        load_data(name, root=tmp_path)


def test_a_failed_download_is_not_called_an_absent_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    def offline(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    with pytest.raises(RuntimeError, match="Error downloading"):
        load_data("cifar100", root=tmp_path, download=True)


# --- folders -------------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int, *, value: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    """PNG files 0.png, 1.png, ... whose red channel is ``value`` plus their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (value + number, 0, 255)).save(folder / f"{number}.png")


def test_a_folder_of_class_folders_is_split(tmp_path: Path) -> None:
    write_images(tmp_path / "pets" / "cat", 10, value=0)
    write_images(tmp_path / "pets" / "dog", 20, value=100)
    write_images(tmp_path / "pets" / ".trash", 3)
    (tmp_path / "pets" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / "readme.md").write_text("no class")
    data = load_data(tmp_path / "pets")
    assert (data.name, data.classes, data.image_size) == ("pets", ("cat", "dog"), 8)
    assert [len(split) for split in splits_of(data).values()] == [18, 4, 8]
    names = [f"{number}.png" for number in range(10)] + sorted(f"{number}.png" for number in range(20))
    for split in splits_of(data).values():
        images, labels = split[:]
        assert torch.equal(labels, (split.ids >= 10).long())
        red = [int(names[row].removesuffix(".png")) + 100 * (row >= 10) for row in split.ids.tolist()]
        assert (images[:, 0, 0, 0] * 255).round().int().tolist() == red
        assert torch.equal(images[:, 2], torch.ones(len(split), 8, 8))
    assert load_data(str(tmp_path / "pets")).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ({"train": 20}, [24, 6, 10]),
        ({"train": 20, "test": 5}, [32, 8, 10]),
        ({"train": 20, "val": 5}, [32, 8, 10]),  # ImageNet: the official measurement is on val
        ({"train": 20, "val": 3, "test": 5}, [40, 6, 10]),
        ({"Training": 20, "validation": 3, "Testing": 5}, [40, 6, 10]),
    ],
)
def test_official_parts_of_a_folder_are_kept(tmp_path: Path, parts: dict[str, int], sizes: list[int]) -> None:
    for part, count in parts.items():
        for name in ("cat", "dog"):
            write_images(tmp_path / part / name, count, value=100 if part in ("test", "Testing") else 0)
    data = load_data(tmp_path)
    assert [len(split) for split in splits_of(data).values()] == sizes
    if "test" in parts or "Testing" in parts:
        assert data.report[:][0][:, 0].min() * 255 >= 99.9
    assert data.train[:][0][:, 0].max() * 255 < 99.9
    assert load_data(tmp_path, seed=1).report.fingerprint == data.report.fingerprint or len(parts) == 1


def test_folder_images_of_any_kind_are_brought_to_one_size(tmp_path: Path) -> None:
    """Grey, palette (also with transparency), RGBA, JPEG and other sizes, each flat at its own colour."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        folder = tmp_path / name
        Image.new("L", (20, 30), 51).save(folder / "grey.png")
        Image.new("RGBA", (9, 7), (51, 51, 51, 0)).save(folder / "rgba.png")
        Image.new("RGB", (40, 30), (51, 51, 51)).save(folder / "photo.JPG")
        palette = Image.new("P", (12, 12), 1)
        palette.putpalette([0, 0, 0, 51, 51, 51])
        palette.save(folder / "palette.png", transparency=bytes([0, 128]))
        Image.new("1", (5, 5), 0).save(folder / "black.bmp")
    data = load_data(tmp_path, img_size=12)
    for split in splits_of(data).values():
        images, _ = split[:]
        assert images.shape[1:] == (3, 12, 12)
        for image, row in zip(images, split.ids.tolist(), strict=True):
            value = 0.0 if row % 5 == 0 else 0.2  # black.bmp sorts first
            torch.testing.assert_close(image, torch.full((3, 12, 12), value), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match=r"is \d+x\d+.*pass img_size="):
        load_data(tmp_path)


def test_files_are_read_upright(tmp_path: Path) -> None:
    pixels = (noise(6, 5, 5, 3) * 255).to(torch.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / str(number % 2)
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{number}.png")
    for split in splits_of(load_data(tmp_path)).values():
        rows = [[0, 2, 4, 1, 3, 5][row] for row in split.ids.tolist()]
        assert torch.equal((split[:][0] * 255).round().to(torch.uint8), pixels[rows].permute(0, 3, 1, 2))


def test_folder_splits_reach_the_workers_of_a_loader(tmp_path: Path) -> None:
    """Workers that are spawned receive the split as a pickle."""
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 8)
    split = load_data(tmp_path).train
    again = pickle.loads(pickle.dumps(split))
    assert torch.equal(again[:][0], split[:][0])


def make_no_classes(root: Path) -> None:
    write_images(root, 3)


def make_empty_class(root: Path) -> None:
    write_images(root / "cat", 5)
    (root / "dog").mkdir()


def make_nested(root: Path) -> None:
    for part in ("fold1", "fold2"):
        for name in ("cat", "dog"):
            write_images(root / part / name, 5)


def make_one_class(root: Path) -> None:
    write_images(root / "cat", 5)


def make_few(root: Path) -> None:
    write_images(root / "cat", 5)
    write_images(root / "dog", 2)


def make_unreadable(root: Path) -> None:
    write_images(root / "cat", 5)
    write_images(root / "dog", 5)
    (root / "dog" / "3.png").write_bytes(b"no image")


def make_deep(root: Path) -> None:
    write_images(root / "cat", 5)
    write_images(root / "dog", 5)
    Image.new("I;16", (8, 8)).save(root / "dog" / "3.png")


def make_class_only_in_test(root: Path) -> None:
    for name in ("cat", "dog"):
        write_images(root / "train" / name, 5)
        write_images(root / "test" / name, 5)
    write_images(root / "test" / "yak", 5)


def make_class_missing_in_test(root: Path) -> None:
    for name in ("cat", "dog"):
        write_images(root / "train" / name, 5)
    write_images(root / "test" / "cat", 5)


def make_two_validations(root: Path) -> None:
    for part in ("train", "val", "valid"):
        for name in ("cat", "dog"):
            write_images(root / part / name, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_no_classes, r"no class folders; expected .*/<class>/<image>"),
        (make_empty_class, r"no image \(.*\.png.*\) lies in the class folder .*dog"),
        (make_nested, r"no image .* lies in the class folder .*fold1"),
        (make_one_class, r"only one class \(cat\)"),
        (make_few, r"class 'dog' .* has 2 examples for train and select and report"),
        (make_unreadable, r"cannot read the image .*dog.3\.png"),
        (make_deep, r"the image .*dog.3\.png has more than 8 bits"),
        (make_class_only_in_test, r"class folder 'yak', which .*train lacks"),
        (make_class_missing_in_test, r"no image .* lies in the class folder .*test.dog"),
        (make_two_validations, r"has both 'val' and 'valid'"),
    ],
)
def test_wrong_folders_are_named(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path)


def test_an_image_that_is_cut_off_is_named_when_it_is_read(tmp_path: Path) -> None:
    """Its header is whole, so only decoding can tell."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = (noise(1, 64, 64, 3)[0].numpy() * 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    path = tmp_path / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:3000])
    data = load_data(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read the image .*cat.0\.png .*remove or replace"):
        read_all(data)


def test_a_folder_fingerprint_follows_its_files(tmp_path: Path) -> None:
    """Names and sizes count; the place of the folder does not."""
    for place in ("one", "two"):
        for name in ("cat", "dog"):
            write_images(tmp_path / place / name, 6)
    one = load_data(tmp_path / "one")
    assert load_data(tmp_path / "two").fingerprint == one.fingerprint
    (tmp_path / "two" / "cat" / "5.png").rename(tmp_path / "two" / "cat" / "6.png")
    renamed = load_data(tmp_path / "two")
    Image.effect_noise((8, 8), 50).save(tmp_path / "two" / "cat" / "6.png")
    replaced = load_data(tmp_path / "two")
    assert len({one.fingerprint, renamed.fingerprint, replaced.fingerprint}) == 3


# --- Hugging Face --------------------------------------------------------------------------------------------------


class FakeImage:
    """Stands for ``datasets.Image``."""


class FakeLabel:
    """Stands for ``datasets.ClassLabel``."""

    names = ("cat", "dog")


class FakePart:
    """Stands for one split of a ``datasets.DatasetDict``."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self._columns = columns
        self.features = features

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self._columns[key]
        return {name: values[key] for name, values in self._columns.items()}

    def select_columns(self, names: list[str]) -> "FakePart":
        return FakePart({name: self._columns[name] for name in names}, {})


def fake_part(count: int, *, value: int = 0, label: int | None = None, **more: Any) -> FakePart:
    pictures = [Image.new("RGB", (8, 8), (value + number, 0, 0)) for number in range(count)]
    labels = [number % 2 if label is None else label for number in range(count)]
    features = {"picture": FakeImage(), "animal": FakeLabel(), "caption": object()}
    columns: dict[str, list[Any]] = {"picture": pictures, "animal": labels, "caption": ["x"] * count}
    columns |= dict.fromkeys(more, labels)
    return FakePart(columns, features | more)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, FakePart]]:
    """A local double of the few things that are used of the optional package ``datasets``."""
    sets: dict[str, dict[str, FakePart]] = {}
    module = SimpleNamespace(load_dataset=sets.__getitem__, Image=FakeImage, ClassLabel=FakeLabel)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return sets


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (("train",), [24, 6, 10]),
        (("all",), [24, 6, 10]),
        (("train", "test"), [32, 8, 40]),
        (("train", "test", "unsupervised"), [32, 8, 40]),
        (("train", "validation"), [32, 8, 40]),
        (("test", "validation", "train"), [40, 40, 40]),
    ],
)
def test_hub_splits_become_our_splits(
    hub: dict[str, dict[str, FakePart]], parts: tuple[str, ...], sizes: list[int]
) -> None:
    hub["me/pets"] = {part: fake_part(40, value=100 if part == "test" else 0) for part in parts}
    data = load_data("hf:me/pets")
    assert (data.name, data.classes, data.image_size) == ("hf:me/pets", ("cat", "dog"), 8)
    assert [len(split) for split in splits_of(data).values()] == sizes
    images, labels = data.report[:]
    first = 40 * (1 + ("validation" in parts)) if "test" in parts else 40 if "validation" in parts else 0
    red = (images[:, 0, 0, 0] * 255).round().int()
    assert torch.equal(red, data.report.ids - first + (100 if "test" in parts else 0))
    assert torch.equal(labels, data.report.ids % 2)


def test_a_hub_test_set_without_answers_is_left_out(hub: dict[str, dict[str, FakePart]]) -> None:
    hub["net"] = {"train": fake_part(40), "validation": fake_part(20), "test": fake_part(30, label=-1)}
    assert [len(split) for split in splits_of(load_data("hf:net")).values()] == [32, 8, 20]


def test_hub_images_of_other_sizes_are_named_when_read(hub: dict[str, dict[str, FakePart]]) -> None:
    hub["mixed"] = {"train": fake_part(40)}
    hub["mixed"]["train"]._columns["picture"][17] = Image.new("RGB", (8, 9))
    data = load_data("hf:mixed")
    with pytest.raises(ValueError, match=r"the image 17 of hf:mixed is 9x8.*img_size="):
        read_all(data)
    assert read_all(load_data("hf:mixed", img_size=16)).shape == (40, 3, 16, 16)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"train": fake_part(40, breed=FakeLabel())},
            r"one column of type FakeLabel, not 2 .*breed: FakeLabel",
        ),
        ({"train": FakePart({"animal": [0, 1]}, {"animal": FakeLabel()})}, r"type FakeImage, not 0"),
        ({"test": fake_part(4), "validation": fake_part(4)}, r"none called 'train'"),
        ({"train": fake_part(40, label=-1)}, r"example 0 has -1"),
    ],
)
def test_hub_sets_that_cannot_be_read_are_named(
    hub: dict[str, dict[str, FakePart]], parts: dict[str, FakePart], message: str
) -> None:
    hub["odd"] = parts
    with pytest.raises(ValueError, match=message):
        load_data("hf:odd")


def test_a_hub_name_without_datasets_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "paretune\[datasets\]"'):
        load_data("hf:mnist")


def test_a_real_local_data_set_is_read_through_datasets(tmp_path: Path) -> None:
    """The double above behaves like the package, where that is installed."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    for part, count in (("train", 40), ("test", 10)):
        rows = {
            "image": [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(count)],
            "label": [number % 2 for number in range(count)],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / "data" / f"{part}-0.parquet"
        )
    data = load_data(f"hf:{tmp_path}")
    assert [len(split) for split in splits_of(data).values()] == [32, 8, 10]
    images, labels = data.report[:]
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), data.report.ids - 40)
    assert torch.equal(labels, data.report.ids % 2)

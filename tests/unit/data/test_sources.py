"""Data sets, class folders and hub sets: what is read, what is split, and what is refused."""

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

from paretune.data import sources
from paretune.data.images import load_data
from tests.unit.data.test_images import noise, read_all, splits_of


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
        (make_nested, r"no image lies in the class folder .*fold1 itself.* name is that of a split"),
        (make_one_class, r"only one class \(cat\)"),
        (make_few, r"class 'dog' .* has 2 examples for train and select and report"),
        (make_unreadable, r"cannot read 1 of the 10 images of .*dog.3\.png"),
        (make_deep, r"cannot read .*dog.3\.png \(it has more than 8 bits"),
        (make_class_only_in_test, r"class folder 'yak', which .*train lacks"),
        (make_class_missing_in_test, r"no image .* lies in the class folder .*test.dog"),
        (make_two_validations, r"has both 'val' and 'valid'"),
    ],
)
def test_wrong_folders_are_named(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path)


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


FakeImage = type("Image", (), {"__doc__": "Stands for ``datasets.Image``."})


class FakeLabel:
    """Stands for ``datasets.ClassLabel``."""

    names = ("cat", "dog")


class FakePart:
    """Stands for one split of a ``datasets.DatasetDict``."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self._columns = columns
        self.features = features
        self.column_names = [*columns]

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
    hub["me/pets"] = {
        part: fake_part(40, value={"test": 100, "validation": 50}.get(part, 0)) for part in parts
    }
    data = load_data("hf:me/pets")
    assert (data.name, data.classes, data.image_size) == ("hf:me/pets", ("cat", "dog"), 8)
    assert [len(split) for split in splits_of(data).values()] == sizes
    images, labels = data.report[:]
    first = 40 * (1 + ("validation" in parts)) if "test" in parts else 40 if "validation" in parts else 0
    red = (images[:, 0, 0, 0] * 255).round().int()
    assert torch.equal(
        red, data.report.ids - first + (100 if "test" in parts else 50 if "validation" in parts else 0)
    )
    assert torch.equal(labels, data.report.ids % 2)


def test_a_hub_test_set_without_answers_is_left_out(hub: dict[str, dict[str, FakePart]]) -> None:
    hub["net"] = {"train": fake_part(40), "validation": fake_part(20), "test": fake_part(30, label=-1)}
    assert [len(split) for split in splits_of(load_data("hf:net")).values()] == [32, 8, 20]


def test_hub_images_of_other_sizes_are_named_when_read(hub: dict[str, dict[str, FakePart]]) -> None:
    hub["mixed"] = {"train": fake_part(40)}
    hub["mixed"]["train"]._columns["picture"][17] = Image.new("RGB", (8, 9))
    data = load_data("hf:mixed")
    with pytest.raises(ValueError, match=r"the image 17 of hf:mixed \(train\) is 9x8.*img_size="):
        read_all(data)
    assert read_all(load_data("hf:mixed", img_size=16)).shape == (40, 3, 16, 16)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"train": fake_part(40, breed=FakeLabel())},
            r"one column of the label, not 2 .*breed: FakeLabel",
        ),
        ({"train": FakePart({"animal": [0, 1]}, {"animal": FakeLabel()})}, r"one column of the image, not 0"),
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

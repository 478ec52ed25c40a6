"""Corrupted test sets in arrays, as CIFAR-10-C is: paired with the clean images, and refused in another order."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paretune as pt
from paretune._values import from_dict, parse
from paretune.data.image_split import ImageSplit
from paretune.shifts import SHIFTS, Arrays
from tests.unit.attacks.victims import Linear

COUNT = 40


def clean(size: int = 8, start: int = 5 * COUNT) -> ImageSplit:
    """A test set of 40 images in random order, whose first id is a multiple of 40; pixels are the number of the image."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(COUNT))
    return ImageSplit(classes_of(order), order + start, _Clean(order, size), "clean", ("a", "b", "c"))


def classes_of(numbers: torch.Tensor) -> torch.Tensor:
    return torch.div(numbers * numbers, 7, rounding_mode="floor") % 3


class _Clean:
    def __init__(self, numbers: torch.Tensor, size: int) -> None:
        self.numbers, self.size = numbers, size

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.numbers[rows] / 255).view(-1, 1, 1, 1).expand(-1, 3, self.size, self.size).clone()


def write(root: Path, kinds: tuple[str, ...] = ("contrast", "fog"), *, blocks: int = 5) -> Path:
    """Red is the number of the image, green the severity, blue the kind."""
    root.mkdir(parents=True, exist_ok=True)
    for place, kind in enumerate(kinds):
        images = np.zeros((5, COUNT, 8, 8, 3), np.uint8)
        images[..., 0] = np.arange(COUNT)[None, :, None, None]
        images[..., 1] = np.arange(1, 6)[:, None, None, None]
        images[..., 2] = place
        np.save(root / f"{kind}.npy", images.reshape(-1, 8, 8, 3))
    np.save(root / "labels.npy", np.tile(classes_of(torch.arange(COUNT)).numpy(), blocks))
    return root


@pytest.mark.parametrize("blocks", [1, 5])
def test_each_image_has_the_pixels_of_its_own_row(tmp_path: Path, blocks: int) -> None:
    split = clean()
    parts = Arrays(write(tmp_path / "CIFAR-10-C", blocks=blocks)).of(split)
    assert [*parts] == [f"{kind} {severity}" for kind in ("contrast", "fog") for severity in range(1, 6)]
    for name, part in parts.items():
        kind, severity = name.split()
        pixels = (255 * part[:][0]).round().int()
        assert (pixels == pixels[:, :, :1, :1]).all()
        assert pixels[:, 0, 0, 0].tolist() == (split.ids - 5 * COUNT).tolist()
        assert {*pixels[:, 1, 0, 0].tolist()} == {int(severity)}
        assert {*pixels[:, 2, 0, 0].tolist()} == {("contrast", "fog").index(kind)}
        assert torch.equal(part.labels, split.labels)
        assert torch.equal(part.ids, split.ids)
        assert part.paired
        assert part.shift == f"Arrays('{tmp_path}/CIFAR-10-C', kinds=('{kind}',), severities=({severity},))"
    assert len({part.fingerprint for part in parts.values()}) == 10
    limited = Arrays(tmp_path / "CIFAR-10-C", kinds=["fog"], severities=[5]).of(split.first(9))
    assert torch.equal(limited["fog 5"][:][0], parts["fog 5"][:9][0])
    assert torch.equal(pickle.loads(pickle.dumps(parts["fog 5"]))[:][0], parts["fog 5"][:][0])


def test_images_come_at_the_size_of_the_split(tmp_path: Path) -> None:
    part = Arrays(write(tmp_path / "c"), kinds=("fog",), severities=(2,)).of(clean(size=12))["fog 2"]
    images, _ = part[:]
    assert images.shape == (COUNT, 3, 12, 12)
    torch.testing.assert_close((255 * images[:, 0, 6, 6]).round().long(), part.ids - 5 * COUNT)


def test_bits_under_attack_pair_with_the_clean_ones(tmp_path: Path) -> None:
    model = Linear(3, 3, 8, 8)
    model.load_state_dict(
        {"weight": torch.randn(3, 192, generator=torch.Generator().manual_seed(0)), "bias": torch.zeros(3)}
    )
    attack = pt.PGD(pt.Linf(2 / 255), steps=2)
    shift = Arrays(write(tmp_path / "c"), kinds=("fog",), severities=(1, 5))
    scores = pt.evaluate(model, clean(), [attack], shifts=[shift], attack_elsewhere=True)
    for part in scores.elsewhere.values():
        assert part.paired
        assert len(part.clean) == len(part.robust[attack]) == COUNT
        assert (part.robust[attack] <= part.clean).all()


def test_another_order_and_other_arrays_are_refused(tmp_path: Path) -> None:
    split = clean()

    def refused(message: str, given: ImageSplit = split, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            Arrays(root, **options).of(given)

    root = write(tmp_path / "c")
    backwards = np.load(root / "labels.npy")[::-1].copy()
    np.save(root / "labels.npy", backwards)
    first = next(row for row in range(COUNT) if backwards[int(split.ids[row]) % COUNT] != split.labels[row])
    place = int(split.ids[first]) % COUNT
    told = f"has the class {backwards[place]} in place {place}, where the data has {int(split.labels[first])}"
    refused(
        f"{re.escape(str(root))} {told}: its images are in another order, or of another data set or split"
    )
    write(tmp_path / "c")
    mixed = np.load(root / "labels.npy")
    mixed[COUNT:] = np.roll(mixed[COUNT:], 1)
    np.save(root / "labels.npy", mixed)  # right for the first severity alone
    refused("in another order")
    write(tmp_path / "c")
    refused("in another order", clean(start=7))
    twice = ImageSplit(
        split.labels.repeat(2), torch.cat([split.ids, split.ids + COUNT]), _Clean(split.ids, 8), "clean"
    )
    refused("has fewer images than the split", twice)
    refused("has no frog.npy; did you mean 'fog'. It has contrast, fog", kinds=["frog"])
    refused(r"severities must be some of 1 to 5, got \(0,\)", severities=[0])
    np.save(root / "labels.npy", np.zeros(7, int))
    refused(r"labels.npy must hold the classes of 40 images, once or for each severity; it has int64 \(7,\)")
    write(tmp_path / "c")
    np.save(root / "fog.npy", np.zeros((7, 8, 8, 3), np.uint8))
    refused(r"fog.npy must hold bytes \(5 n, height, width, 3\), and has uint8 \(7, 8, 8, 3\)", kinds=["fog"])
    (root / "fog.npy").write_bytes(b"no array")
    refused("fog.npy is no array of NumPy", kinds=["fog"])
    for file in ("fog.npy", "contrast.npy"):
        (root / file).unlink()
    refused("has no arrays beside labels.npy")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone/labels.npy"):
        Arrays(tmp_path / "gone").of(split)


def test_it_prints_as_the_call_that_makes_it() -> None:
    shift = Arrays(Path("c"), kinds=["fog"], severities=[5])
    assert repr(Arrays("c")) == "Arrays('c')"
    assert parse(repr(shift), SHIFTS) == shift
    assert from_dict(json.loads(json.dumps(shift.to_dict())), SHIFTS) == shift

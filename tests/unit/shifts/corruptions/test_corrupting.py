"""A batch is corrupted image by image: by the example alone, at any size, with the distribution that was published."""

import colorsys
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from paretune.shifts.corruptions import (
    COMMON,
    CORRUPTIONS,
    SEVERITIES,
    VERSIONS,
    Version,
    corrupt,
    version_for,
)
from paretune.shifts.corruptions import frost as frost_module
from paretune.shifts.corruptions.digital import hsv, rgb
from paretune.shifts.corruptions.weather import plasma


def photos(count: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def grey(value: float, size: int = 64) -> Tensor:
    return torch.full((4, 3, size, size), value)


@pytest.fixture(autouse=True)
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Five small photographs in the place of the real ones, of different sizes, all as light as their number times 10."""
    folder = tmp_path / "imagecorruptions" / "frost"
    folder.mkdir(parents=True)
    for number, name in enumerate(("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"), 1):
        levels = np.full((300 - number, 340 + number, 3), 10 * number, np.uint8)
        Image.fromarray(levels).save(folder / name)

    class Distribution:
        def locate_file(self, path: str) -> Path:
            return tmp_path / path

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    forget()
    yield folder
    forget()


def forget() -> None:
    """The photographs that were read."""
    for function in (frost_module.photographs, frost_module._read):
        function.cache_clear()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_image_gets_the_same_in_any_batch_and_only_the_example_decides(kind: str) -> None:
    images, ids = photos(), torch.tensor([7, 0, -1])
    made = corrupt(images, ids, kind, 3)
    assert made.shape == images.shape
    assert made.dtype == torch.float32
    assert made.is_contiguous()
    torch.testing.assert_close(corrupt(images.flip(0), ids.flip(0), kind, 3).flip(0), made, rtol=0, atol=0)
    torch.testing.assert_close(corrupt(images[1:2], ids[1:2], kind, 3), made[1:2], rtol=0, atol=0)
    assert not torch.equal(corrupt(images, ids, kind, 5), made)
    fixed = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    fixed |= {"gaussian_blur", "saturate"}
    assert torch.equal(corrupt(images, ids + 1, kind, 3), made) == (kind in fixed)


@pytest.mark.slow
def test_another_process_makes_the_same() -> None:
    line = (
        "import hashlib, torch; from paretune.shifts.corruptions import corrupt; "
        "images = torch.linspace(0, 1, 1200).view(1, 3, 20, 20); torch.set_num_threads(2); made = ["
        "corrupt(images, torch.tensor([3]), kind, 2) for kind in ('gaussian_noise', 'fog', 'elastic_transform')]; "
        "print(hashlib.sha256(torch.stack(made).numpy().tobytes()).hexdigest())"
    )
    images = torch.linspace(0, 1, 1200).view(1, 3, 20, 20)
    made = [
        corrupt(images, torch.tensor([3]), kind, 2) for kind in ("gaussian_noise", "fog", "elastic_transform")
    ]
    printed = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == hashlib.sha256(torch.stack(made).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_images_are_of_8_bits_as_those_in_files(kind: str) -> None:
    images = photos()
    made = corrupt(images, torch.arange(3), kind, 2)
    levels = made * 255
    torch.testing.assert_close(levels.round() / 255, made, rtol=0, atol=0)
    rounded = (images * 255).round() / 255
    torch.testing.assert_close(corrupt(rounded, torch.arange(3), kind, 2), made, rtol=0, atol=0)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_any_size_and_shape_from_8_pixels_on_works(kind: str, version: Version) -> None:
    for (height, width), severities in {
        (8, 8): SEVERITIES,
        (8, 31): (1, 5),
        (40, 9): (2, 4),
        (64, 350): (3,),
    }.items():
        for severity in severities:
            made = corrupt(photos(1, height, width), torch.tensor([severity]), kind, severity, version)
            assert made.shape == (1, 3, height, width)
            assert made.min() >= 0
            assert made.max() <= 1


def test_images_of_one_value_work() -> None:
    """Black, white and grey images divide by no zero."""
    for kind in CORRUPTIONS:
        for value in (0.0, 0.5, 1.0):
            made = corrupt(grey(value, 12)[:1], torch.tensor([1]), kind, 1)
            assert bool(((made >= 0) & (made <= 1)).all()), (kind, value)


def test_the_nearer_published_version_is_the_default() -> None:
    assert [version_for(*size) for size in ((32, 32), (111, 400), (112, 112), (224, 300))] == [
        "32",
        "32",
        "224",
        "224",
    ]
    images, ids = photos(1, 24, 24), torch.tensor([5])
    assert torch.equal(corrupt(images, ids, "fog", 4), corrupt(images, ids, "fog", 4, "32"))
    assert not torch.equal(corrupt(images, ids, "fog", 4), corrupt(images, ids, "fog", 4, "224"))


def test_noise_has_the_published_spread_and_no_colour() -> None:
    """Mean, deviation and a flat spectrum, over 4 images of 64 pixels; bounds are five standard errors."""
    count = 4 * 3 * 64 * 64
    made = corrupt(grey(0.5), torch.arange(4), "gaussian_noise", 1, "224").double()
    noise = made - (made * 0 + 0.5).mean()
    assert abs(noise.mean() + 0.5 / 255) < 5 * 0.08 / count**0.5 + 0.5 / 255  # cut down, not rounded
    assert abs(noise.std() / 0.08 - 1) < 5 / (2 * count) ** 0.5 + 0.002
    power = (
        torch.fft.fft2(noise - noise.mean((-2, -1), keepdim=True)).abs().square().mean((0, 1)).flatten()[1:]
    )
    assert (
        power.std() / power.mean() < 1.5 * 12**-0.5
    )  # the mean of 12 exponential numbers, at every frequency alike
    assert abs(torch.corrcoef(noise.transpose(0, 1).flatten(1))[0, 1]) < 5 / (count / 3) ** 0.5
    shot = corrupt(grey(0.2), torch.arange(4), "shot_noise", 1, "224").double()
    assert abs(shot.var() / (0.2 / 60) - 1) < 0.05
    speckle = corrupt(grey(0.4), torch.arange(4), "speckle_noise", 2, "224").double()
    assert abs(speckle.std() / (0.4 * 0.2) - 1) < 0.02
    impulse = corrupt(grey(0.5), torch.arange(4), "impulse_noise", 5, "224")
    share = 0.27
    for value in (0, 1):
        assert abs((impulse == value).double().mean() - share / 2) < 5 * (share / 2 / count) ** 0.5


def test_fog_is_coarse_and_fills_its_range() -> None:
    heights = plasma(64, 3.0, np.random.RandomState(0))
    assert (heights.min(), heights.max()) == (0, 1)
    steps = np.abs(np.diff(heights, axis=0)).mean()
    assert (
        steps
        < 0.2 * np.abs(heights - np.random.RandomState(1).permutation(heights.ravel()).reshape(64, 64)).mean()
    )


def test_hsv_is_that_of_the_standard_library() -> None:
    image = np.random.RandomState(0).randint(0, 4, (20, 20, 3)) / 3  # with ties between channels
    made = np.stack(hsv(image), -1)
    expected = [[colorsys.rgb_to_hsv(*pixel) for pixel in row] for row in image]
    np.testing.assert_allclose(made, expected, atol=1e-12)
    np.testing.assert_allclose(rgb(*hsv(image)), image, atol=1e-12)


def test_glass_blur_copies_neighbours() -> None:
    """Of an image without slopes, severity 1 of version 32 hardly blurs, and moves pixels by at most one."""
    image = np.zeros((9, 9, 3))
    image[4, 4] = 1
    where = set()
    for seed in range(30):
        made = CORRUPTIONS["glass_blur"](image, 1, np.random.RandomState(seed), "32")
        where |= {tuple(place) for place in np.argwhere(made[..., 0] > 0.5).tolist()}
    assert (4, 4) in where
    assert len(where) > 3
    assert all(abs(row - 4) <= 3 and abs(column - 4) <= 3 for row, column in where)


def test_frost_adds_one_of_five_photographs() -> None:
    """0.65 of black and 0.4 of a photograph that is as light as its number times 10."""
    made = corrupt(torch.zeros(40, 3, 8, 8), torch.arange(40), "frost", 1, "224") * 255
    assert set(made.round().unique().tolist()) == {4, 8, 12, 16, 20}
    assert all(len(image.unique()) == 1 for image in made)


def test_frost_of_the_small_version_is_every_fifth_pixel(photographs: Path) -> None:
    levels = np.arange(300 * 340 * 3).reshape(300, 340, 3) % 251
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.png", "frost5.png"):
        Image.fromarray(levels.astype(np.uint8)).save(photographs / name)
    forget()
    np.testing.assert_array_equal(frost_module._read("frost1.png", "32"), levels[2::5, 2::5])
    np.testing.assert_array_equal(frost_module._read("frost1.png", "224"), levels)


def test_photographs_are_enlarged_where_images_are_larger_than_they() -> None:
    for size in ((100, 100), (400, 20), (20, 900), (1000, 1000)):
        for photograph in frost_module.photographs("224", *size):
            assert photograph.shape[0] > size[0]
            assert photograph.shape[1] > size[1]
    assert frost_module.photographs("224", 100, 100)[0].shape == (299, 341, 3)
    assert frost_module.photographs("224", 400, 20)[0].shape[0] == 401


def test_frost_without_its_photographs_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    forget()
    with pytest.raises(ImportError, match=r"pip install \"paretune\[corruptions\]\""):
        corrupt(photos(), torch.arange(3), "frost", 1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"kind": "gausian_noise"}, ValueError, "did you mean 'gaussian_noise'"),
        ({"severity": 0}, ValueError, "severity must be a whole number from 1 to 5, got 0"),
        ({"severity": True}, ValueError, "got True"),
        ({"severity": 3.0}, ValueError, "got 3.0"),
        ({"version": "64"}, ValueError, "version must be '224', '32' or None"),
        ({"images": photos(3, 7, 16)}, ValueError, "at least 8 pixels a side, got (3, 3, 7, 16)"),
        ({"images": photos()[:, :1]}, ValueError, "got (3, 1, 16, 16)"),
        ({"images": photos() - 0.5}, ValueError, "before they are normalised"),
        ({"images": photos() * float("nan")}, ValueError, "must lie in [0, 1]"),
        ({"images": (photos() * 255).to(torch.uint8)}, TypeError, "got torch.uint8"),
        ({"ids": torch.arange(2)}, ValueError, "one for each of 3 images, got the shape (2,)"),
        ({"ids": torch.rand(3)}, TypeError, "ids must be a tensor of whole numbers"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"images": photos(), "ids": torch.arange(3), "kind": "fog", "severity": 1} | given
    with pytest.raises(error, match=re.escape(message)):
        corrupt(**arguments)  # type: ignore[arg-type]


def test_no_image_is_no_error() -> None:
    assert corrupt(photos()[:0], torch.arange(0), COMMON[0], 1).shape == (0, 3, 16, 16)

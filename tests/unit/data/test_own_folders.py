"""Folders as people have them: phones' photos, nested folders, damaged files, links, odd names."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from paretune.data.images import ImageData, load_data
from paretune.data.pixels import decoded
from tests.unit.data.test_images import noise, read_all, splits_of

CLASSES = ("cat", "dog")


def picture(seed: int, height: int = 12, width: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pets(root: Path, count: int = 4) -> None:
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(100 * label + number).save(root / name / f"{number}.png")


def by_row(data: ImageData) -> list[torch.Tensor]:
    """All images in the order of the source."""
    order = torch.cat([split.ids for split in splits_of(data).values()]).argsort()
    return list(read_all(data)[order])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_says(tmp_path: Path, orientation: int, suffix: str) -> None:
    pets(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(7, 12, 20).save(tmp_path / "cat" / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / "cat" / f"a.{suffix}") as image:
        upright = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)
    assert upright.shape[1:] == ((20, 12) if orientation > 4 else (12, 20))
    with Image.open(tmp_path / "cat" / f"a.{suffix}") as image:
        assert torch.equal(decoded(image), upright)


def test_sizes_are_those_of_upright_images(tmp_path: Path) -> None:
    """Eight photos of 20x12, some stored lying: all have one size, and one that is really lying has not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for label, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for number in range(3):
            picture(number, 20, 12).save(tmp_path / name / f"{number}.png")
        picture(label, 12, 20).save(tmp_path / name / "9.jpg", exif=exif)
    data = load_data(tmp_path)
    assert data.image_size == (20, 12)
    assert read_all(data).shape == (8, 3, 20, 12)
    picture(9, 12, 20).save(tmp_path / "cat" / "lying.jpg")
    with pytest.raises(
        ValueError, match=r"lying.jpg is 12x20, another one 20x12|is 20x12, another one 12x20"
    ):
        read_all(load_data(tmp_path))


def test_damaged_exif_does_no_harm(tmp_path: Path) -> None:
    class Odd(Image.Image):
        def getexif(self) -> Any:
            raise SyntaxError("not a TIFF file")

    image = picture(3)
    odd = Odd()
    odd.__dict__.update(image.__dict__)
    assert torch.equal(decoded(odd), decoded(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_eight_bits_becomes_three_channels(mode: str) -> None:
    image = picture(1).convert(mode)
    pixels = decoded(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_bits_than_eight_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="more than 8 bits per channel"):
        decoded(Image.new(mode, (4, 4)))


def test_images_may_lie_deeper_with_odd_names_and_suffixes(tmp_path: Path) -> None:
    pets(tmp_path)
    deeper = tmp_path / "cat" / "Süßes Fell" / "2024"
    deeper.mkdir(parents=True)
    names = ["Kätzchen 1.JPG", "b.JPeG", "c.TIF", "d.webp", "e.PNG", "f.bmp", "g.jfif"]
    for number, name in enumerate(names):
        picture(number).save(deeper / name, format="JPEG" if name.endswith("jfif") else None)
    for ignored in (".hidden.png", "notes.txt", "Thumbs.db", "._a.png"):
        (deeper / ignored).write_bytes(b"no image")
    for folder in (".thumbnails", "__MACOSX"):
        (tmp_path / "cat" / folder).mkdir()
        (tmp_path / "cat" / folder / "x.png").write_bytes(b"no image")
    data = load_data(tmp_path)
    assert torch.cat([split.labels for split in splits_of(data).values()]).bincount().tolist() == [11, 4]
    assert read_all(data).shape[0] == 15


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed_into_each_folder_once(tmp_path: Path) -> None:
    pets(tmp_path / "store")
    root = tmp_path / "root"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(tmp_path / "store" / "cat")
    for number in range(4):
        (root / "dog" / f"{number}.png").symlink_to(tmp_path / "store" / "dog" / f"{number}.png")
    (root / "dog" / "again").symlink_to(root / "dog")
    assert len(read_all(load_data(root))) == 8
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"1 of the 9 images .*gone.png \(it does not exist\)"):
        load_data(root)


def spoil(root: Path) -> list[str]:
    """Five files that are damaged where the beginning or the end shows it."""
    big = picture(5, 80, 80)
    big.save(root / "cat" / "cut.jpg")
    big.save(root / "cat" / "cut.webp")
    big.save(root / "dog" / "cut.png")
    for path in ("cat/cut.jpg", "cat/cut.webp", "dog/cut.png"):
        (root / path).write_bytes((root / path).read_bytes()[:-200])
    (root / "dog" / "page.jpg").write_text("<html>not found</html>")
    (root / "dog" / "empty.PNG").write_bytes(b"")
    return ["cut.jpg", "cut.webp", "cut.png", "page.jpg", "empty.PNG"]


def test_all_damaged_files_are_named_at_once(tmp_path: Path) -> None:
    pets(tmp_path)
    names = spoil(tmp_path)
    with pytest.raises(
        ValueError, match=r"cannot read 5 of the 13 images of .*skip_bad=True \(--skip-bad\)"
    ) as told:
        load_data(tmp_path, img_size=12)
    assert all(name in str(told.value) for name in names)
    assert str(told.value).count(".png") == 1  # the sound ones are not named


def test_damaged_files_may_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pets(tmp_path)
    before = load_data(tmp_path)
    names = spoil(tmp_path)
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path, skip_bad=True)
    assert "5 of the 13 images" in caplog.text
    assert all(name in caplog.text for name in names)
    assert (data.skipped, before.skipped) == (5, 0)
    assert data.fingerprint == before.fingerprint
    assert data.loaded_with is not None
    assert load_data(**data.loaded_with).fingerprint == data.fingerprint


def test_damage_in_the_middle_shows_when_it_is_read_or_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pets(tmp_path)
    jpeg = tmp_path / "cat" / "x.jpg"
    picture(5, 64, 64).save(jpeg, progressive=True)
    content = jpeg.read_bytes()
    jpeg.write_bytes(content[:1000] + b"\xff\xda\x00\x02" + content[1004:])
    data = load_data(tmp_path, img_size=12)
    with pytest.raises(
        ValueError, match=r"cannot read the image .*x\.jpg .*remove or replace it.*--skip-bad"
    ):
        read_all(data)
    with caplog.at_level(logging.WARNING):
        assert len(read_all(load_data(tmp_path, img_size=12, skip_bad=True))) == 8
    assert "1 of the 9 images" in caplog.text


def test_a_class_of_damaged_files_alone_is_named(tmp_path: Path) -> None:
    pets(tmp_path)
    (tmp_path / "yak").mkdir()
    (tmp_path / "yak" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image that can be read lies in the class folder .*yak"):
        load_data(tmp_path, skip_bad=True)


def test_all_empty_classes_are_named(tmp_path: Path) -> None:
    pets(tmp_path)
    (tmp_path / "owl").mkdir()
    (tmp_path / "yak").mkdir()
    (tmp_path / "yak" / "notes.txt").write_text("none yet")
    with pytest.raises(
        ValueError, match=r"no image .* lies in the class folder .*owl, .*yak; add some, or remove it"
    ):
        load_data(tmp_path)


def test_the_folder_above_the_classes_is_asked_for(tmp_path: Path) -> None:
    pets(tmp_path / "images")
    with pytest.raises(
        ValueError, match=r"only one class \(images\); if the classes are cat, dog, give .*images"
    ):
        load_data(tmp_path)


@pytest.mark.parametrize(
    "names", [("train", "val", "extra"), ("val", "test"), ("fold1", "fold2"), ("split_0", "split_1")]
)
def test_splits_are_not_mistaken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        pets(tmp_path / name)
    with pytest.raises(ValueError, match="its name is that of a split: rename it if it is a class"):
        load_data(tmp_path)


def test_given_parts_are_read_in_our_words_too(tmp_path: Path) -> None:
    for name, count in (("train", 6), ("select", 3), ("report", 4)):
        pets(tmp_path / name, count)
    assert [len(split) for split in splits_of(load_data(tmp_path)).values()] == [12, 6, 8]


def test_lazy_images_are_bit_for_bit_those_held_in_memory(tmp_path: Path) -> None:
    """What is decoded for each batch equals what is resized once, from the same bytes."""
    pixels = (noise(24, 20, 20, 3) * 255).to(torch.uint8)
    labels = torch.arange(24) // 12
    for number, image in enumerate(pixels):
        folder = tmp_path / CLASSES[labels[number]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{number:02}.png")
    for size in (None, 16, 33):
        lazy = load_data(tmp_path, img_size=size)
        held = ImageData.from_tensors(pixels.permute(0, 3, 1, 2), labels, CLASSES, img_size=size)
        for role, split in splits_of(lazy).items():
            images, of_class = split[:]
            assert torch.equal(split.ids, splits_of(held)[role].ids)
            assert torch.equal(images, splits_of(held)[role][:][0])
            assert torch.equal(of_class, splits_of(held)[role].labels)


def test_a_folder_holds_names_and_no_pixels(tmp_path: Path) -> None:
    pets(tmp_path, 20)
    data = load_data(tmp_path, img_size=224)
    assert len(pickle.dumps(data.train)) < 20_000

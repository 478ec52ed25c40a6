"""Augmentation: what libraries do, given the same draws; and nothing but seed and image decides what an image gets."""

import functools
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from PIL import Image, ImageOps
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from torch import Tensor, nn
from torchvision.transforms import v2

import paretune as pt
from paretune.data import (
    Augmented,
    AugMix,
    AutoAugment,
    Chain,
    ColorJitter,
    Crop,
    Custom,
    Flip,
    RandAugment,
    RandomResizedCrop,
    read_augmentation,
)
from paretune.data.sources import stored_source, usually_augmented

SEEDS = range(1000, 1400)
TEXTS = [
    "none",
    "flip",
    "crop",
    "Crop(3, padding_mode='reflect')",
    "flip+crop",
    "random_resized_crop",
    "ColorJitter(hue=0.1)",
    "randaugment",
    "autoaugment",
    "3a",
    "augmix",
    "colorjitter + flip + rand-m5-n1",
]


def photos(count: int = 6, height: int = 12, width: int = 10) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def numbered(height: int = 12, width: int = 10) -> Tensor:
    """One image whose pixels all differ, and are not black."""
    return torch.arange(1, 3 * height * width + 1).view(1, 3, height, width) / 1000


def seeded(transform: Any, image: Any, seed: int) -> Any:
    """What a transform of a library makes of an image after its random states were seeded."""
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])  # noqa: NPY002
    torch.manual_seed(seed)
    return transform(image)


@pytest.mark.parametrize("text", TEXTS)
def test_what_an_image_gets_depends_on_it_and_its_seed_alone(text: str) -> None:
    images, seeds = photos(), [5, 2**64 - 1, 7, 2**40, 0, 5]
    augmentation = read_augmentation(text)
    whole = augmentation(images, seeds)
    assert whole.shape == images.shape
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() <= whole.max() <= 1
    assert torch.equal(images, photos())  # what was given stays
    torch.manual_seed(9)
    random.seed(9)
    order = [3, 0, 5, 1, 4, 2]
    one_by_one = [augmentation(images[row : row + 1], [seeds[row]]) for row in order]
    assert torch.equal(torch.cat(one_by_one), whole[order])


@pytest.mark.parametrize("text", TEXTS)
def test_no_random_state_and_no_thread_is_used_up(text: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
        read_augmentation(text)(photos(), range(6))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_states_are_put_back_when_a_function_fails() -> None:
    def failing(image: Tensor) -> Tensor:
        torch.rand(1)
        raise KeyError("inside")

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"'failing'.* takes one image, .*it raised KeyError: 'inside'"):
        Custom(failing, "failing")(photos(), range(6))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("text", TEXTS[1:])
def test_seeds_make_a_difference(text: str) -> None:
    images = numbered().expand(40, -1, -1, -1)
    assert len({each.numpy().tobytes() for each in read_augmentation(text)(images, range(40))}) > 1


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_a_flip_is_torchvisions_as_often_as_it_says(p: float) -> None:
    images = numbered().expand(len(SEEDS), -1, -1, -1)
    flipped = v2.functional.horizontal_flip(images[:1])[0]
    made = Flip(p)(images, SEEDS)
    which = [torch.equal(each, flipped) for each in made]
    assert all(torch.equal(each, images[0]) or which[row] for row, each in enumerate(made))
    spread = 4 * (p * (1 - p) / len(SEEDS)) ** 0.5
    assert p - spread <= sum(which) / len(SEEDS) <= p + spread


@pytest.mark.parametrize(
    ("crop", "border"),
    [
        (Crop(2), (2, 2)),
        (Crop(0.25), (3, 2)),
        (Crop(2, padding_mode="reflect"), (2, 2)),
    ],
)
def test_a_crop_is_one_of_torchvisions_each_as_likely_as_the_others(
    crop: Crop, border: tuple[int, int]
) -> None:
    image, (vertical, horizontal) = numbered(), border
    padded = v2.functional.pad(image, [horizontal, vertical], padding_mode=crop.padding_mode)
    places = {
        v2.functional.crop(padded, top, left, 12, 10).numpy().tobytes(): (top, left)
        for top in range(2 * vertical + 1)
        for left in range(2 * horizontal + 1)
    }
    count = 100 * len(places)
    made = crop(image.expand(count, -1, -1, -1), range(count))
    found = [places[each[None].numpy().tobytes()] for each in made]
    for axis, width in enumerate(border):
        counts = np.bincount([place[axis] for place in found], minlength=2 * width + 1)
        assert len(counts) == 2 * width + 1
        chance = 1 / len(counts)
        assert np.abs(counts / count - chance).max() < 4 * (chance * (1 - chance) / count) ** 0.5
    assert abs(np.corrcoef(np.array(found).T)[0, 1]) < 4 / count**0.5


def test_an_eighth_is_four_of_32_pixels() -> None:
    images = photos(20, 32, 32)
    assert torch.equal(Crop()(images, range(20)), Crop(4)(images, range(20)))


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (RandomResizedCrop(), v2.RandomResizedCrop((12, 10), interpolation=v2.InterpolationMode.BICUBIC)),
        (
            RandomResizedCrop((0.3, 0.5), ratio=(1, 2)),
            v2.RandomResizedCrop(
                (12, 10), scale=(0.3, 0.5), ratio=(1, 2), interpolation=v2.InterpolationMode.BICUBIC
            ),
        ),
        (ColorJitter(), v2.ColorJitter(0.4, 0.4, 0.4)),
        (ColorJitter(0.1, contrast=0, saturation=0.3, hue=0.5), v2.ColorJitter(0.1, 0, 0.3, 0.5)),
    ],
)
def test_torchvisions_are_torchvisions(mine: Any, theirs: Any) -> None:
    images = photos()
    with torch.random.fork_rng():
        expected = [
            seeded(theirs, image, seed).clamp(0, 1) for image, seed in zip(images, SEEDS, strict=False)
        ]
    assert torch.equal(mine(images, SEEDS[: len(images)]), torch.stack(expected))


def hparams(height: int, width: int) -> dict[str, Any]:
    """As timm's training script gives them to all of its policies."""
    return {"translate_const": int(min(height, width) * 0.45), "img_mean": (128, 128, 128)}


def kept_bits(image: Image.Image, bits: int) -> Image.Image:
    return Image.fromarray((np.array(image).astype(int) & ~(2 ** (8 - bits) - 1)).astype(np.uint8))


@pytest.mark.some(5)
@pytest.mark.parametrize(
    ("text", "value", "theirs"),
    [
        ("rand-m9-mstd0.5-inc1", RandAugment(), rand_augment_transform),
        ("rand-m9-mstd0.5", RandAugment(std=0.5, increasing=False), rand_augment_transform),
        ("rand", RandAugment(10, std=0, increasing=False), rand_augment_transform),
        (
            "rand-m15-n3-p0.8-mstd101-mmax20-inc1",
            RandAugment(15, layers=3, p=0.8, std=101, most=20),
            rand_augment_transform,
        ),
        ("original-mstd0.5", AutoAugment(std=0.5), auto_augment_transform),
        ("originalr", AutoAugment("originalr"), auto_augment_transform),
        ("v0", AutoAugment("v0"), auto_augment_transform),
        ("v0r", AutoAugment("v0r"), auto_augment_transform),
        ("3a", AutoAugment("3a"), auto_augment_transform),
        ("augmix", AugMix(), augment_and_mix_transform),
        ("augmix-m5-w4-d2-a0.5", AugMix(5, width=4, depth=2, alpha=0.5), augment_and_mix_transform),
    ],
)
def test_timms_texts_are_timms(
    text: str, value: pt.data.Augmentation, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = 12, 10
    images = (photos(400, height, width) * 255).round() / 255
    transform = theirs(text, hparams(height, width))
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(), monkeypatch.context() as older:
        older.setattr(ImageOps, "posterize", kept_bits)  # newer versions of Pillow refuse to keep none
        expected = []
        for image, seed in zip(images, SEEDS, strict=False):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            made = np.array(seeded(transform, Image.fromarray(pixels), seed))
            expected.append(torch.tensor(made).permute(2, 0, 1) / 255)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    assert repr(read_augmentation(text)) == repr(value)
    assert torch.equal(value(images, SEEDS[: len(images)]), torch.stack(expected))
    assert not torch.equal(torch.stack(expected), images)


def test_draws_stay_the_same_for_good() -> None:
    """Else a run that was stopped could not go on with another version of NumPy."""
    chain = read_augmentation("flip+crop")
    middle = torch.zeros(1, 1, 9, 9)
    middle[..., 4, 3] = 1
    moved = chain.place(middle.expand(8, -1, -1, -1), range(8))
    assert moved is not None
    assert [tuple(place) for place in moved.nonzero()[:, 2:].tolist()] == [
        (3, 4),
        (5, 4),
        (4, 4),
        (5, 4),
        (4, 4),
        (4, 2),
        (5, 3),
        (5, 3),
    ]


@pytest.mark.parametrize("text", ["flip", "Crop(3)", "flip+crop", "crop+flip+Crop(1)", "none"])
def test_what_belongs_to_pixels_moves_with_them_and_back(text: str) -> None:
    chain, images = read_augmentation(text), numbered().repeat(50, 1, 1, 1)
    placed = chain.place(images, range(50))
    assert placed is not None
    assert torch.equal(placed, chain(images, range(50)))  # also what black comes into view is zero
    back, seen = chain.unplace(placed, range(50)), chain.place(torch.ones_like(images), range(50))
    assert back is not None
    assert seen is not None
    kept = chain.unplace(seen, range(50))
    assert kept is not None
    assert torch.equal(back, images * kept)  # all that was not cut off is where it was
    assert torch.equal(seen, (placed > 0).float())
    assert chain.moves_pixels == (text != "none")
    signed = torch.randn(50, 1, 12, 10)
    assert (
        (chain.place(signed, range(50)) * placed[:, :1]).sum()
        == pytest.approx(  # type: ignore[operator]
            float((signed * back[:, :1]).sum()), rel=1e-4
        )
    )


def test_a_mirrored_border_belongs_to_no_pixel() -> None:
    crop, ones = Crop(3, padding_mode="reflect"), torch.ones(50, 3, 12, 10)
    assert crop(ones, range(50)).min() == 1
    assert torch.equal(crop.place(ones, range(50)), Crop(3)(ones, range(50)))


def test_what_moves_no_pixels_and_what_moves_them_otherwise_say_so() -> None:
    images = photos()
    assert not ColorJitter().moves_pixels
    for move in (ColorJitter().place, ColorJitter().unplace):
        assert move(images, range(6)) is images
    for text in ("randomresizedcrop", "randaugment", "autoaugment", "augmix", "flip+randaugment+flip"):
        chain = read_augmentation(text)
        assert chain.moves_pixels
        assert chain.place(images, range(6)) is None
        assert chain.unplace(images, range(6)) is None
    assert Custom(torch.abs).place(images, range(6)) is None


def test_parts_of_a_chain_draw_by_themselves() -> None:
    images = numbered().expand(400, -1, -1, -1)
    mirrored = images[0].flip(-1)
    twice = sum(torch.equal(each, mirrored) for each in (Flip() + Flip())(images, range(400)))
    assert 160 < twice < 240  # never, if both drew the same
    whole = Chain((Flip(), Chain((Crop(2), Flip(0.1)))))
    assert whole == Flip() + Crop(2) + Flip(0.1) == Flip() + (Crop(2) + Flip(0.1))
    assert len(whole.parts) == 3


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_chain_prints_reads_back(text: str) -> None:
    chain = read_augmentation(text)
    assert read_augmentation(repr(chain)) == chain
    assert hash(read_augmentation(repr(chain))) == hash(chain)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mirror", "unknown name 'mirror'"),
        ("hflip", "did you mean Flip"),
        ("Flip(2)", r"p must lie in \[0, 1\], got 2"),
        ("Crop(0)", "padding must be a whole number of pixels from 1 on"),
        ("Crop(4.0)", "padding must be a whole number"),
        ("Crop(True)", "padding must be a whole number"),
        ("Crop(2, padding_mode='edge')", "padding_mode must be 'constant' or 'reflect'"),
        ("ColorJitter(hue=0.6)", "hue must be at least 0 and at most 0.5, got 0.6"),
        ("ColorJitter(-1)", "brightness must be at least 0"),
        ("RandomResizedCrop((0.5, 1.5))", "scale must be two numbers in ascending order, at most 1"),
        ("RandomResizedCrop(ratio=(2, 1))", "ratio must be two numbers in ascending order"),
        ("rand-m12", "magnitude must be a number, at least 0 and at most 10 .*timm's mmax"),
        ("rand-m9-tweights", "cannot read 'tweights' in 'rand-m9-tweights'; of timm's sections m, n, p"),
        ("original-m9", "cannot read 'm9'"),
        ("RandAugment(layers=0)", "layers must be a whole number from 1"),
        ("RandAugment(p=2)", "p must be a number, at least 0 and at most 1"),
        ("AutoAugment('imagenet')", "policy must be"),
        ("AugMix(depth=0)", "depth must be a whole number from 1"),
        ("AugMix(alpha=0)", "alpha must be above 0"),
        ("flip+", "cannot read"),
        ("flip+3", "cannot compute"),
    ],
)
def test_what_is_no_augmentation_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_augmentation(text)


def test_a_border_as_wide_as_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="padding=10 is no less than a side of 12x10 images"):
        Crop(10)(photos(), range(6))


class Silent(nn.Module):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, image: Tensor) -> Tensor:
        return image * self.strength


class Telling(Silent):
    def extra_repr(self) -> str:
        return f"strength={self.strength}"


def halved(image: Tensor) -> Tensor:
    return image / 2


def test_a_function_of_ones_own_is_seeded_for_each_image() -> None:
    def noisy(image: Tensor) -> Tensor:
        image += 0  # it may write into what it gets
        noise = torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
        return image / 2 + noise / 6

    images = photos()
    made = Custom(noisy, "noisy")(images, range(6))
    assert torch.equal(images, photos())
    assert torch.equal(made, torch.stack([Custom(noisy, "n")(images[i : i + 1], [i])[0] for i in range(6)]))
    assert len({float((each - image / 2).mean()) for each, image in zip(made, images, strict=True)}) == 6


@pytest.mark.parametrize(
    ("function", "called"),
    [
        (halved, f"{__name__}.halved"),
        (v2.ColorJitter(0.25), "ColorJitter(brightness=(0.75, 1.25))"),
        (
            v1.RandomErasing(0.3),
            "RandomErasing(p=0.3, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0, inplace=False)",
        ),
        (v2.Compose([Telling(0.5)]), "Compose( Telling(strength=0.5))"),
        (v2.Lambda(halved), "Lambda(halved, types=['object'])"),
    ],
)
def test_functions_have_the_name_that_tells_them_apart(function: Any, called: str) -> None:
    (part,) = read_augmentation(function).parts
    assert repr(part) == f"Custom({called!r})"
    assert part.to_dict() == {"name": "Custom", "called": called}
    assert part == Custom(v2.Identity(), called)
    assert hash(part) == hash(Custom(v2.Identity(), called))


@pytest.mark.parametrize(
    "function",
    [
        lambda image: image,
        functools.partial(halved),
        v2.Lambda(lambda image: image),
        v1.Lambda(halved),
        Silent(0.5),
        nn.Sequential(Silent(0.5)),
        v2.Compose([v2.RandomApply([Silent(0.5)])]),
        v1.Compose([Silent(0.5)]),
        Silent(0.5).forward,
    ],
)
def test_functions_that_nothing_tells_apart_need_a_name(function: Any) -> None:
    with pytest.raises(ValueError, match=r"needs a name, as .*Custom\(function, 'my-name'\)"):
        read_augmentation(function)
    assert repr(Custom(function, "mine")) == "Custom('mine')"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (v2.Normalize([0.5] * 3, [0.25] * 3), r"values from -\d.*leave Normalize out"),
        (v2.ToDtype(torch.uint8, scale=True), "torch.uint8 of shape .*divide bytes by 255"),
        (v2.Resize(4), r"torch.float32 of shape \(3, 4, 4\)"),
        (v2.ToPILImage(), "a Image"),
        (v2.GaussianNoise(sigma=float("nan"), clip=False), "values from nan to nan"),
    ],
)
def test_what_is_no_image_is_refused(function: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"must return one image, floats in \[0, 1\].*it gave {why}"):
        Custom(function, "mine")(photos(), range(6))


def test_an_interpolation_that_overshoots_by_its_rounding_is_clamped() -> None:
    assert Custom(lambda image: image + 1e-6, "over")(torch.ones(1, 3, 4, 4), [0]).max() == 1


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="is a function of one image, got 3"):
        read_augmentation(3)
    with pytest.raises(TypeError, match="a chain is made of augmentations"):
        Chain((halved,))  # type: ignore[arg-type]


def digits(limit: int = 60) -> pt.data.ImageData:
    return pt.load_data("digits", img_size=8, limit=limit)


def test_a_split_is_augmented_by_epoch_and_example_alone() -> None:
    data, chain = digits(), read_augmentation("Crop(2)+colorjitter")
    split = Augmented(data.train, chain, seed=3)
    rows = [*range(len(split))]
    first, labels = split[0, rows]
    assert torch.equal(labels, data.train.labels)
    parts = [split[0, rows[rank::2]][0] for rank in (1, 0)]
    assert torch.equal(parts[1], first[0::2])
    assert torch.equal(parts[0], first[1::2])
    assert not torch.equal(split[1, rows][0], first)
    assert not torch.equal(Augmented(data.train, chain, seed=4)[0, rows][0], first)
    # Another limit reorders nothing of what an example gets, which is known by its identity.
    more = digits(100).train
    again = Augmented(more, chain, seed=3)
    both = sorted({*data.train.ids.tolist()} & {*more.ids.tolist()})
    assert len(both) > 20
    mine, theirs = ([each.ids.tolist().index(one) for one in both] for each in (data.train, more))
    assert torch.equal(split[0, mine][0], again[0, theirs][0])
    assert torch.equal(Augmented(data.train, Chain(), 0)[0, rows][0], data.train[:][0])


def test_a_function_with_a_generator_of_its_own_is_refused() -> None:
    draw = np.random.default_rng(0)
    mine = Custom(lambda image: image.flip(-1) if draw.random() < 0.5 else image, "mine")
    with pytest.raises(ValueError, match=r"'mine'.* gives other pixels for the same image and seed"):
        Augmented(digits().train, Chain((mine,)), 0)


@pytest.mark.parametrize(
    ("name", "classes", "usual"),
    [
        ("pets", ["cat", "dog"], "flip+crop"),
        ("birds", ["left-handed", "right-handed"], "crop"),
        ("signs", ["turn_right", "stop"], "crop"),
        ("art", ["bright", "leftover"], "flip+crop"),
        ("svhn", ["0", "1", "2"], "crop"),
        ("grades", ["10", "11"], "crop"),
        ("letters", ["A", "b"], "crop"),
        ("FashionMNIST", ["Bag", "Coat"], "crop"),
    ],
)
def test_a_mirror_is_usual_where_it_changes_nothing_that_is_shown(
    name: str, classes: list[str], usual: str
) -> None:
    part = torch.zeros(2, 1, 4, 4), torch.arange(2)
    source = usually_augmented(stored_source(name, classes, {"train": part}))
    assert source.augmentation == usual
    read_augmentation(usual)


def test_data_says_what_its_training_images_get(tmp_path) -> None:
    assert digits().augmentation == "none"
    images, labels = torch.rand(12, 3, 4, 4), torch.arange(12) % 2
    assert pt.data.ImageData.from_tensors(images, labels, classes=["cat", "dog"]).augmentation == "none"
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(6):
            pixels = np.full((4, 4, 3), 20 * number + label, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    assert pt.load_data(tmp_path, img_size=4).augmentation == "flip+crop"
    pairs = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    assert pt.load_data(pairs, classes=["cat", "dog"], name="own").augmentation == "flip+crop"
    assert re.fullmatch("crop", pt.load_data(pairs, name="own").augmentation)

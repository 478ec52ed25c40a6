"""Colours change as torchvision or arithmetic says, and nothing moves."""

import colorsys

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from paretune.data import ImageData
from paretune.shifts.colour import ChannelSwap, Grey, Hue, Invert

IDS = torch.arange(2)


def photos() -> Tensor:
    return torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def test_grey_is_that_of_torchvision() -> None:
    made = Grey().change(photos(), IDS)
    torch.testing.assert_close(made, reference.rgb_to_grayscale(photos(), 3), rtol=0, atol=1e-6)
    assert torch.equal(made[:, 0], made[:, 2])


def test_a_hue_is_turned_as_the_standard_library_has_it() -> None:
    made = Hue(-75).change(photos(), IDS)
    for old, new in zip(photos()[0].flatten(1).T.tolist(), made[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*old)
        assert new == pytest.approx(colorsys.hsv_to_rgb((hue - 75 / 360) % 1, saturation, value), abs=1e-5)


def test_a_third_of_a_turn_makes_green_of_red() -> None:
    torch.testing.assert_close(Hue(120).change(photos(), IDS), photos()[:, [2, 0, 1]], rtol=0, atol=1e-5)
    torch.testing.assert_close(Hue(0).change(photos(), IDS), photos(), rtol=0, atol=1e-5)


def test_inverting_twice_changes_nothing() -> None:
    twice = Invert().change(Invert().change(photos(), IDS), IDS)
    torch.testing.assert_close(twice, photos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(Invert().change(photos(), IDS), reference.invert(photos()))


def test_channels_change_places() -> None:
    assert torch.equal(ChannelSwap().change(photos(), IDS), photos().flip(1))
    red, green, blue = photos().unbind(1)
    assert torch.equal(ChannelSwap("gbr").change(photos(), IDS), torch.stack([green, blue, red], 1))


def test_a_split_is_shifted_under_a_name() -> None:
    data = ImageData.from_tensors(torch.rand(60, 3, 8, 8), torch.arange(60) % 2, ["a", "b"])
    shifts = (Grey(), Hue(-90), Invert(), ChannelSwap(), ChannelSwap("grb"))
    made = {name: split for shift in shifts for name, split in shift.of(data.report).items()}
    assert [*made] == ["grey", "hue -90", "invert", "channel_swap bgr", "channel_swap grb"]
    assert [split.shift for split in made.values()] == [repr(shift) for shift in shifts]
    for split in made.values():
        images, labels = split[:]
        assert torch.equal(labels, data.report.labels)
        assert bool(((images >= 0) & (images <= 1)).all())


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="degrees must be a number from -180 to 180, got 200"):
        Hue(200)
    with pytest.raises(ValueError, match="order must be 'bgr', 'brg', 'gbr', 'grb' or 'rbg', got 'rgb'"):
        ChannelSwap("rgb")  # type: ignore[arg-type]

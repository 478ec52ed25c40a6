"""Images are turned, moved, enlarged and sheared as torchvision does, and exactly where whole pixels are meant."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from paretune.data import ImageData
from paretune.shifts import Shifts
from paretune.shifts.geometry import Rotation, Shear, Translation, Zoom

IDS = torch.arange(2)


def photos(height: int = 20, width: int = 14) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(20, 14), (15, 15), (9, 30)])
@pytest.mark.parametrize(
    ("shift", "arguments"),
    [
        (Rotation(30), {"angle": -30.0}),
        (Rotation(-100.5), {"angle": 100.5}),
        (Zoom(1.3), {"scale": 1.3}),
        (Zoom(0.6), {"scale": 0.6}),
        (Shear(25), {"shear": [25.0, 0.0]}),
    ],
)
def test_images_are_those_of_torchvision(
    shift: Any, arguments: dict[str, Any], size: tuple[int, int]
) -> None:
    images = photos(*size)
    given = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | arguments
    expected = reference.affine(images, **given, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(shift.change(images, IDS), expected, rtol=0, atol=2e-5)


def test_quarter_turns_and_whole_pixels_are_exact() -> None:
    images = photos(16, 16)
    torch.testing.assert_close(Rotation(90).change(images, IDS), images.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(Rotation(360).change(images, IDS), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(Zoom(1).change(images, IDS), images, rtol=0, atol=1e-6)
    moved = Translation(0.25, -0.5).change(images, IDS)
    torch.testing.assert_close(moved[..., :8, 4:], images[..., 8:, :-4], rtol=0, atol=1e-5)
    assert not moved[..., 8:, :].any()
    assert not moved[..., :4].any()


def test_enlarging_shows_the_middle() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[..., 2:6, 2:6] = 1
    assert Zoom(2).change(images, IDS)[..., 1:-1, 1:-1].min() == 1


def test_a_lean_to_the_right_moves_the_upper_end_to_the_right() -> None:
    images = torch.zeros(2, 3, 21, 21)
    images[..., 10] = 1
    rows = Shear(45).change(images, IDS)[0, 0].argmax(-1)
    assert rows[10] == 10
    assert rows[5] == 15
    assert rows[15] == 5


def test_what_comes_into_view_is_black_or_mirrored() -> None:
    images = torch.full((2, 3, 12, 12), 0.5)
    assert Rotation(45).change(images, IDS)[0, 0, 0, 0] == 0
    torch.testing.assert_close(Rotation(45, padding_mode="reflect").change(images, IDS), images)
    moved = Translation(0.25, padding_mode="reflect").change(photos(12, 12), IDS)
    torch.testing.assert_close(moved[..., :3], photos(12, 12)[..., :3].flip(-1), rtol=0, atol=1e-5)


def test_a_batch_changes_nothing_and_values_stay_in_range() -> None:
    images = photos()
    for shift in (Rotation(33), Translation(0.13, 0.2), Zoom(1.7), Shear(-20)):
        made = shift.change(images, IDS)
        assert made.min() >= 0
        assert made.max() <= 1
        torch.testing.assert_close(shift.change(images[1:], IDS[1:]), made[1:], rtol=0, atol=0)


def test_a_split_is_shifted_under_a_name_and_keeps_its_examples() -> None:
    data = ImageData.from_tensors(torch.rand(60, 3, 8, 8), torch.arange(60) % 2, ["a", "b"])
    names = [Rotation(30), Translation(0.1), Zoom(1.5, padding_mode="reflect"), Shear(-0.5)]
    made = [shift.of(data.report) for shift in names]
    assert [*map(list, made)] == [
        ["rotation 30"],
        ["translation 0.1 0"],
        ["zoom 1.5 reflect"],
        ["shear -0.5"],
    ]
    split = made[0]["rotation 30"]
    assert split.shift == "Rotation(30)"
    assert repr(names[2]) == "Zoom(1.5, padding_mode='reflect')"
    assert Shifts.read(", ".join(map(repr, names))) == tuple(names)
    assert torch.equal(split.ids, data.report.ids)
    torch.testing.assert_close(split[:5][0], Rotation(30).change(data.report[:5][0], IDS))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Rotation, {"degrees": float("nan")}, "degrees must be a number from -360 to 360, got nan"),
        (Translation, {"right": 3}, "right must be a number from -1 to 1, got 3"),
        (Translation, {"right": 0, "down": True}, "down must be a number"),
        (Zoom, {"factor": 0}, "factor must be a number from 0.01 to 100, got 0"),
        (Shear, {"degrees": 90}, "degrees must be a number from -89 to 89, got 90"),
        (
            Zoom,
            {"factor": 2, "padding_mode": "edge"},
            "padding_mode must be 'constant' or 'reflect', got 'edge'",
        ),
    ],
)
def test_what_is_wrong_is_named(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**arguments)

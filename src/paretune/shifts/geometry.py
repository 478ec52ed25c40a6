"""Geometric shifts: all images are turned, moved, enlarged or sheared about their centre, by bilinear interpolation.

Outside of the image is black, as in Engstrom et al. 2019, "Exploring the Landscape of Spatial Robustness"
(https://arxiv.org/abs/1712.02779, section 3), and in torchvision, or the image mirrored at its border.
"""

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from paretune._values import check_choices, shown
from paretune.shifts.changing import Changing

Affine = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class _Affine(Changing):
    """An affine map of the image plane.

    Args:
        padding_mode: what comes into view: ``"constant"`` is black, ``"reflect"`` the image mirrored at its border.
    """

    _: KW_ONLY
    padding_mode: Literal["constant", "reflect"] = "constant"

    def __post_init__(self) -> None:
        check_choices(self)

    @abstractmethod
    def source(self, height: int, width: int) -> Affine:
        """Where a pixel comes from: the map of its (x, y, 1) to (x, y), in pixels right of and below the centre."""

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        """All of them mapped."""
        height, width = images.shape[-2:]
        (xx, xy, x), (yx, yy, y) = self.source(height, width)
        # grid_sample has coordinates from -1 to 1 on either side.
        theta = [[xx, xy * height / width, 2 * x / width], [yx * width / height, yy, 2 * y / height]]
        grid = F.affine_grid(torch.tensor([theta], dtype=torch.float64), [1, 3, height, width], False)
        grid = grid.to(images).expand(len(images), -1, -1, -1)
        mode = "zeros" if self.padding_mode == "constant" else "reflection"
        return F.grid_sample(images, grid, "bilinear", mode, align_corners=False).clamp(0, 1)


@dataclass(frozen=True)
class Rotation(_Affine):
    """Turns images.

    Args:
        degrees: counter-clockwise.
        padding_mode: what comes into view: ``"constant"`` is black, ``"reflect"`` the image mirrored at its border.
    """

    degrees: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("degrees", self.degrees, -360, 360)

    def source(self, height: int, width: int) -> Affine:
        """Clockwise from where it ends."""
        turn = math.radians(self.degrees)
        return (math.cos(turn), -math.sin(turn), 0), (math.sin(turn), math.cos(turn), 0)


@dataclass(frozen=True)
class Translation(_Affine):
    """Moves images.

    Args:
        right: as a fraction of the width; negative moves to the left.
        down: as a fraction of the height; negative moves up.
        padding_mode: what comes into view: ``"constant"`` is black, ``"reflect"`` the image mirrored at its border.
    """

    right: float
    down: float = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("right", self.right, -1, 1)
        _check("down", self.down, -1, 1)

    def source(self, height: int, width: int) -> Affine:
        """Left of and above where it ends."""
        return (1, 0, -self.right * width), (0, 1, -self.down * height)


@dataclass(frozen=True)
class Zoom(_Affine):
    """Enlarges images, or shrinks them.

    Args:
        factor: above 1 enlarges.
        padding_mode: what comes into view: ``"constant"`` is black, ``"reflect"`` the image mirrored at its border.
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("factor", self.factor, 0.01, 100)

    def source(self, height: int, width: int) -> Affine:
        """Nearer to the centre where images are enlarged."""
        return (1 / self.factor, 0, 0), (0, 1 / self.factor, 0)


@dataclass(frozen=True)
class Shear(_Affine):
    """Shears images along their rows.

    Args:
        degrees: by which vertical lines lean; above 0 their upper end leans to the right.
        padding_mode: what comes into view: ``"constant"`` is black, ``"reflect"`` the image mirrored at its border.
    """

    degrees: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("degrees", self.degrees, -89, 89)

    def source(self, height: int, width: int) -> Affine:
        """Left of it in the upper half."""
        return (1, math.tan(math.radians(self.degrees)), 0), (0, 1, 0)


def _check(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {shown(value)}")

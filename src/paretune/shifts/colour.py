"""Shifts of colour: grey, turned hues, inverted, and channels in another order; the same for all images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from paretune._values import check_choices, shown
from paretune.shifts.changing import Changing


@dataclass(frozen=True)
class Grey(Changing):
    """Shades of grey, 0.2989 red + 0.587 green + 0.114 blue, as torchvision has it after ITU-R BT.601."""

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        """Three equal channels."""
        red, green, blue = images.unbind(1)
        grey = (0.2989 * red + 0.587 * green + 0.114 * blue).clamp(0, 1)
        return grey[:, None].expand_as(images).contiguous()


@dataclass(frozen=True)
class Hue(Changing):
    """Turns the hue of each pixel, as HSV has it; greys stay.

    Args:
        degrees: 120 turns red into green, green into blue and blue into red; from -180 to 180.
    """

    degrees: float

    def __post_init__(self) -> None:
        number = isinstance(self.degrees, int | float) and not isinstance(self.degrees, bool)
        if not (number and -180 <= self.degrees <= 180):
            raise ValueError(f"degrees must be a number from -180 to 180, got {shown(self.degrees)}")

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        """By torchvision."""
        from torchvision.transforms.v2 import functional

        turned: Tensor = functional.adjust_hue(images, self.degrees / 360)
        return turned.clamp(0, 1)


@dataclass(frozen=True)
class Invert(Changing):
    """The negative: each value becomes 1 minus itself."""

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        """The negatives."""
        return 1 - images


@dataclass(frozen=True)
class ChannelSwap(Changing):
    """Channels in another order, such as that of a camera or a library that gives blue first.

    Args:
        order: which channels become red, green and blue.
    """

    order: Literal["bgr", "brg", "gbr", "grb", "rbg"] = "bgr"

    def __post_init__(self) -> None:
        check_choices(self)

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        """Permuted."""
        return images[:, ["rgb".index(channel) for channel in self.order]]

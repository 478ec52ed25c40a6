"""The size of images in pixels: one number for squares, as most are, or (height, width)."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from paretune._values import MOST, shown

ImageSize = int | tuple[int, int]  # what checked_size returns is never a tuple of equal numbers


def checked_size(name: str, size: Any) -> ImageSize:
    """The size that the argument ``name`` gives, as one number where height and width are equal.

    Raises:
        ValueError: it is neither a whole number of pixels nor a pair of them.
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(map(_is_side, sides)):
        raise ValueError(
            f"{name} must be a whole number from 1 to {MOST}, in pixels, or (height, width); got {shown(size)}"
        )
    height, width = map(int, sides)
    return height if height == width else (height, width)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _is_side(side: Any) -> bool:
    return isinstance(side, int | np.integer) and not isinstance(side, bool) and 1 <= int(side) <= MOST


class Sides(tuple[int, int]):
    """Height and width as an option; reads ``"32,48"``."""

    @classmethod
    def read(cls, value: object) -> Self:
        """From a string or a list.

        Raises:
            ValueError: it is something else than two whole numbers.
        """
        items = value if isinstance(value, list | tuple) else str(value).strip("[]() ").split(",")
        texts = [str(item).strip() for item in items]
        if len(texts) != 2 or not all(
            text.isascii() and text.isdecimal() and len(text) < 20 for text in texts
        ):
            raise ValueError(f"a size is one number, or height and width as in 32,48; got {shown(value)}")
        return cls(map(int, texts))

"""What the corruptions share: their type, the two published versions, and the arithmetic of 8-bit images."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float64]  # (height, width, 3), in [0, 1]
Random = (
    np.random.RandomState
)  # the generator of the scripts, whose streams NumPy has frozen for good (NEP 19)
Version = Literal["224", "32"]
Function = Callable[[Image, int, Random, Version], Image]

VERSIONS: tuple[Version, ...] = get_args(Version)
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8  # pixels of the shorter side
HALFWAY = 112  # half of 224; ImageNet-C and CIFAR-10-C have nothing between 32 and 224


def version_for(height: int, width: int) -> Version:
    """The published version that images of this size get unless one is named: "32" below 112 pixels of the shorter side."""
    return "32" if min(height, width) < HALFWAY else "224"


def levels(image: Image) -> npt.NDArray[np.uint8]:
    """The nearest 8-bit image, of 256 levels."""
    return np.rint(image * 255).astype(np.uint8)


def from_levels(values: npt.NDArray[np.generic]) -> Image:
    """In [0, 1], of values from 0 to 255: whole ones come back exactly when they are multiplied by 255."""
    return values.astype(np.float64) / 255


def from_single(values: npt.NDArray[np.float32]) -> Image:
    """In [0, 1], of what is computed in single precision, which the scripts also multiply by 255 in single precision."""
    return from_levels(np.clip(values, 0, 1) * np.float32(255))

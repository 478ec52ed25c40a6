"""Blur: out of focus, through frosted glass, by motion, by zooming, and Gaussian."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from paretune.shifts.corruptions.base import Image, Random, Version, from_levels, from_single, levels
from paretune.shifts.corruptions.moving import motion_blurred, zoomed

_DEFOCUS = {  # radius of the disc, sigma of its edge
    "224": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "32": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
}
_GLASS = {  # sigma, largest move, rounds
    "224": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "32": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
}
_MOTION = {  # radius, sigma
    "224": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "32": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
}
_ZOOM = {  # end of the factors, which begin at 1, and their step
    "224": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "32": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
}
_GAUSSIAN = {"224": (1, 2, 3, 4, 6), "32": (0.4, 0.6, 0.7, 0.8, 1)}


def defocus_blur(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """The mean over a disc with a radius of 3 to 10 pixels (version 32: 0.3 to 1.5), reflected at the border."""
    kernel = _disc(*_DEFOCUS[version][severity - 1]).astype(np.float64)
    blurred = ndimage.correlate(image, kernel[..., None], mode="mirror")
    return np.asarray(np.clip(blurred, 0, 1))


def glass_blur(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Gaussian blur, pixels replaced by others near them, and the same blur again.

    In the scripts pixels seem to change places, but what they run copies the second over the first: both names are
    views of one array. The published images hold such copies, and so do these.
    """
    sigma, reach, rounds = _GLASS[version][severity - 1]
    blurred = (_smooth(image, sigma) * 255).astype(np.uint8)
    height, width = image.shape[:2]
    rows, columns = (np.arange(side - reach, reach, -1) for side in (height, width))
    places = (rows[:, None] * width + columns).ravel()
    source = np.arange(height * width).tolist()
    for _ in range(rounds):
        moves = rng.randint(-reach, reach, size=(len(places), 2))  # across, down
        others = places + moves[:, 1] * width + moves[:, 0]
        for place, other in zip(places.tolist(), others.tolist(), strict=True):
            source[place] = source[other]
    shuffled = blurred.reshape(-1, 3)[source].reshape(image.shape)
    return np.clip(_smooth(shuffled / 255, sigma), 0, 1)


def motion_blur(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Blur along a line at -45 to 45 degrees, 20 to 40 pixels long (version 32: 12 to 18): the one of ImageMagick.

    The package ``imagecorruptions`` leaves out what a line longer than the image would add, which darkens small images.
    """
    radius, sigma = _MOTION[version][severity - 1]
    return from_levels(motion_blurred(levels(image), int(radius), sigma, rng.uniform(-45, 45)))


def zoom_blur(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """The mean of the image and of enlarged ones, by up to 10 to 30 % (version 32: 5 to 25 %)."""
    end, step = _ZOOM[version][severity - 1]
    factors = np.arange(1, end, step)
    single = image.astype(np.float32)
    total = np.zeros_like(single)
    for factor in factors:
        total += zoomed(single, float(factor)).astype(np.float32)
    return from_single((single + total) / np.float32(len(factors) + 1))


def gaussian_blur(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Gaussian blur of 1 to 6 pixels (version 32: 0.4 to 1); the nearest pixel is repeated beyond the border."""
    return np.clip(_smooth(image, _GAUSSIAN[version][severity - 1]), 0, 1)


def _smooth(image: Image, sigma: float) -> Image:
    """``skimage.filters.gaussian`` of each channel."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4.0))


@lru_cache
def _disc(radius: float, sigma: float) -> npt.NDArray[np.float32]:
    """A disc of sum 1 with a softened edge (``disk`` in the scripts), with the roundings of OpenCV.

    They decide whether white stays white: its product with the sum of the kernel is cut down to 8 bits.
    """
    half, size = (8, 3) if radius <= 8 else (int(radius), 5)
    line = np.arange(-half, half + 1)
    disc = ((line[:, None] ** 2 + line**2) <= radius**2).astype(np.float32)
    disc /= disc.sum()
    soft = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    soft = (soft / soft.sum()).astype(np.float32)
    for _ in range(2):
        disc = disc.T
        padded = np.pad(disc, ((size // 2, size // 2), (0, 0)), mode="reflect").astype(np.float64)
        rows = [padded[start : start + len(disc)] for start in range(size)]
        middle = size // 2
        disc = (soft[middle] * rows[middle]).astype(np.float32)
        for off in range(1, middle + 1):
            disc = (disc + soft[middle + off] * (rows[middle + off] + rows[middle - off])).astype(np.float32)
    return disc

"""Weather: snow, frost and fog."""

import numpy as np
import numpy.typing as npt

from paretune.shifts.corruptions.base import Image, Random, Version, from_levels, levels
from paretune.shifts.corruptions.frost import photographs
from paretune.shifts.corruptions.moving import motion_blurred, zoomed

_SNOW = {  # mean and deviation of the flakes, their zoom, threshold, radius and sigma of their fall, share of the image
    "224": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "32": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
}
_FROST = {  # share of the image, share of the frost
    "224": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "32": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
}
_FOG = {  # thickness, decay from coarse to fine
    "224": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "32": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
}
_CELLS = {"224": 256, "32": 32}  # side of the map of fog


def snow(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Whitens the image and adds flakes, blurred along their fall by ImageMagick, and the same turned by 180 degrees."""
    mean, deviation, zoom, least, radius, sigma, share = _SNOW[version][severity - 1]
    single = image.astype(np.float32)
    flakes = zoomed(rng.normal(size=(*image.shape[:2], 1), loc=mean, scale=deviation), zoom)
    flakes[flakes < least] = 0
    falling = motion_blurred(
        (np.clip(flakes, 0, 1) * 255).astype(np.uint8), int(radius), sigma, rng.uniform(-135, -45)
    )
    grey = sum(np.float32(part) * single[..., i : i + 1] for i, part in enumerate((0.299, 0.587, 0.114)))
    white = np.maximum(single, grey * np.float32(1.5) + np.float32(0.5))
    pale = np.float32(share) * single + np.float32(1 - share) * white
    layer = falling / 255
    return np.clip(pale + layer + np.rot90(layer, 2), 0, 1)


def frost(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Adds a random part of one of five photographs of frost, in pixels of the photograph (version 32: of one fifth of it).

    The script has six and draws among the first five. A photograph that is not larger than the image on both sides is
    enlarged, no more than needed; that is so from 315 pixels (version 32: 63), beyond what the script can do.

    Raises:
        ImportError: the photographs are not installed.
    """
    of_image, of_frost = _FROST[version][severity - 1]
    height, width = image.shape[:2]
    photograph = photographs(version, height, width)[rng.randint(5)]
    top, left = rng.randint(0, photograph.shape[0] - height), rng.randint(0, photograph.shape[1] - width)
    part = photograph[top : top + height, left : left + width]
    return from_levels(np.floor(np.clip(of_image * levels(image) + of_frost * part, 0, 255)))


def fog(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Adds a fractal map and keeps the brightest value; the image shows a part of 256 by 256 pixels (version 32: 32).

    Images with a longer side get a map of the next power of two.
    """
    thickness, decay = _FOG[version][severity - 1]
    height, width = image.shape[:2]
    size = max(_CELLS[version], 1 << (max(height, width) - 1).bit_length())
    most = image.max()
    foggy = image + thickness * plasma(size, decay, rng)[:height, :width, None]
    return np.asarray(np.clip(foggy * most / (most + thickness), 0, 1))


def plasma(size: int, decay: float, rng: Random) -> npt.NDArray[np.float64]:
    """A random landscape by diamonds and squares, wrapped around, (size, size) in [0, 1] (``plasma_fractal`` of the script).

    Args:
        size: a power of two.
        decay: by which the differences shrink from one step to the next, which is half as wide.
        rng: draws the heights.
    """
    heights = np.zeros((size, size))
    step, wobble = size, 100.0

    def around(total: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = around(rows + np.roll(rows, -1, axis=1))
        centres = heights[half::step, half::step]
        corners = heights[::step, ::step]
        above = centres + np.roll(centres, 1, axis=0)
        heights[::step, half::step] = around(above + (corners + np.roll(corners, -1, axis=1)))
        beside = centres + np.roll(centres, 1, axis=1)
        heights[half::step, ::step] = around(beside + (corners + np.roll(corners, -1, axis=0)))
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return np.asarray(heights / heights.max())

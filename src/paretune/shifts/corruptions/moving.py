"""Zoom about the centre and blur along a line, which blurs and weather share."""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Taps = tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]


@lru_cache(maxsize=512)
def _taps(size: int, factor: float) -> Taps:
    """For each pixel of the zoomed side, the pixel before it (size,) and the weight of the pixel after that (size,).

    The places are those of ``scipy.ndimage.zoom(order=1)`` of the middle of the side, cut to its size about the middle.
    """
    inside = math.ceil(size / factor)
    start, zoomed = (size - inside) // 2, round(inside * factor)
    places = np.arange(zoomed) * ((inside - 1) / (zoomed - 1))
    trim = (zoomed - size) // 2
    places = np.clip(places[trim : trim + size], 0, inside - 1)
    before = np.minimum(places.astype(np.intp), inside - 2)
    return start + before, places - before


def zoomed(image: Floats, factor: float) -> npt.NDArray[np.float64]:
    """The middle of an image, enlarged by ``factor`` to the size of the image by linear interpolation.

    The script does so for squares (``clipped_zoom``); of other shapes each side is treated like the side of a square.

    Args:
        image: (height, width, channels), sides longer than ``factor``.
        factor: at least 1.
    """
    values = image.astype(np.float64, copy=False)
    for axis in (0, 1):
        before, weight = _taps(image.shape[axis], factor)
        weight = weight.reshape(-1, 1, 1) if axis == 0 else weight.reshape(1, -1, 1)
        values = (1 - weight) * values.take(before, axis) + weight * values.take(before + 1, axis)
    return values


def motion_blurred(
    image: npt.NDArray[np.uint8], radius: int, sigma: float, angle: float
) -> npt.NDArray[np.uint8]:
    """What ImageMagick 6 makes of an 8-bit image with ``-motion-blur`` (``MotionBlurImage``, 16 bits inside).

    Each pixel becomes the mean of itself and ``2 * radius`` pixels before it on a line, weighted by one half of a normal
    curve of ``sigma`` pixels. Beyond the border the nearest pixel of the image is repeated.

    Args:
        image: (height, width, channels).
        radius: in pixels.
        sigma: in pixels.
        angle: of the line, in degrees.
    """
    width = 2 * radius + 1
    steps = np.arange(width)
    kernel = np.exp(-(steps**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    columns, rows = (np.ceil(steps * way - 0.5).astype(int) for way in (across, down))
    padded = np.pad(image.astype(np.float64), ((width, width), (width, width), (0, 0)), mode="edge")
    height, breadth = image.shape[:2]
    blurred = np.zeros(image.shape)
    for weight, row, column in zip(kernel, rows, columns, strict=True):
        top, left = width + row, width + column
        blurred += weight * padded[top : top + height, left : left + breadth]
    deep = np.floor(blurred * 257 + 0.5)  # 16 bits, of which version 6.9.11 keeps the upper half
    return (deep // 257).astype(np.uint8)

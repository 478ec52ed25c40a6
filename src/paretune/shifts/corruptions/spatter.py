"""Spatter: drops of water or of mud on the lens.

The script draws the rim of drops with OpenCV: edges by Canny, the distance from them, an equalised histogram and a relief.
These steps are written here with NumPy and SciPy after OpenCV's definitions, to the last bit where they are of integers.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from paretune.shifts.corruptions.base import Image, Random, Version, from_single

_SPATTER = {  # mean and deviation of the liquid, its sigma, threshold, strength of water or sigma of mud, 1 for mud
    "224": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "32": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
}
_WATER = np.array([175, 238, 238]) / 255  # pale turquoise
_MUD = np.array([63, 42, 20]) / 255
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
_FARTHEST = 20  # pixels, where distances from edges are cut
# Steps of OpenCV's distance on a mask of 5 pixels, and their lengths in 1/65536 pixel: 1, 1.4 and 2.1969.
_STEPS = {(0, 1): 65536, (1, 1): 91750, (1, 2): 143976}

Levels = npt.NDArray[np.uint8]
Singles = npt.NDArray[np.float32]


def spatter(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Water at severities 1 to 3, mud at 4 and 5; the size of the drops is in pixels.

    Where an image is so small that no drop of water falls on it, the script would divide by zero; the image stays as it is.
    """
    mean, deviation, sigma, least, strength, mud = _SPATTER[version][severity - 1]
    single = image.astype(np.float32)
    liquid = rng.normal(size=image.shape[:2], loc=mean, scale=deviation)
    liquid = ndimage.gaussian_filter(liquid, sigma, mode="nearest", truncate=4.0)
    liquid[liquid < least] = 0
    if mud:
        cover = (liquid > least).astype(np.float32)
        cover = ndimage.gaussian_filter(cover, strength, mode="nearest", truncate=4.0)[..., None]
        cover[cover < 0.8] = 0
        return from_single(single * (1 - cover) + (_MUD * cover).astype(np.float32))
    drops = (liquid * 255).astype(np.uint8)
    shine = (drops * _rims(drops))[..., None]
    most = shine.max()
    if most == 0:
        return image
    return from_single(single + shine / most * np.float32(strength) * _WATER.astype(np.float32))


def _rims(drops: Levels) -> Singles:
    """How much each pixel shines, by how it lies to the edges of drops, (height, width) from 0 to 255."""
    away = _distance(_canny(drops, 50, 150))
    near = _equalised(_mean(np.minimum(away, _FARTHEST)).astype(np.uint8))
    relief = ndimage.correlate(near.astype(np.int64), _RELIEF, mode="mirror").clip(0, 255)
    return np.asarray(np.rint(_mean(relief.astype(np.float64))), np.float32)


def _mean(values: npt.NDArray[np.floating]) -> Singles:
    """``cv2.blur`` of 3 by 3."""
    total = ndimage.correlate(values.astype(np.float64), np.ones((3, 3)), mode="mirror")
    return np.asarray(total / 9, np.float32)


def _canny(image: Levels, low: int, high: int) -> npt.NDArray[np.bool_]:
    """``cv2.Canny``: edges of 3 by 3 Sobel filters by |dx| + |dy|, thinned, and kept where they touch strong ones."""
    values = image.astype(np.int64)
    across, down = (ndimage.sobel(values, axis=axis, mode="nearest") for axis in (1, 0))
    steepness = np.abs(across) + np.abs(down)
    padded = np.pad(steepness, 1)
    height, width = image.shape

    def beside(rows: int, columns: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
        y, x = np.ogrid[:height, :width]
        return np.asarray(padded[y + 1 + rows, x + 1 + columns])

    flat = np.abs(across) * 13573  # the tangent of 22.5 degrees, in 1/32768
    steep = flat + (np.abs(across) << 16)  # of 67.5 degrees
    rise = np.abs(down) << 15
    lean = np.where((across ^ down) < 0, -1, 1)
    thin = np.where(
        rise < flat,
        (steepness > beside(0, -1)) & (steepness >= beside(0, 1)),
        np.where(
            rise > steep,
            (steepness > beside(-1, 0)) & (steepness >= beside(1, 0)),
            (steepness > beside(-1, -lean)) & (steepness > beside(1, lean)),
        ),
    )
    edges = thin & (steepness > low)
    regions, count = ndimage.label(edges, np.ones((3, 3)))
    strong = np.zeros(count + 1, np.bool_)
    strong[regions[edges & (steepness > high)]] = True
    strong[0] = False
    return np.asarray(strong[regions])


def _distance(edges: npt.NDArray[np.bool_]) -> Singles:
    """``cv2.distanceTransform`` (DIST_L2, mask 5): the shortest way to an edge, or ``_FARTHEST`` where it is longer."""
    height, width = edges.shape
    cut = _FARTHEST << 16
    padded = np.full((height + 4, width + 4), cut)
    inner = padded[2:-2, 2:-2]
    inner[edges] = 0
    while True:
        before = inner.copy()
        for (y, x), length in _STEPS.items():
            for rows, columns in {
                (s * a, t * b) for a, b in ((y, x), (x, y)) for s in (-1, 1) for t in (-1, 1)
            }:
                other = padded[2 + rows : 2 + rows + height, 2 + columns : 2 + columns + width]
                np.minimum(inner, other + length, out=inner)
        if np.array_equal(before, inner):
            return (inner / 65536).astype(np.float32)


def _equalised(image: Levels) -> Levels:
    """``cv2.equalizeHist``."""
    counts = np.bincount(image.ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    others = image.size - int(counts[first])
    if not others:
        return image
    counts[first] = 0
    scale = np.float32(255) / np.float32(others)
    table = np.rint(np.cumsum(counts).astype(np.float32) * scale).astype(np.uint8)
    return np.asarray(table[image])

"""Elastic transform: a random affine map, and a smooth random displacement of each pixel."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from paretune.shifts.corruptions.base import Image, Random, Version, from_single

_ELASTIC = {  # size of the displacement, its sigma, moves of the corners of the affine map; in pixels
    # 244 is what the script has; its comment says that 224 was meant.
    "224": (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    "32": (
        (32 * 0, 32 * 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
}


def elastic_transform(image: Image, severity: int, rng: Random, version: Version) -> Image:
    """Three points about the centre move and the image with them, then each pixel by a smooth random field.

    The moves are in pixels and do not shrink with the image, which they distort more the smaller it is; the three points lie
    a third of the shorter side from the centre at every size.
    """
    size, sigma, most = _ELASTIC[version][severity - 1]
    height, width = image.shape[:2]
    y, x = height // 2, width // 2
    third = min(height, width) // 3
    # As in the script, rows stand where OpenCV expects columns; of a square that is the same triangle.
    points = np.array([[y + third, x + third], [y + third, x - third], [y - third, x - third]], np.float32)
    moved = points + rng.uniform(-most, most, size=points.shape).astype(np.float32)
    warped = _warped(image.astype(np.float32), points, moved)
    across, down = (
        ndimage.gaussian_filter(rng.uniform(-1, 1, size=(height, width)), sigma, mode="reflect", truncate=3)
        * size
        for _ in range(2)
    )
    rows = np.arange(height)[:, None] + down.astype(np.float32)
    columns = np.arange(width) + across.astype(np.float32)
    return from_single(_interpolated(warped, _reflected(rows, height), _reflected(columns, width)))


def _warped(
    image: npt.NDArray[np.float32], points: npt.NDArray[np.float32], moved: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """``cv2.warpAffine`` by the map of three points (x, y) to three others, with its grid of 1/32 pixel and REFLECT_101."""
    from_moved = np.linalg.solve(
        np.c_[moved.astype(np.float64), np.ones(3)], points.astype(np.float64)
    ).T  # (2, 3): the place in the image of each pixel of the warped one
    height, width = image.shape[:2]
    limit = 2.0**30  # of places so far outside that any is as good
    places = []
    for by_x, by_y, shift in from_moved:
        along = np.rint(np.clip(by_x * np.arange(width) * 1024, -limit, limit)).astype(np.int64)
        start = np.rint(np.clip((by_y * np.arange(height) + shift) * 1024, -limit, limit)).astype(np.int64)
        places.append(((start + 16)[:, None] + along) >> 5)  # in 1/32 pixel
    columns, rows = (place.astype(np.float32) / np.float32(32) for place in places)
    return _interpolated(image, rows, columns)


def _interpolated(
    image: npt.NDArray[np.float32], rows: npt.NDArray[np.floating], columns: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Values between pixels by bilinear interpolation, in the precision of the places; beyond the border, mirrored."""
    height, width = image.shape[:2]
    above, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, across = (
        (rows - above.astype(rows.dtype))[..., None],
        (columns - left.astype(rows.dtype))[..., None],
    )
    top, bottom = _mirrored(above, height), _mirrored(above + 1, height)
    first, last = _mirrored(left, width), _mirrored(left + 1, width)
    total = image[top, first] * ((1 - down) * (1 - across)) + image[top, last] * ((1 - down) * across)
    total = total + image[bottom, first] * (down * (1 - across))  # one by one, as OpenCV and SciPy add
    return np.asarray(total + image[bottom, last] * (down * across), np.float32)


def _reflected(places: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Places from -1 to ``size``, reflected at the outer sides of the first and the last pixel.

    Between -1 and 0 SciPy interpolated with the second pixel until version 1.6, which is how the sets were made.
    """
    around = places % (2 * size)
    return np.where(around >= size, 2 * size - 1 - around, around)


def _mirrored(places: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Whole numbers as indices from 0 to ``size - 1``, mirrored at the first and the last pixel, which are not repeated."""
    around = places % (2 * (size - 1))
    return np.minimum(around, 2 * (size - 1) - around)

"""The photographs of frost that the published corruption adds, read from the package ``imagecorruptions``.

They are those of the scripts, file by file. Nobody names who took them, so paretune does not ship them; a drawn frost would
be another corruption than the one that the mean corruption error averages over.
"""

from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from paretune.shifts.corruptions.base import Version

_PACKAGE = "imagecorruptions"
_NAMES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
Levels = npt.NDArray[np.uint8]


@lru_cache(maxsize=8)
def photographs(version: Version, height: int, width: int) -> tuple[Levels, ...]:
    """Five photographs, each (rows, columns, 3) and larger than (height, width).

    Args:
        version: "32" has every fifth pixel of them, which is what OpenCV's resizing by 0.2 picks.
        height: of the images that frost is added to.
        width: of the images.

    Raises:
        ImportError: the package that has them is not installed.
    """
    return tuple(_above(_read(name, version), height, width) for name in _NAMES)


def _above(photograph: Levels, height: int, width: int) -> Levels:
    """The photograph, enlarged by bicubic interpolation as far as it must be to be larger than (height, width)."""
    rows, columns = photograph.shape[:2]
    if rows > height and columns > width:
        return photograph
    factor = max((height + 1) / rows, (width + 1) / columns)
    size = (max(width + 1, round(columns * factor)), max(height + 1, round(rows * factor)))
    return np.asarray(PIL.Image.fromarray(photograph).resize(size, PIL.Image.Resampling.BICUBIC))


@lru_cache(maxsize=16)
def _read(name: str, version: Version) -> Levels:
    with PIL.Image.open(_folder() / name) as file:
        whole = np.asarray(file.convert("RGB"))
    if version == "224":
        return whole
    rows, columns = (round(side * 0.2) for side in whole.shape[:2])
    return whole[2::5, 2::5][:rows, :columns]


def _folder() -> Path:
    """Where the installed package has its photographs; it is not imported, for it needs libraries of its time."""
    try:
        package = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError:
        raise ImportError(
            "frost adds the published photographs of frost, which the package imagecorruptions has: "
            f'pip install "paretune[corruptions]", or nothing but the photographs with pip install --no-deps {_PACKAGE}; '
            "or leave frost out, and with it the mean corruption error, which is over all 15"
        ) from None
    return Path(str(package.locate_file(f"{_PACKAGE}/frost")))

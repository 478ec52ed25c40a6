"""Images on their way to a model: kept in memory or read from files, handed out in one size and in [0, 1]."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paretune.data.sizes import ImageSize, pair

# Resized images are kept in memory up to this many bytes a split; beyond, each fetch resizes its own batch.
# That takes 70 ms for 64 colour images from 32 to 224 pixels on one core, little beside an attack on them.
_RESIZED_BYTES = 1 << 30

# From positions within a split, int64 (batch,), to float32 images in [0, 1] of shape (batch, 3, height, width).
# Readers are partials of functions that can be imported, so that a data loader can send them to its workers.
Reader = Callable[[Tensor], Tensor]


class Pixels(Protocol):
    """All images of a source; the row of an image is its identity."""

    def shape_of(self, row: int) -> tuple[int, int]:
        """Height and width of one image as it is stored."""

    def reader(self, rows: Tensor, size: ImageSize, *, resize: bool) -> Reader:
        """Read ``rows`` (int64) at ``size``; without ``resize`` other sizes are refused."""


def fit(images: Tensor, size: ImageSize) -> Tensor:
    """Scale until ``size`` is just covered and cut out the centre: (..., h, w) in [0, 1] to (..., height, width).

    Bicubic with antialiasing, as the offline backbones were trained; its overshoot is clamped into [0, 1].
    """
    height, width = images.shape[-2:]
    rows, columns = pair(size)
    if (height, width) == (rows, columns):
        return images
    scale = max(rows / height, columns / width)
    shape = [max(rows, round(height * scale)), max(columns, round(width * scale))]
    images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    return images[..., top : top + rows, left : left + columns]


def _unit(images: Tensor) -> Tensor:
    """Float32 in [0, 1] from bytes, or from what already is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class StoredPixels:
    """Images in one tensor (n, 1 or 3, height, width), uint8 or float32 in [0, 1]."""

    images: Tensor

    def shape_of(self, row: int) -> tuple[int, int]:
        """Height and width, the same for all."""
        height, width = self.images.shape[-2:]
        return int(height), int(width)

    def reader(self, rows: Tensor, size: ImageSize, *, resize: bool) -> Reader:
        """A reader of a copy of ``rows``: bytes stay bytes until they are resized, grey stays one channel."""
        images = self.images[rows]
        count, channels = images.shape[:2]
        if self.shape_of(0) != pair(size) and 4 * count * channels * math.prod(pair(size)) <= _RESIZED_BYTES:
            resized = torch.empty(count, channels, *pair(size))
            for start in range(0, count, 256):  # in chunks, so that no second copy in floats is needed
                resized[start : start + 256] = fit(_unit(images[start : start + 256]), size)
            images = resized
        return partial(_read_stored, images, size)


def _read_stored(images: Tensor, size: ImageSize, rows: Tensor) -> Tensor:
    batch = fit(_unit(images[rows]), size)
    return batch.repeat(1, 3, 1, 1) if batch.shape[1] == 1 else batch


@dataclass(frozen=True)
class LazyPixels:
    """Images that are opened and decoded when a batch asks for them.

    Attributes:
        open_image: A PIL image, an array or a tensor by row, see :func:`decoded`.
        where: What to call the image of a row in an error.
        files: Opening reads the header of a file only, so that all sizes are checked before the first image is used.
    """

    open_image: Callable[[int], Any]
    where: Callable[[int], str]
    files: bool

    def image(self, row: int) -> Tensor:
        """The image of this row as it is stored: (1 or 3, height, width), bytes or floats in [0, 1].

        Raises:
            ValueError: It cannot be opened, or is no image.
        """
        try:
            return decoded(self.open_image(row))
        except Exception as error:  # Pillow's plugins raise anything on damaged files, data sets of users too
            way = (
                "; remove or replace it, or leave it out with skip_bad=True (--skip-bad)"
                if self.files
                else ""
            )
            raise ValueError(f"cannot read the image {self.where(row)} ({reason(error)}){way}") from error

    def shape_of(self, row: int) -> tuple[int, int]:
        """Height and width of the image of this row."""
        height, width = self.image(row).shape[-2:]
        return int(height), int(width)

    def reader(self, rows: Tensor, size: ImageSize, *, resize: bool) -> Reader:
        """A reader that opens the images of ``rows`` each time."""
        if self.files and not resize:
            for row in rows.tolist():
                with self.open_image(row) as image:
                    # Which of the sides is the height is known when the image is decoded and upright.
                    if sorted(image.size) != sorted(pair(size)):
                        raise self._other_size(row, image.height, image.width, size)
        return partial(self._read, rows, size, resize)

    def _read(self, rows: Tensor, size: ImageSize, resize: bool, positions: Tensor) -> Tensor:
        images = torch.empty(len(positions), 3, *pair(size))
        for out, row in zip(images, rows[positions].tolist(), strict=True):
            image = self.image(row)
            if not resize and image.shape[-2:] != pair(size):
                raise self._other_size(row, image.shape[-2], image.shape[-1], size)
            out.copy_(fit(_unit(image[None]), size)[0])
        return images

    def _other_size(self, row: int, height: int, width: int, size: ImageSize) -> ValueError:
        return ValueError(
            f"the image {self.where(row)} is {height}x{width}, another one {'x'.join(map(str, pair(size)))}; "
            "pass img_size= to bring all to one size"
        )


def decoded(image: Any) -> Tensor:
    """Pixels of what stands for an image: (1 or 3, height, width), bytes or float32 in [0, 1].

    Args:
        image: A PIL image, which is turned as its EXIF orientation says and loses its transparency; an array of NumPy
            (height, width) or (height, width, 1 or 3); or a tensor (height, width) or (1 or 3, height, width). Bytes, or
            floats in [0, 1].

    Raises:
        ValueError: It is none of these.
        OSError: A file is damaged; so says any other error of Pillow.
    """
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image))  # a copy, as memory of others may be read-only
        image = image.permute(2, 0, 1) if image.ndim == 3 else image
    if not isinstance(image, Tensor):
        return _of_pil(image)
    pixels: Tensor = image.detach().cpu()
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"an image has the shape (1 or 3, height, width), not {tuple(pixels.shape)}")
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise ValueError(f"an image holds bytes (uint8) or floats in [0, 1], not {pixels.dtype}")
    pixels = pixels.to(torch.float32)
    low, high = pixels.aminmax()
    if not (low >= 0 and high <= 1):  # as for NaN
        raise ValueError(
            f"its values go from {low:g} to {high:g}, not from 0 to 1: leave Normalize out, as backbones normalise by "
            "themselves, divide bytes by 255, or clamp what a bicubic Resize of tensors overshoots"
        )
    return pixels


def _of_pil(image: Any) -> Tensor:
    if not (hasattr(image, "mode") and hasattr(image, "convert")):
        raise ValueError(f"an image is a PIL image, an array or a tensor, not {type(image).__name__}")
    with image:
        check_depth(image)
        image.load()  # TIFF files are upright then
        upright = _upright(image)
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # in one step PIL would warn that the alpha is lost
        rgb = torch.from_numpy(np.array(upright.convert("RGB")))
    return rgb.permute(2, 0, 1)


def check_depth(image: Any) -> None:
    """Refuse a PIL image of more than 8 bits per channel.

    Raises:
        ValueError: It has more.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"it has more than 8 bits per channel (mode {image.mode!r}), so its range of values is not known: convert "
            "it to 8 bits"
        )


def _upright(image: Any) -> Any:
    """``PIL.ImageOps.exif_transpose`` that reads one tag only, so that damage to the others does no harm."""
    from PIL import Image

    try:
        orientation = image.getexif().get(0x0112)
    except Exception:
        orientation = None
    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def reason(error: BaseException) -> str:
    """What an error says, or its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__

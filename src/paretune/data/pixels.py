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
        open_image: A PIL image by row.
        where: What to call the image of a row in an error.
        cheap_to_open: Opening reads a header only, so that all images are checked before the first is used.
    """

    open_image: Callable[[int], Any]
    where: Callable[[int], str]
    cheap_to_open: bool

    def shape_of(self, row: int) -> tuple[int, int]:
        """Height and width of the image of this row."""
        with self._opened(row) as image:
            return int(image.height), int(image.width)

    def reader(self, rows: Tensor, size: ImageSize, *, resize: bool) -> Reader:
        """A reader that opens the files of ``rows`` each time."""
        if self.cheap_to_open:
            for row in rows.tolist():
                with self._opened(row) as image:
                    self._check(image, row, size, resize)
        return partial(self._read, rows, size, resize)

    def _read(self, rows: Tensor, size: ImageSize, resize: bool, positions: Tensor) -> Tensor:
        images = torch.empty(len(positions), 3, *pair(size))
        for out, row in zip(images, rows[positions].tolist(), strict=True):
            with self._opened(row) as image:
                self._check(image, row, size, resize)
                decoded = self._decoded(image, row)
            out.copy_(fit(_unit(decoded[None]), size)[0])
        return images

    def _opened(self, row: int) -> Any:
        try:
            return self.open_image(row)
        except (OSError, SyntaxError) as error:  # PIL reports some damaged files as a SyntaxError
            raise self._unreadable(row, error) from None

    def _decoded(self, image: Any, row: int) -> Tensor:
        """Bytes of shape (3, height, width)."""
        try:
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # in one step PIL would warn that the alpha is lost
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (OSError, SyntaxError) as error:
            raise self._unreadable(row, error) from None

    def _unreadable(self, row: int, error: Exception) -> ValueError:
        return ValueError(f"cannot read the image {self.where(row)} ({error}); remove or replace it")

    def _check(self, image: Any, row: int, size: ImageSize, resize: bool) -> None:
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"the image {self.where(row)} has more than 8 bits per channel (mode {image.mode!r}), so its "
                "range of values is not known; convert it to 8 bits"
            )
        height, width = pair(size)
        if not resize and (image.height, image.width) != (height, width):
            raise ValueError(
                f"the image {self.where(row)} is {image.height}x{image.width}, another one {height}x{width}; "
                "pass img_size= to bring all to one size"
            )

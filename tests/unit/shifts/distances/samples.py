"""Small samples, as pairs and as splits."""

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.data import ImageSplit
from paretune.data.images import ImageData
from paretune.shifts.distances.base import Pair, squared_distances

Floats = NDArray[np.float64]


def pair(a: Floats, b: Floats, labels_a: object = None, labels_b: object = None) -> Pair:
    """Of points (examples, dimensions); one class where no labels are given."""
    labels = [
        np.zeros(len(points), np.int64) if given is None else np.asarray(given)
        for points, given in ((a, labels_a), (b, labels_b))
    ]
    rows = np.arange(len(a) + len(b))
    return Pair(
        squared_distances(np.concatenate([a, b])), np.concatenate(labels), rows[: len(a)], rows[len(a) :]
    )


def labelled(
    n: int, seed: int, shift: float = 0.0, classes: int = 2, dimensions: int = 3
) -> tuple[Floats, NDArray[np.int64]]:
    """Gaussian classes around the corners of a simplex."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    points = generator.standard_normal((n, dimensions)) + 3 * np.eye(classes, dimensions)[labels] + shift
    return points, labels


def split(
    images: torch.Tensor | Floats, labels: object, ids: object = None, classes: tuple[str, ...] | None = None
) -> ImageSplit:
    """Of images (examples, 3, height, width), or of numbers (examples, dimensions) as images that are so wide."""
    pixels = torch.as_tensor(images).float()
    if pixels.ndim == 2:
        pixels = pixels[:, None, None, :].expand(-1, 3, 1, -1)
    numbers = torch.arange(len(pixels)) if ids is None else torch.as_tensor(ids)
    return ImageSplit(
        torch.as_tensor(labels), numbers, lambda rows: pixels[rows], f"{float(pixels.sum())}", classes
    )


def data(images: torch.Tensor, labels: torch.Tensor) -> ImageData:
    """In three splits."""
    return ImageData.from_tensors(images, labels)

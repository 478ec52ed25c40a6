"""Changed images of a test set in arrays, in its order: CIFAR-10-C and CIFAR-100-C as they are published."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paretune.data.image_split import ImageSplit
from paretune.data.pixels import fit
from paretune.shifts.base import Shift
from paretune.shifts.corruptions import SEVERITIES


@dataclass(frozen=True)
class Arrays(Shift):
    """The images of the split as ``path`` has them, under names such as ``"fog 3"``; bits pair with the clean ones.

    ``path/fog.npy`` holds bytes (5 n, height, width, 3): the n images of the official test set in its order, at severities 1
    to 5 one after the other; ``path/labels.npy`` their classes (Hendrycks and Dietterich 2019,
    https://arxiv.org/abs/1903.12261). Labels must be those of the split, example by example, so that another order is
    refused as far as classes tell.

    Args:
        path: the folder.
        kinds: names of the arrays; None for all.
        severities: from 1 to 5.
    """

    path: str | Path
    _: KW_ONLY
    kinds: Sequence[str] | None = None
    severities: Sequence[int] = SEVERITIES

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        if self.kinds is not None:
            object.__setattr__(self, "kinds", tuple(self.kinds))
        object.__setattr__(self, "severities", tuple(self.severities))
        if not self.severities or not {*self.severities} <= {*SEVERITIES}:
            raise ValueError(f"severities must be some of 1 to 5, got {self.severities}")

    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        """One split a kind and severity.

        Raises:
            FileNotFoundError: there is no such folder, or it has no labels.
            ValueError: an array is missing or of another shape, or the images are not those of ``split`` in their order.
        """
        folder = Path(self.path)
        labels = _array(folder / "labels.npy")
        present = sorted(file.stem for file in folder.glob("*.npy") if file.stem != "labels")
        splits: dict[str, ImageSplit] = {}
        for kind in present if self.kinds is None else self.kinds:
            if kind not in present:
                near = difflib.get_close_matches(kind, present, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"{folder} has no {kind}.npy; {hint}It has {', '.join(present)}")
            file = folder / f"{kind}.npy"
            images = _array(file)
            if (
                images.dtype != np.uint8
                or images.ndim != 4
                or images.shape[3] != 3
                or len(images) % len(SEVERITIES)
            ):
                raise ValueError(
                    f"{file} must hold bytes (5 n, height, width, 3), and has {images.dtype} {images.shape}"
                )
            count = len(images) // len(SEVERITIES)
            _check_order(folder, labels, count, split)
            for severity in self.severities:
                change = _Stored(str(file), (severity - 1) * count, count)
                shift = replace(self, kinds=(kind,), severities=(severity,))
                splits[f"{kind} {severity}"] = split.changed(change, repr(shift))
        if not splits:
            raise ValueError(f"{folder} has no arrays beside labels.npy")
        return splits


@dataclass(frozen=True)
class _Stored:
    """The images of an array in the place of those that they were made of.

    Args:
        file: of the array.
        start: where its first image is.
        count: images of the test set.
    """

    file: str
    start: int
    count: int

    def __call__(self, images: Tensor, ids: Tensor) -> Tensor:
        rows = self.start + _places(ids, self.count)
        stored = torch.from_numpy(np.load(self.file, mmap_mode="r")[rows].copy())
        height, width = images.shape[-2:]
        return fit(stored.permute(0, 3, 1, 2).float() / 255, (height, width))


def _places(ids: Tensor, count: int) -> npt.NDArray[np.int64]:
    """Places in a test set of ``count`` images of identities over all images, of which those to train on come first.

    Those of CIFAR, 50,000, are a multiple of the 10,000 of the test set; where they are not, labels differ.
    """
    places: npt.NDArray[np.int64] = (ids % count).numpy()
    return places


def _array(file: Path) -> npt.NDArray[Any]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        array: npt.NDArray[Any] = np.load(file, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is no array of NumPy: {error}") from None
    return array


def _check_order(folder: Path, labels: npt.NDArray[Any], count: int, split: ImageSplit) -> None:
    """Refuse labels that are not those of the split, example by example."""
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or len(labels) not in (count, len(SEVERITIES) * count)
    ):
        raise ValueError(
            f"{folder / 'labels.npy'} must hold the classes of {count} images, once or for each severity; it has "
            f"{labels.dtype} {labels.shape}"
        )
    blocks = labels.reshape(-1, count)
    places = _places(split.ids, count)
    wrong = np.flatnonzero((blocks[:, places] != split.labels.numpy()).any(0))
    if len(wrong) or len({*places.tolist()}) < len(places):
        said = "has fewer images than the split"
        if len(wrong):
            first = int(wrong[0])
            theirs = blocks[:, places[first]].tolist()
            said = f"has the class {theirs[0]} in place {places[first]}, where the data has {int(split.labels[first])}"
        raise ValueError(
            f"{folder} {said}: its images are in another order, or of another data set or split; its arrays go with the "
            "official test set in the order that it is published in"
        )

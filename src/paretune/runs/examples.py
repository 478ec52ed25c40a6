"""Whom the report split shows: the label of each example, and pictures of a few before and after the attack.

One file of a run, ``examples.safetensors``, holds both, so that what is told of classes and images needs neither the data
nor the model again. The labels are there from the first evaluation point on, the pictures from the last.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.runs import disk
from paretune.runs.rows import OTHERWISE, load_packed, pack

EXAMPLES = "examples.safetensors"
_ARRAYS = ("places", "clean", "attacked", "predicted", "confidence")


@dataclass(frozen=True, eq=False)
class Pictures:
    """A few report examples as one attack left them, exactly the pixels that the model was given.

    Args:
        step: of the evaluation point.
        attack: its call, as the row of that point has it.
        places: where the examples are in the report split, int64, shape ``(images,)``.
        clean: float32 in [0, 1], shape ``(images, channels, height, width)``.
        attacked: likewise; the clean image again where the model is wrong on it, as such are not attacked.
        predicted: classes of the clean and of the attacked images, int64, shape ``(2, images)``.
        confidence: softmax of these, float32 in [0, 1], shape ``(2, images)``.
    """

    step: int
    attack: str
    places: NDArray[np.int64]
    clean: NDArray[np.float32]
    attacked: NDArray[np.float32]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Examples:
    """What a run keeps of the examples that it was measured on.

    Args:
        report_id: fingerprint of the report split, as the rows have it.
        classes: name of each class.
        labels: of the report split, int64, shape ``(examples,)``.
        pictures: of the last evaluation point; None of a run that has not come to it, or of images that are too large.
    """

    report_id: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    pictures: Pictures | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return _digest(*self._contents())

    def write(self, directory: Path) -> None:
        """Put it into the run ``directory``, in the place of what was kept before."""
        tensors, notes = self._contents()
        content = pack(tensors, notes | {"digest": _digest(tensors, notes)})
        disk.write_atomically(directory / EXAMPLES, lambda path: path.write_bytes(content))

    @classmethod
    def read(cls, directory: Path, stated: str | None = None) -> "Examples | None":
        """What :meth:`write` got; None where nothing was kept.

        Args:
            directory: of the run.
            stated: the digest of what is there, where the run says it.

        Raises:
            ValueError: the file is damaged, gone, or another than the run wrote.
        """
        file = directory / EXAMPLES
        if not file.exists() and stated is None:
            return None
        try:
            tensors, notes = load_packed(file)
            digest = notes.pop("digest", "")
            if digest != _digest(tensors, notes) or stated not in (None, digest):
                raise ValueError(f"{file} is damaged: its contents are not those that were written")
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{error}; {OTHERWISE}") from None
        pictures = None
        if "step" in notes:
            arrays = {name: tensors[name] for name in _ARRAYS}
            pictures = Pictures(int(notes["step"]), notes["attack"], **arrays)
        return cls(notes["report_id"], tuple(json.loads(notes["classes"])), tensors["labels"], pictures)

    def _contents(self) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        tensors: dict[str, NDArray[Any]] = {"labels": self.labels}
        notes = {"report_id": self.report_id, "classes": json.dumps(self.classes)}
        if self.pictures is not None:
            tensors |= {name: getattr(self.pictures, name) for name in _ARRAYS}
            notes |= {"step": str(self.pictures.step), "attack": self.pictures.attack}
        return tensors, notes


def _digest(tensors: dict[str, NDArray[Any]], notes: dict[str, str]) -> str:
    shapes = {name: (value.dtype.str, value.shape) for name, value in tensors.items()}
    sha = hashlib.sha256(json.dumps([notes, shapes], sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(tensors[name].tobytes())
    return sha.hexdigest()

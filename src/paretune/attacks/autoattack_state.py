"""What a long attack has done so far, on disk: killed at any moment, it goes on where it was.

A directory holds ``plan.json`` (what is being computed) and one small safetensors file for each finished batch of each
stage, written whole or not at all. Nothing is ever read back by unpickling.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from paretune._files import regular, save_tensors
from paretune._state import reading
from paretune.attacks.precision import Precision


@dataclass(frozen=True, eq=False)
class Outcome:
    """One finished batch of one stage.

    Args:
        rows: (solved,) int64, on the CPU: numbers in the set of the images that were solved.
        images: (solved, ...) float32: their adversarial images.
        seconds: wall time.
        forwards: images that went through the model.
        backwards: images whose gradient was computed.
        zero_gradients: images whose first gradient of a run was zero.
        first_gradients: images whose first gradient was looked at.
        precision: in which the model was searched.
    """

    rows: Tensor
    images: Tensor
    seconds: float
    forwards: int
    backwards: int
    zero_gradients: int
    first_gradients: int
    precision: str


class Journal:
    """The outcomes of a run.

    Args:
        path: a directory that is :func:`~paretune._state.claimed`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    @staticmethod
    def precision(path: str | Path) -> Precision | None:
        """The precision of the finished batches below ``path``; None if there is none."""
        for file in sorted(Path(path).glob("[0-9]*.safetensors")):
            with reading(file), safe_open(regular(file), framework="pt") as opened:
                return "bf16" if opened.metadata()["precision"] == "bf16" else "fp32"
        return None

    def read(self, stage: int, batch: int, places: Tensor, shape: torch.Size) -> Outcome | None:
        """The outcome of a finished batch, else None.

        Args:
            stage: number of the attack.
            batch: number of the batch in it.
            places: numbers in the set of the images that the attack had to solve.
            shape: of one image.

        Raises:
            ValueError: the file is damaged, or of other images; the message says how to go on.
        """
        file = self._file(stage, batch)
        if not file.exists():
            return None
        with reading(file), safe_open(regular(file), framework="pt") as opened:
            rows, images = opened.get_tensor("rows"), opened.get_tensor("images")
            if rows.dtype != torch.int64 or images.shape != (*rows.shape, *shape) or rows.ndim != 1:
                raise ValueError(f"rows {tuple(rows.shape)} and images {tuple(images.shape)} do not match")
            if len(rows.unique()) < len(rows) or not torch.isin(rows, places).all():
                raise ValueError("its rows are not some of its batch, each once")
            if not images.is_floating_point() or not ((images >= 0) & (images <= 1)).all():
                raise ValueError("its images are not in [0, 1]")
            counts = json.loads(opened.metadata()["counts"])
            return Outcome(rows, images, precision=opened.metadata()["precision"], **counts)

    def write(self, stage: int, batch: int, outcome: Outcome) -> None:
        """Keep the outcome of a batch."""
        names = ("seconds", "forwards", "backwards", "zero_gradients", "first_gradients")
        metadata = {
            "precision": outcome.precision,
            "counts": json.dumps({name: getattr(outcome, name) for name in names}),
        }
        save_tensors(self._file(stage, batch), {"rows": outcome.rows, "images": outcome.images}, metadata)

    def _file(self, stage: int, batch: int) -> Path:
        return self._path / f"{stage:02d}-{batch:06d}.safetensors"


def digest(*tensors: Tensor) -> str:
    """Identifies tensors by their shapes and bytes."""
    made = hashlib.sha256()
    for tensor in tensors:
        made.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        for part in torch.split(tensor.detach(), 256):
            made.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:32]

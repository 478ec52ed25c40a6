"""What a long attack has done so far, on disk: killed at any moment, it goes on where it was.

A directory holds ``plan.json`` (what is being computed) and one small safetensors file for each finished batch of each
stage, written whole or not at all. Nothing is ever read back by unpickling.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paretune.attacks.copy.precision import Precision
from paretune.attacks.state import keep, reading
from paretune.attacks.threats import Threat


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
        path: a directory that is :func:`~paretune.attacks.state.claimed`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    @staticmethod
    def precision(path: str | Path) -> Precision | None:
        """The precision of the finished batches below ``path``; None if there is none."""
        for file in sorted(Path(path).glob("[0-9]*.safetensors")):
            with reading(file) as (_, notes):
                return "bf16" if notes["precision"] == "bf16" else "fp32"
        return None

    def read(self, stage: int, batch: int, places: Tensor, images: Tensor, threat: Threat) -> Outcome | None:
        """The outcome of a finished batch, else None.

        Args:
            stage: number of the attack.
            batch: number of the batch in it.
            places: numbers in the set of the images that the attack had to solve.
            images: the clean images of the whole set.
            threat: of the attack.

        Raises:
            ValueError: the file is damaged, of other images, or what it holds is not what such an attack can find; the
                message says how to go on.
        """
        file = self._file(stage, batch)
        if not file.exists():
            return None
        with reading(file) as (tensors, notes):
            rows, adversarial = tensors["rows"], tensors["images"]
            if (
                rows.dtype != torch.int64
                or rows.ndim != 1
                or adversarial.shape != (*rows.shape, *images.shape[1:])
            ):
                raise ValueError(
                    f"rows {tuple(rows.shape)} and images {tuple(adversarial.shape)} do not match"
                )
            if len({*rows.tolist()}) < len(rows) or not torch.isin(rows, places).all():
                raise ValueError("its rows are not some of its batch, each once")
            if adversarial.dtype != images.dtype:
                raise ValueError(f"its images are {adversarial.dtype}, not {images.dtype}")
            if not threat.allows(adversarial, images[rows.to(images.device)].to(adversarial.device)).all():
                raise ValueError(
                    f"its images are not all in [0, 1] and inside {threat!r} around the clean ones"
                )
            return Outcome(rows, adversarial, precision=notes["precision"], **json.loads(notes["counts"]))

    def write(self, stage: int, batch: int, outcome: Outcome) -> None:
        """Keep the outcome of a batch."""
        names = ("seconds", "forwards", "backwards", "zero_gradients", "first_gradients")
        metadata = {
            "precision": outcome.precision,
            "counts": json.dumps({name: getattr(outcome, name) for name in names}),
        }
        keep(self._file(stage, batch), {"rows": outcome.rows, "images": outcome.images}, metadata)

    def _file(self, stage: int, batch: int) -> Path:
        return self._path / f"{stage:02d}-{batch:06d}.safetensors"


def digest(*tensors: Tensor) -> str:
    """Identifies tensors by their shapes and bytes."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        for part in torch.split(tensor.detach(), 256):
            hashed.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:32]

"""What a long attack has done so far, on disk: killed at any moment, it goes on where it was.

A directory holds ``plan.json`` (what is being computed) and one small safetensors file for each finished batch of each
stage, written whole or not at all. Nothing is ever read back by unpickling.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paretune._files import write_atomically
from paretune._state import claim
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
        path: a directory, made if it does not exist.
        plan: what identifies the run: plain JSON values.
        probe: (some, classes) float32 logits of the first images, which recognise the model.

    Raises:
        ValueError: the directory belongs to another run, or is not a journal.
    """

    def __init__(self, path: str | Path, plan: dict[str, Any], probe: Tensor) -> None:
        claim(path, plan, probe)
        self._path = Path(path)

    @staticmethod
    def precision(path: str | Path) -> Precision | None:
        """The precision of the finished batches below ``path``; None if there is none."""
        for file in sorted(Path(path).glob("[0-9]*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                return "bf16" if opened.metadata()["precision"] == "bf16" else "fp32"
        return None

    def read(self, stage: int, batch: int) -> Outcome | None:
        """The outcome of a finished batch, else None."""
        file = self._file(stage, batch)
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as opened:
            counts = json.loads(opened.metadata()["counts"])
            return Outcome(
                opened.get_tensor("rows"),
                opened.get_tensor("images"),
                precision=opened.metadata()["precision"],
                **counts,
            )

    def write(self, stage: int, batch: int, outcome: Outcome) -> None:
        """Keep the outcome of a batch."""
        names = ("seconds", "forwards", "backwards", "zero_gradients", "first_gradients")
        metadata = {
            "precision": outcome.precision,
            "counts": json.dumps({name: getattr(outcome, name) for name in names}),
        }
        tensors = {"rows": outcome.rows.contiguous(), "images": outcome.images.cpu().contiguous()}
        write_atomically(self._file(stage, batch), lambda temporary: save_file(tensors, temporary, metadata))

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

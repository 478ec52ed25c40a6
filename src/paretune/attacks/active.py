"""Which images of a batch an attack still works on.

A solved image leaves. The batch shrinks only when what is left fits a smaller bucket, so that a few shapes
repeat: kernels are chosen, buffers allocated and graphs compiled per shape. Between two buckets the solved
images stay as padding, at most an eighth of the batch.
"""

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Lanes = TypeVar("Lanes", bound=Any)


def bucket(count: int) -> int:
    """The smallest allowed batch that holds ``count`` images: 0 to 16 exactly, then eight sizes per octave."""
    step = 1 << max(0, (count - 1).bit_length() - 4) if count > 16 else 1
    return -(-count // step) * step


class ActiveSet:
    """The lanes of a shrinking batch.

    Args:
        rows: (lanes,) positions of the lanes in the batch that the attack was given.

    Attributes:
        rows: positions of the lanes that are left, padding included.
        searching: (lanes,) False for padding.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.searching = torch.ones_like(rows, dtype=torch.bool)

    def retire(self, solved: Tensor) -> Tensor | None:
        """Take out the ``solved`` lanes (a mask).

        Returns:
            The lanes to keep, where the batch fits a smaller bucket: index everything that has one entry a lane
            with them (:func:`take`). None where the batch keeps its size. Empty when all are solved.
        """
        self.searching &= ~solved
        left = int(self.searching.sum())
        size = bucket(left)
        if size >= len(self.rows):
            return None
        # Searching lanes first, in their order, then as much padding as the bucket needs.
        keep = torch.argsort((~self.searching).to(torch.uint8), stable=True)[:size].sort().values
        self.rows, self.searching = self.rows[keep], self.searching[keep]
        return keep


def take(state: Lanes, lanes: Tensor) -> Lanes:
    """A dataclass of tensors that have one entry a lane along the first axis, reduced to ``lanes``."""
    taken: Lanes = replace(
        state, **{field.name: getattr(state, field.name)[lanes] for field in fields(state)}
    )
    return taken

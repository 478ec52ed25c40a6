"""Effective weights that are kept while nothing changes: at inference an adapted model then costs what the bare one does."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paretune.strategies.mechanics.base import Delta


@dataclass(frozen=True)
class _Kept:
    """A result with what it was computed from."""

    base: Tensor
    place: tuple[int, int]
    values: tuple[Tensor, ...]
    result: Tensor
    version: int | None


class KeptDelta(Delta):
    """A delta that on the CPU, in evaluation mode and without gradients, computes its result once.

    The result is used again while the base's tensor is the same and torch has counted no change of it, and while the
    delta's own parameters, which are small, have the same values. Training mode drops it. A GPU makes it anew each time,
    because there comparing values would take longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: _Kept | None = None

    @abstractmethod
    def effective(self, tensor: Tensor) -> Tensor:
        """What the delta makes of ``tensor``, of its shape."""

    def forward(self, tensor: Tensor) -> Tensor:
        """Parametrization: the effective tensor."""
        values: Any = tuple(self._parameters.values())
        if not self._keeps(tensor, values):
            return self.effective(tensor)
        place = (tensor.data_ptr(), tensor._version)
        kept = self._kept
        same = kept is not None and kept.base is tensor and kept.place == place
        if not (kept and same and kept.version == _version(kept.result) and _equal(kept.values, values)):
            result = self.effective(tensor)
            kept = _Kept(tensor, place, tuple(value.clone() for value in values), result, _version(result))
            self._kept = kept
        return kept.result

    def train(self, mode: bool = True) -> "KeptDelta":
        """Switch to training mode, which forgets the result, or to evaluation mode."""
        if mode:
            self._kept = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies compute their own."""
        return self.__dict__ | {"_kept": None}

    def _keeps(self, tensor: Tensor, values: tuple[Any, ...]) -> bool:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        # functional_call gives plain tensors for a single call.
        return (
            tensor.device.type == "cpu"
            and not tensor.is_inference()
            and all(isinstance(value, nn.Parameter) and value.device.type == "cpu" for value in values)
        )


def _equal(values: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, values, others))


def _version(tensor: Tensor) -> int | None:
    """Grows with each change in place; None where torch does not count them."""
    return None if tensor.is_inference() else tensor._version

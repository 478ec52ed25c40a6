"""Augmentations of one's own: any function of one image."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretune._values import shown
from paretune.data.augmentation import Augmentation
from paretune.data.transforms import borrowed

_SILENT = (nn.Module.extra_repr, nn.Module.__repr__)
_HOLDERS = ("_modules", "_parameters", "_buffers")  # other private names hold what follows from public ones
_ROUNDING = 1e-4  # how far an interpolation may overshoot [0, 1]; it is clamped


@dataclass(frozen=True)
class Custom(Augmentation):
    """What a user, or a library, does with one image: ``Custom(torchvision.transforms.v2.GaussianBlur(3))``.

    Args:
        function: from one image, float32 in [0, 1] of shape (3, height, width), to one of the same shape and range. It
            draws from the global random states of torch, NumPy or Python alone, which are seeded for each image.
        called: what the configuration of a run calls it; runs go on only with the same name. By default the ``repr``, or of
            a function its module and name.

    Raises:
        TypeError: ``function`` cannot be called.
        ValueError: it needs a name: a lambda, a function inside another, or an object whose ``repr`` does not show all that
            it holds.
    """

    function: Callable[[Tensor], Any] = field(compare=False)
    called: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                f"an augmentation of one's own is a function of one image, got {shown(self.function)}"
            )
        object.__setattr__(self, "called", self.called or _name_of(self.function))

    def __repr__(self) -> str:
        return f"Custom({self.called!r})"

    def to_dict(self) -> dict[str, Any]:
        """The name stands for the function."""
        return {"name": "Custom", "called": self.called}

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Each by itself.

        Raises:
            ValueError: the function fails, or returns something else than such an image.
        """
        changed = torch.empty_like(images)
        with borrowed() as seeded:
            for image, seed, into in zip(images, seeds, changed, strict=True):
                seeded(seed)
                into.copy_(self._one(image.clone()))  # it may write into what it gets
        return changed.clamp_(0, 1)

    def _one(self, image: Tensor) -> Tensor:
        try:
            output = self.function(image)
        except Exception as error:  # whatever somebody's function raises
            raise ValueError(
                f"augmentation {self!r} takes one image, a float32 tensor of shape {tuple(image.shape)} in [0, 1]; given "
                f"one, it raised {type(error).__name__}: {error}"
            ) from error
        if isinstance(output, Tensor) and output.shape == image.shape and output.is_floating_point():
            low, high = output.aminmax()
            if low >= -_ROUNDING and high <= 1 + _ROUNDING:  # not so for NaN
                return output
            got = f"values from {low:g} to {high:g}; leave Normalize out, as backbones normalise by themselves, and clamp"
        elif isinstance(output, Tensor):
            got = f"{output.dtype} of shape {tuple(output.shape)}; resize to the size of the image, and divide bytes by 255"
        else:
            got = f"a {type(output).__name__}; convert it with torchvision.transforms.v2.functional.to_image and to_dtype"
        raise ValueError(
            f"augmentation {self!r} must return one image, floats in [0, 1] of shape {tuple(image.shape)}; it gave {got}"
        )


def _name_of(function: Callable[[Tensor], Any]) -> str:
    """What tells a function from others, also in another process.

    Raises:
        ValueError: nothing does.
    """
    text = " ".join(repr(function).split())
    if re.search(r"\b0x[0-9a-fA-F]", text) and hasattr(function, "__qualname__"):
        text = f"{function.__module__}.{function.__qualname__}"
    unnamed = re.search(r"\b0x[0-9a-fA-F]|<lambda>|<locals>", text)
    if hidden := "what it does" if unnamed else _hidden(function, text, set()):
        raise ValueError(
            f"augmentation {shown(text)} needs a name, as its own does not show {hidden}: give Custom(function, 'my-name'), "
            "and another name whenever it changes, because runs with the same name go on from each other"
        )
    return text


def _hidden(value: Any, text: str, seen: set[int]) -> str:
    """Something of ``value`` that its ``repr``, which is in ``text``, does not show; empty if there is nothing."""
    if id(value) in seen or isinstance(value, type):
        return ""
    seen.add(id(value))
    if isinstance(value, MethodType):
        value = value.__self__
    if isinstance(value, FunctionType):
        return "" if value.__name__ in text and not value.__closure__ else "a function in it"
    if isinstance(value, Tensor | np.ndarray):
        return "the numbers in it"
    inside = vars(value) if hasattr(value, "__dict__") else value
    inside = dict(enumerate(inside)) if isinstance(inside, list | tuple) else inside
    if not isinstance(inside, dict):
        return ""
    silent = isinstance(value, nn.Module) and (type(value).extra_repr, type(value).__repr__) == _SILENT
    if silent and (names := [name for name in inside if name not in vars(nn.Module())]):
        return " and ".join(names)
    parts = [part for name, part in inside.items() if name in _HOLDERS or not str(name).startswith("_")]
    return next(filter(None, (_hidden(part, text, seen) for part in parts)), "")

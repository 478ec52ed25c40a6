"""What every attack and every measurement checks of images, labels and logits, and the random state attacks leave alone.

Images arrive from many pipelines: as bytes, normalised already, on another device. Each of these makes an
attack silently weak or strong, so each is an error that says what to do.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from paretune.attacks.waiting import extent, require
from paretune.backbones.backbone import check_scores
from paretune.backbones.random import borrowed_randomness

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_images(images: Tensor, device: torch.device) -> None:
    """Refuse what is not a batch of images in [0, 1] on ``device``.

    Raises:
        TypeError: ``images`` is not a tensor.
        ValueError: it has another shape, dtype, range or device, or holds NaN.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images must be a tensor (batch, channels, height, width), got {type(images).__name__}"
        )
    if images.ndim < 2:
        raise ValueError(
            f"images must have a batch axis and at least one more, got shape {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floating point in [0, 1], got {images.dtype}; "
            "for pixels 0 to 255: images.float() / 255"
        )
    if images.device != device:
        raise ValueError(
            f"images are on {images.device}, the model on {device}; move one: images.to({str(device)!r})"
        )
    if images.numel() == 0:
        return
    low, high = torch.aminmax(images.detach())
    require((low >= 0) & (high <= 1), lambda: _out_of_range(float(low), float(high)))


def _out_of_range(low: float, high: float) -> ValueError:
    if low != low or high != high:
        return ValueError("images hold NaN")
    if low >= -1e-3 and high <= 1 + 1e-3:
        advice = "if that is rounding: images.clamp(0, 1)"
    elif low >= 0 and high > 16:
        advice = "for pixels 0 to 255: images / 255"
    else:
        advice = "normalise inside the model, not before it: Backbone(module, mean=..., std=...)"
    return ValueError(f"images must lie in [0, 1], got values from {low:.9g} to {high:.9g}; {advice}")


def check_classes(name: str, classes: Tensor, images: Tensor) -> Tensor:
    """``classes`` (the argument ``name``) as int64 of shape (batch,), or an error that says what is wrong.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it has another shape, dtype or device, or a negative entry.
    """
    if not isinstance(classes, Tensor):
        raise TypeError(f"{name} must be an int64 tensor (batch,), got {type(classes).__name__}")
    if classes.dtype not in _INTEGERS:
        raise ValueError(f"{name} must be class indices of an integer dtype, got {classes.dtype}")
    if classes.shape != images.shape[:1]:
        raise ValueError(
            f"{name} must have shape ({len(images)},), one class for each image; got {tuple(classes.shape)}"
        )
    if classes.device != images.device:
        raise ValueError(f"{name} are on {classes.device}, the images on {images.device}")
    lowest, _ = extent(classes)
    if lowest < 0:
        raise ValueError(f"{name} must be class indices from 0, got {lowest}")
    return classes.detach().to(torch.int64)


def check_logits(logits: Tensor, batch: int, highest_class: int) -> None:
    """Refuse an output that is not (batch, classes) with ``highest_class`` among at least two classes.

    Raises:
        ValueError: the shape or the dtype is another, or a label or target is not below the number of classes.
    """
    check_scores(logits)
    if len(logits) != batch:
        raise ValueError(f"the model must return logits ({batch}, classes), got shape {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise ValueError(
            f"the model must return a logit for each of at least 2 classes, got shape {tuple(logits.shape)}; from one "
            "logit for yes make two: torch.cat([torch.zeros_like(logit), logit], dim=1)"
        )
    if highest_class >= logits.shape[1]:
        raise ValueError(
            f"labels and targets must be below the model's {logits.shape[1]} classes, got {highest_class}"
        )


def predicted(logits: Tensor) -> Tensor:
    """(batch,) the class of each image: the one with the largest logit.

    Raises:
        ValueError: a logit is NaN, which argmax would call the largest, or the largest is infinite, so that the class is
            the accident of an overflow. A class that is ruled out by minus infinity is none of these.
    """
    logits = logits.detach()
    wrong = ~logits.amax(dim=1).isfinite()
    if wrong.any():
        raise ValueError(
            f"the model returned NaN or an infinite largest logit for {int(wrong.sum())} of {len(logits)} images, which "
            "are in no class then"
        )
    return logits.argmax(dim=1)


@contextlib.contextmanager
def isolated_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random state for the body, and give it back as it was; one thread at a time.

    So a model that draws numbers itself, such as randomised smoothing, draws the same ones for the same
    ``seed``.
    """
    accelerated = device.type == "cuda"
    with borrowed_randomness([device] if accelerated else []):
        torch.default_generator.manual_seed(seed)
        if accelerated:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield

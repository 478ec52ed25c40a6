"""All corruptions by name, and a batch corrupted so that nothing but the example decides what it gets."""

import difflib
import zlib

import numpy as np
import torch
from torch import Tensor

from paretune._values import check_whole
from paretune.shifts.corruptions.base import (
    SMALLEST,
    VERSIONS,
    Function,
    Random,
    Version,
    levels,
    version_for,
)
from paretune.shifts.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from paretune.shifts.corruptions.digital import brightness, contrast, jpeg_compression, pixelate, saturate
from paretune.shifts.corruptions.elastic import elastic_transform
from paretune.shifts.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from paretune.shifts.corruptions.spatter import spatter
from paretune.shifts.corruptions.weather import fog, frost, snow

#: All corruptions by name, in the order of the paper.
CORRUPTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression),
        *(speckle_noise, gaussian_blur, spatter, saturate),
    )
}
#: The 15 that the mean corruption error averages over.
COMMON = tuple(CORRUPTIONS)[:15]
#: The four that were published to tune on.
EXTRA = tuple(CORRUPTIONS)[15:]


def corrupt(images: Tensor, ids: Tensor, kind: str, severity: int, version: Version | None = None) -> Tensor:
    """Corrupted copies; an image gets the same whatever batch, process or device it is in.

    The random numbers of an image follow from (id, kind, severity) alone. Images are rounded to 8 bits before, as those that
    the published sets were made of, and what comes out is cut down to 8 bits as theirs was (``np.uint8``). Their
    files hold one loss more: ImageNet-C was then stored as JPEG of quality 85, CIFAR-10-C was not.

    Args:
        images: (n, 3, height, width), float32 in [0, 1], at least 8 pixels a side.
        ids: (n,), whole numbers; identities of the examples.
        kind: a name in ``CORRUPTIONS``.
        severity: from 1 to 5.
        version: "224" or "32", whose numbers to take; None for that of the nearer size (:func:`version_for`).

    Returns:
        (n, 3, height, width), float32 in [0, 1], multiples of 1/255, on the device of ``images``.

    Raises:
        ImportError: ``"frost"``, and its photographs are not installed.
        TypeError: ``images`` or ``ids`` is no tensor of such numbers.
        ValueError: ``kind``, ``severity`` or ``version`` is none of those, images are too small or outside of [0, 1], or
            there is not one id for each.
    """
    check_corruption(kind, severity, version)
    _check(images, ids)
    version = version or version_for(*images.shape[-2:])
    function = CORRUPTIONS[kind]
    whole = levels(images.detach().cpu().permute(0, 2, 3, 1).numpy().astype(np.float64))
    corrupted = np.empty_like(whole)
    for row, (image, number) in enumerate(zip(whole, ids.tolist(), strict=True)):
        corrupted[row] = (
            function(image / 255, severity, generator(number, kind, severity), version) * 255
        ).astype(np.uint8)
    return (torch.from_numpy(corrupted).permute(0, 3, 1, 2).float() / 255).contiguous().to(images.device)


def generator(number: int, kind: str, severity: int) -> Random:
    """The random numbers of one image: nothing else is drawn from them."""
    entropy = (number % 2**64, zlib.crc32(kind.encode()), severity)
    return Random(np.random.MT19937(np.random.SeedSequence(entropy)))


def check_corruption(kind: str, severity: int, version: Version | None) -> None:
    """Raise unless there is such a corruption.

    Raises:
        ValueError: an argument is none of the choices.
    """
    if kind not in CORRUPTIONS:
        near = difflib.get_close_matches(str(kind), CORRUPTIONS, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}; got {kind!r}{hint}")
    check_whole("severity", severity, 1, 5)
    if version is not None and version not in VERSIONS:
        raise ValueError(f"version must be '224', '32' or None, which takes the nearer size; got {version!r}")


def _check(images: Tensor, ids: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"images must be a tensor of floats, got {getattr(images, 'dtype', type(images))}")
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST:
        raise ValueError(
            f"images must be (n, 3, height, width) of at least {SMALLEST} pixels a side, got {tuple(images.shape)}"
        )
    if len(images) and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError("images must lie in [0, 1]: corrupt them before they are normalised")
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be a tensor of whole numbers, got {getattr(ids, 'dtype', type(ids))}")
    if ids.shape != images.shape[:1]:
        raise ValueError(
            f"ids must be one for each of {len(images)} images, got the shape {tuple(ids.shape)}"
        )

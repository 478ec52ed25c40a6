"""The fused step of projected gradient descent, in one CUDA launch, with plain PyTorch as its truth and fallback.

A step turns the gradient of the loss into the next point of the attack and the next input of the network: sign or
direction, projection, normalisation, cast. In eager PyTorch that is eight kernels and more; here it is one (L-inf, and
L2 of small images) or two (L2 of large images).

When it helps: in eager mode, most of all with small models and images, whose time goes into launches; with L2, whose
norms need several passes; for random starts that are the same on each device. When it does not: inside
``torch.compile``, Inductor already makes one kernel with the least traffic out of a plain L-inf step, so there
``fused="auto"`` takes plain PyTorch; and a large model spends so little of its time here that it hardly
matters what computes the step.

The kernels are compiled for every supported architecture and run under a simulator of CUDA threads in the tests. They
have not yet been run on hardware: ``paretune selftest --gpu`` runs all checks on yours and prints a report.
"""

import functools
import logging
from typing import Literal

import torch
from torch import Tensor

from paretune.kernels import nvrtc, ops
from paretune.kernels.checks import MOST_NUMBERS, check_start, check_step
from paretune.kernels.reference import Norm

Fused = Literal["auto", "cuda", "torch"]

__all__ = ["Fused", "Norm", "available", "pgd_step", "random_start"]

_log = logging.getLogger(__name__)


def pgd_step(
    gradient: Tensor,
    images: Tensor,
    images_adv: Tensor,
    *,
    norm: Norm,
    step_size: float | Tensor,
    epsilon: float | Tensor,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    fused: Fused = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of PGD, inside the ball and [0, 1], and the network's next input.

    Results are detached and have the memory layout of ``images`` (channels last or contiguous); other arguments in
    another layout are copied first. Arguments are not changed. A NaN in the gradient leaves its pixel where it is
    with L-inf, as ``torch.sign`` does, and makes its whole image NaN with L2.

    Example:
        >>> import torch
        >>> images = torch.full((1, 3, 2, 2), 0.5)
        >>> images_adv, _ = pgd_step(-torch.ones_like(images), images, images, norm="Linf", step_size=0.1, epsilon=0.3)
        >>> round(images_adv.max().item(), 6)
        0.4

    Args:
        gradient: of the loss that is climbed, shape of ``images``; float32, bfloat16 or float16. With respect to the
            normalised input if ``mean`` and ``std`` are given, else to the images.
        images: clean images (batch, channels, height, width) in [0, 1], float32.
        images_adv: the present point, likewise.
        norm: ``"Linf"`` or ``"L2"``.
        step_size: length of the step in pixel units: a number, or a float32 tensor with one value or one an image.
            Negative walks downhill. A CUDA tensor is read by the kernel, so a replayed graph sees what is in it then.
        epsilon: radius in pixel units, in the same forms.
        mean: float32, one value a channel: the network's normalisation.
        std: likewise, above 0.
        out_dtype: type of the model input; None is float32.
        fused: ``"auto"`` takes the kernel on CUDA where it helps, ``"cuda"`` always (and says why if it cannot),
            ``"torch"`` never.

    Returns:
        The new point, float32, and ``((point - mean) / std).to(out_dtype)``, which is the point itself if nothing is
        to be done.

    Raises:
        TypeError: a tensor has the wrong type.
        ValueError: shapes, devices or names do not fit, or ``fused="cuda"`` cannot be done here.
        ImportError: ``fused="cuda"`` and NVRTC is not installed.
    """
    if mean is None and std is None and out_dtype is torch.float32:
        out_dtype = None
    elif mean is not None and std is not None and out_dtype is None:
        out_dtype = torch.float32
    gradient, images, images_adv = gradient.detach(), images.detach(), images_adv.detach()
    with torch.no_grad():
        if _use_kernel(fused, images, inductor_fuses=norm == "Linf"):
            step_size, epsilon = _as_tensor(step_size), _as_tensor(epsilon)
            moved, model_input = ops.pgd_step(
                gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype
            )
        else:
            check_step(gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype)
            moved, model_input = ops.reference_step(
                gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype
            )
    return moved, moved if out_dtype is None else model_input


def random_start(
    images: Tensor, epsilon: float | Tensor, seed: Tensor, *, norm: Norm, fused: Fused = "auto"
) -> Tensor:
    """A random point of the ball around each image, moved into [0, 1].

    L-inf: uniform in the ball, the same bits on every device and in every memory layout. L2: a uniform direction at
    a radius uniform in [0, epsilon], the same up to rounding. Number j of image b depends on the seed, on j and on b
    alone.

    Args:
        images: clean images (batch, channels, height, width) in [0, 1], float32.
        epsilon: radius in pixel units: a number, or a float32 tensor with one value or one an image.
        seed: int64 tensor with one value. On CUDA the kernel reads it from device memory, so a replayed graph sees a
            new seed.
        norm: ``"Linf"`` or ``"L2"``.
        fused: as in :func:`pgd_step`.

    Raises:
        TypeError: a tensor has the wrong type.
        ValueError: shapes, devices or names do not fit, or ``fused="cuda"`` cannot be done here.
        ImportError: ``fused="cuda"`` and NVRTC is not installed.
    """
    images = images.detach()
    with torch.no_grad():
        if _use_kernel(fused, images, inductor_fuses=False):
            start: Tensor = ops.random_start(images, _as_tensor(epsilon), seed, norm)
            return start
        check_start(images, epsilon, seed, norm)
        return ops.reference_start(images, epsilon, seed, norm)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@functools.cache
def available() -> str | None:
    """Why the CUDA kernels cannot be compiled here, or None if they can."""
    reason = nvrtc.missing()
    if reason is not None:
        _log.info("attack steps run in plain PyTorch: %s", reason)
    return reason


def _use_kernel(fused: str, images: Tensor, *, inductor_fuses: bool) -> bool:
    """Whether the CUDA kernel runs; ``inductor_fuses`` says whether plain PyTorch compiles to one kernel."""
    if fused not in ("auto", "cuda", "torch"):
        raise ValueError(f"fused must be 'auto', 'cuda' or 'torch', got {fused!r}")
    if fused == "torch":
        return False
    reason = None
    if not images.is_cuda:
        if fused == "auto":
            return False
        reason = f"needs images on a CUDA device, got {images.device}"
    elif images.numel() > MOST_NUMBERS * len(images):
        reason = f"needs images of at most {MOST_NUMBERS} numbers, got {tuple(images.shape)}"
    elif (missing := available()) is not None:
        if fused == "cuda":
            raise ImportError(f"fused='cuda' cannot be done here: {missing}; or pass fused='auto'")
        return False
    if reason is not None:
        if fused == "cuda":
            raise ValueError(f"fused='cuda' {reason}; or pass fused='auto'")
        return False
    # An opaque operator would keep Inductor from joining a step that it fuses with its neighbours.
    return fused == "cuda" or not (inductor_fuses and torch.compiler.is_compiling())


def _as_tensor(amount: float | Tensor) -> Tensor:
    """A number as a CPU tensor, which the launch passes by value: filling a CUDA tensor would be a launch more."""
    return amount if isinstance(amount, Tensor) else torch.tensor(amount, dtype=torch.float32)

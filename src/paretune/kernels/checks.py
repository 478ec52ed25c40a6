"""What the kernels accept. Only shapes, types and devices are looked at, so a check never waits for the GPU."""

import torch
from torch import Tensor

NORMS = ("Linf", "L2")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_NUMBERS = 2**31 - 1  # in one image: its index has 32 bits; the batch may hold more


def check_step(
    gradient: Tensor,
    images: Tensor,
    images_adv: Tensor,
    step_size: float | Tensor,
    epsilon: float | Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    norm: str,
    out_dtype: torch.dtype | None,
) -> None:
    """Raise on what a step cannot take.

    Raises:
        TypeError: a tensor has the wrong type.
        ValueError: shapes, devices or names do not fit.
    """
    _check_images(images, norm)
    _check_like("images_adv", images_adv, images)
    _check_like("gradient", gradient, images)
    if images_adv.dtype != torch.float32:
        raise TypeError(f"images_adv must be float32, got {images_adv.dtype}; convert it with .float()")
    if gradient.dtype not in DTYPES:
        raise TypeError(f"gradient must be float32, bfloat16 or float16, got {gradient.dtype}")
    _check_amount("step_size", step_size, images)
    _check_amount("epsilon", epsilon, images)
    if (mean is None) != (std is None):
        given, other = ("mean", "std") if std is None else ("std", "mean")
        raise ValueError(f"{given} needs {other}: they are the normalisation of the model's input")
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        if values.numel() != images.shape[1]:
            raise ValueError(
                f"{name} must have one value a channel ({images.shape[1]}), got {tuple(values.shape)}"
            )
        if values.dtype != torch.float32 or values.device != images.device:
            raise TypeError(
                f"{name} must be float32 on {images.device}, got {values.dtype} on {values.device}"
            )
    if mean is not None and out_dtype is None:
        raise ValueError("mean and std need out_dtype, the type of the model's input")
    if out_dtype is not None and out_dtype not in DTYPES:
        raise TypeError(f"out_dtype must be float32, bfloat16 or float16, got {out_dtype}")


def check_start(images: Tensor, epsilon: float | Tensor, seed: Tensor, norm: str) -> None:
    """Raise on what a random start cannot take; see :func:`check_step`."""
    _check_images(images, norm)
    _check_amount("epsilon", epsilon, images)
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f"seed must be an int64 tensor with one value, such as torch.tensor(0), got {seed!r}")
    if seed.device != images.device and seed.device.type != "cpu":
        raise ValueError(f"seed must be on {images.device} or on the CPU, got {seed.device}")


def _check_images(images: Tensor, norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be 'Linf' or 'L2', got {norm!r}")
    if images.dtype != torch.float32:
        raise TypeError(f"images must be float32 in [0, 1], got {images.dtype}; convert them with .float()")
    if images.ndim < 2:
        raise ValueError(
            f"images must have the batch first and pixels after, got shape {tuple(images.shape)}"
        )


def _check_like(name: str, tensor: Tensor, images: Tensor) -> None:
    if tensor.shape != images.shape:
        raise ValueError(
            f"{name} must have the shape of images, {tuple(images.shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.device != images.device:
        raise ValueError(f"{name} must be on {images.device} like images, got {tensor.device}")


def _check_amount(name: str, amount: float | Tensor, images: Tensor) -> None:
    if not isinstance(amount, Tensor):
        return
    if amount.dtype != torch.float32:
        raise TypeError(f"{name} must be a number or a float32 tensor, got {amount.dtype}")
    if amount.ndim > 1 or (amount.ndim == 1 and len(amount) != len(images)):
        raise ValueError(
            f"{name} must have one value or one an image ({len(images)}), got shape {tuple(amount.shape)}"
        )
    if amount.device != images.device and (amount.device.type != "cpu" or amount.ndim):
        raise ValueError(f"{name} must be on {images.device} like images, got {amount.device}")

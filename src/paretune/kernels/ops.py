"""The fused step and the random start as PyTorch operators: ``paretune::pgd_step`` and ``paretune::random_start``.

Functional, without derivatives, opaque to ``torch.compile``. On the CPU they run the reference, on CUDA the kernels;
results have the memory layout of ``images`` on both. The functions in :mod:`paretune.kernels` are the front door.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from paretune.kernels import reference
from paretune.kernels.checks import check_start, check_step


@torch.library.custom_op("paretune::pgd_step", mutates_args=(), device_types="cpu")
def pgd_step(
    gradient: Tensor,
    images: Tensor,
    images_adv: Tensor,
    step_size: Tensor,
    epsilon: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    norm: str,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`paretune.kernels.pgd_step`; without ``out_dtype`` the second result is empty, of shape (0,)."""
    check_step(gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype)
    return reference_step(gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype)


@pgd_step.register_kernel("cuda")
def _pgd_step_cuda(
    gradient: Tensor,
    images: Tensor,
    images_adv: Tensor,
    step_size: Tensor,
    epsilon: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    norm: str,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    from paretune.kernels.launch import driver, launch_step

    check_step(gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype)
    return launch_step(gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype, driver())


@pgd_step.register_fake
def _pgd_step_fake(
    gradient: Tensor,
    images: Tensor,
    images_adv: Tensor,
    step_size: Tensor,
    epsilon: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    norm: str,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    check_step(gradient, images, images_adv, step_size, epsilon, mean, std, norm, out_dtype)
    return reference.empty_results(images, out_dtype)


@torch.library.custom_op("paretune::random_start", mutates_args=(), device_types="cpu")
def random_start(images: Tensor, epsilon: Tensor, seed: Tensor, norm: str) -> Tensor:
    """See :func:`paretune.kernels.random_start`."""
    check_start(images, epsilon, seed, norm)
    return reference_start(images, epsilon, seed, norm)


@random_start.register_kernel("cuda")
def _random_start_cuda(images: Tensor, epsilon: Tensor, seed: Tensor, norm: str) -> Tensor:
    from paretune.kernels.launch import driver, launch_start

    check_start(images, epsilon, seed, norm)
    return launch_start(images, epsilon, seed, norm, driver())


@random_start.register_fake
def _random_start_fake(images: Tensor, epsilon: Tensor, seed: Tensor, norm: str) -> Tensor:
    check_start(images, epsilon, seed, norm)
    return reference.empty_results(images, None)[0]


def _no_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise RuntimeError(
        "paretune::pgd_step and paretune::random_start have no derivative: an attack is a constant of the training "
        "loss. Call paretune.kernels.pgd_step, which detaches, or detach the arguments"
    )


pgd_step.register_autograd(_no_derivative)
random_start.register_autograd(_no_derivative)


def reference_step(
    gradient: Tensor,
    images: Tensor,
    images_adv: Tensor,
    step_size: float | Tensor,
    epsilon: float | Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    norm: str,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """A whole step in plain PyTorch, with the results of the operator."""
    if images.numel() == 0:
        return reference.empty_results(images, out_dtype)
    layout = reference.memory_format_of(images)
    gradient, images, images_adv = (
        each.contiguous(memory_format=layout) for each in (gradient, images, images_adv)
    )
    if mean is not None and std is not None:
        per_channel = (1, -1, *[1] * (images.ndim - 2))
        mean, std = mean.reshape(per_channel), std.reshape(per_channel)
    if norm == "Linf":
        moved = reference.linf_step(gradient, images, images_adv, step_size, epsilon)
    else:
        moved = reference.l2_step(gradient, images, images_adv, step_size, epsilon, std)
    if out_dtype is None:
        return moved, images.new_empty(0)
    model_input = reference.model_input(moved, mean, std, out_dtype)
    return moved, model_input.clone() if model_input is moved else model_input


def reference_start(images: Tensor, epsilon: float | Tensor, seed: Tensor, norm: str) -> Tensor:
    """A random start in plain PyTorch, with the result of the operator."""
    if images.numel() == 0:
        return reference.empty_results(images, None)[0]
    images = images.contiguous(memory_format=reference.memory_format_of(images))
    start = reference.linf_start if norm == "Linf" else reference.l2_start
    return start(images, epsilon, seed)

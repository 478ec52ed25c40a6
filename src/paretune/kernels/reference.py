"""What the kernels compute, in plain PyTorch: the truth they are tested against, and the path of every CPU.

One step moves along the sign of the gradient (L-inf) or along its direction (L2), comes back into the ball around
the clean image and into [0, 1], and hands the network its next input:

    images_adv' = project(images_adv + step_size · sign(gradient))
    model_input = ((images_adv' - mean) / std).to(out_dtype)

The projections are those of :class:`~paretune.Linf` and :class:`~paretune.L2`. Amounts are numbers, or tensors with
one value. Nothing here changes its arguments, and each function makes as few passes over memory as eager PyTorch
allows. Given float64 tensors, everything is computed in float64.
"""

import torch
from torch import Tensor

from paretune.kernels.step import Step


def pgd_step(step: Step) -> tuple[Tensor, Tensor]:
    """A whole step: the new point, and the model input, which is the point itself where none is wanted."""
    if step.images.numel() == 0:
        return empty_results(step)
    layout = memory_format_of(step.images)
    gradient, images, images_adv = (
        tensor.contiguous(memory_format=layout) for tensor in (step.gradient, step.images, step.images_adv)
    )
    mean, std = normalisation(step)
    if step.norm == "Linf":
        moved = linf_step(gradient, images, images_adv, step.step_size, step.epsilon)
    else:
        moved = l2_step(gradient, images, images_adv, step.step_size, step.epsilon, std)
    return moved, moved if step.out_dtype is None else model_input(moved, mean, std, step.out_dtype)


def linf_step(
    gradient: Tensor, images: Tensor, images_adv: Tensor, step_size: float | Tensor, epsilon: float | Tensor
) -> Tensor:
    """One L-inf step, inside the ball and [0, 1]; shape of ``images``.

    ``gradient`` may be with respect to the normalised images, since dividing by std > 0 changes no sign. Where it
    is NaN its pixel stays, because ``torch.sign`` of NaN is 0.
    """
    return linf_move(gradient, images_adv, *linf_box(images, epsilon), step_size)


def linf_box(images: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each pixel: where the ball and [0, 1] meet. Stays the same for a whole attack."""
    return (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)


def linf_move(
    gradient: Tensor, images_adv: Tensor, low: Tensor, high: Tensor, step_size: float | Tensor
) -> Tensor:
    """:func:`linf_step` in a box that is known already: three passes over memory, one of them reading the gradient."""
    moved = gradient.sign().to(images_adv.dtype)
    # ±1 times the step is exact, so it does not matter whether torch rounds the product before it adds.
    if isinstance(step_size, Tensor):
        torch.addcmul(images_adv, moved, step_size, out=moved)
    else:
        torch.add(images_adv, moved, alpha=step_size, out=moved)
    return torch.clamp(moved, low, high, out=moved)


def l2_step(
    gradient: Tensor,
    images: Tensor,
    images_adv: Tensor,
    step_size: float | Tensor,
    epsilon: float | Tensor,
    std: Tensor | None = None,
) -> Tensor:
    """One L2 step, inside the ball and [0, 1]; shape of ``images``.

    The gradient is divided by its largest entry first: float32 holds 1e-30, but not its square. A zero gradient
    moves nothing; NaN or infinity in a gradient makes its whole image NaN.

    Args:
        gradient: with respect to the images, or with ``std`` to the normalised ones.
        images: clean images in [0, 1], (batch, …).
        images_adv: the present point, same shape.
        step_size: Euclidean length of the step; negative walks downhill.
        epsilon: radius.
        std: per channel, broadcast against the images.
    """
    direction = gradient.to(images.dtype)
    if std is not None:
        direction = direction / std  # chain rule through (images - mean) / std
    others = tuple(range(1, images.ndim))
    largest = torch.maximum(direction.amax(others, keepdim=True), direction.amin(others, keepdim=True).neg_())
    direction = direction / torch.where(largest == 0, 1, largest)
    length = _length(direction)
    # Rounded first, so that a number and a tensor that holds it give the same bits.
    step_size, epsilon = (torch.as_tensor(number, dtype=images.dtype) for number in (step_size, epsilon))
    scale = step_size / torch.where(length == 0, 1, length)
    moved = torch.addcmul(images_adv, direction, per_example(scale.to(images.dtype), images))
    change = _length(moved - images)
    shrink = torch.where(change > epsilon, epsilon / change, 1).to(images.dtype)
    # lerp with weight 1 is exactly its end: what is inside the ball is not rounded again.
    return torch.lerp(images, moved, per_example(shrink, images)).clamp_(0, 1)


def model_input(images: Tensor, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``(images - mean) / std`` in ``dtype``, or just the cast."""
    if mean is None or std is None:
        return images.to(dtype)
    return (images - mean).div_(std).to(dtype)


def memory_format_of(images: Tensor) -> torch.memory_format:
    """The layout of all results: channels last if ``images`` have it, else contiguous."""
    if images.ndim == 4 and not images.is_contiguous():
        interleaved = images.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if interleaved else torch.contiguous_format
    return torch.contiguous_format


def empty_results(step: Step) -> tuple[Tensor, Tensor]:
    """Uninitialised results of a step in the layout that every result has; twice the same tensor without a type."""
    layout = memory_format_of(step.images)
    moved = torch.empty_like(step.images, memory_format=layout)
    if step.out_dtype is None:
        return moved, moved
    return moved, torch.empty_like(step.images, dtype=step.out_dtype, memory_format=layout)


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length of each batch entry in float64, shape (batch,).

    Row by row in the tensor's own type, which torch vectorises, then over the rows in float64, which keeps the
    error at that of one row.
    """
    if memory_format_of(vectors) is torch.channels_last:
        rows = torch.linalg.vector_norm(vectors.permute(0, 2, 3, 1), dim=(2, 3))
    else:
        rows = torch.linalg.vector_norm(vectors, dim=-1)
    length: Tensor = torch.linalg.vector_norm(rows.reshape(len(vectors), -1).double(), dim=1)
    return length


def normalisation(step: Step) -> tuple[Tensor | None, Tensor | None]:
    """Mean and std as (1, channels, 1, …), with as many axes as the images."""
    shape = (1, -1, *[1] * (step.images.ndim - 2))
    mean, std = (None if values is None else values.reshape(shape) for values in (step.mean, step.std))
    return mean, std


def per_example(amount: Tensor, like: Tensor) -> Tensor:
    """(batch,) as (batch, 1, 1, …), with as many axes as ``like``."""
    return amount.view(-1, *([1] * (like.ndim - 1)))

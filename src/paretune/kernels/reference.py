"""What the kernels compute, in plain PyTorch: the truth they are tested against, and the path of every CPU.

One step moves along the sign of the gradient (L-inf) or along its direction (L2), comes back into the ball around
the clean image and into [0, 1], and hands the network its next input:

    images_adv' = project(images_adv + step_size · sign(gradient))
    model_input = ((images_adv' - mean) / std).to(out_dtype)

The projections are those of :class:`~paretune.Linf` and :class:`~paretune.L2`. Amounts are numbers, or tensors with
one value, or with one a batch entry. Nothing here changes its arguments, and each function makes as few passes over
memory as eager PyTorch allows. Given float64 tensors, everything is computed in float64.
"""

import math
from typing import Literal, overload

import torch
from torch import Tensor

Norm = Literal["Linf", "L2"]

_WORD = 0xFFFFFFFF
# Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): multipliers and key increments.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


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
    amount = _per_image(epsilon, images)
    return (images - amount).clamp_(min=0), (images + amount).clamp_(max=1)


def linf_move(
    gradient: Tensor, images_adv: Tensor, low: Tensor, high: Tensor, step_size: float | Tensor
) -> Tensor:
    """:func:`linf_step` in a box that is known already: three passes over memory, one of them reading the gradient."""
    moved = gradient.sign().to(images_adv.dtype)
    # ±1 times the step is exact, so it does not matter whether torch rounds the product before it adds.
    if isinstance(step_size, Tensor):
        torch.addcmul(images_adv, moved, _per_image(step_size, images_adv), out=moved)
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
    step_size, epsilon = (torch.as_tensor(each, dtype=images.dtype) for each in (step_size, epsilon))
    scale = step_size / torch.where(length == 0, 1, length)
    moved = torch.addcmul(images_adv, direction, _per_image(scale.to(images.dtype), images))
    change = _length(moved - images)
    shrink = torch.where(change > epsilon, epsilon / change, 1).to(images.dtype)
    # lerp with weight 1 is exactly its end: what is inside the ball is not rounded again.
    return torch.lerp(images, moved, _per_image(shrink, images)).clamp_(0, 1)


def model_input(images: Tensor, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``(images - mean) / std`` in ``dtype``, or just the cast."""
    if mean is None or std is None:
        return images.to(dtype)
    return (images - mean).div_(std).to(dtype)


def linf_start(images: Tensor, epsilon: float | Tensor, seed: Tensor) -> Tensor:
    """A uniform point of each L-inf ball, moved into [0, 1]: the same on every device, grid and memory layout."""
    noise = torch.cat([_uniform(word, images.dtype) for word in _words(images, seed)], dim=-1)
    noise = _as_images(noise, images).mul_(2).sub_(1)
    moved = images + noise.mul_(_per_image(epsilon, images))
    return torch.clamp(moved, *linf_box(images, epsilon), out=moved)


def l2_start(images: Tensor, epsilon: float | Tensor, seed: Tensor) -> Tensor:
    """A uniform direction at a radius uniform in [0, epsilon], moved into [0, 1].

    Equal on every device and layout up to the rounding of logarithm and cosine. Normal numbers by Box & Muller, "A
    note on the generation of random normal deviates" (1958).
    """
    first, second, third, fourth = (_uniform(word, images.dtype) for word in _words(images, seed))
    normals = []
    for u, v in ((first, second), (third, fourth)):
        radius = (1 - u).log_().mul_(-2).sqrt_()
        angle = v * (2 * math.pi)
        normals += [radius * angle.cos(), radius * angle.sin()]
    direction = _as_images(torch.cat(normals, dim=-1), images)
    length = _length(direction)
    image = torch.arange(len(images), device=images.device)
    zero, one = torch.zeros_like(image), torch.ones_like(image)
    radius = _uniform(philox(zero, image, one, zero, seed.to(images.device).reshape(()))[0], images.dtype)
    scale = _per_image(epsilon, radius) * radius / torch.where(length == 0, 1, length)
    return torch.addcmul(images, direction, _per_image(scale.to(images.dtype), images)).clamp_(0, 1)


def philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four random 32-bit words for each counter.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3. Products of two 32-bit
    words wrap around in int64 and their halves are masked out, which gives the same bits as unsigned arithmetic.

    Args:
        c0: first word of the counters, int64 in [0, 2³²); with the three others it is broadcast to one shape.
        c1: second word.
        c2: third word.
        c3: fourth word.
        seed: the 64-bit key, an int64 tensor with one value.

    Returns:
        Four int64 tensors in [0, 2³²).
    """
    key = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> 32 & _WORD) ^ c1 ^ key[0],
            p1 & _WORD,
            (p0 >> 32 & _WORD) ^ c3 ^ key[1],
            p0 & _WORD,
        )
        key = [(word + weyl) & _WORD for word, weyl in zip(key, _WEYL, strict=True)]
    return c0, c1, c2, c3


def memory_format_of(images: Tensor) -> torch.memory_format:
    """The layout of all results: channels last if ``images`` have it, else contiguous."""
    if images.ndim == 4 and not images.is_contiguous():
        interleaved = images.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if interleaved else torch.contiguous_format
    return torch.contiguous_format


def empty_results(images: Tensor, out_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Uninitialised results of a step in the layout that every result has; the second of shape (0,) without a type."""
    layout = memory_format_of(images)
    moved = torch.empty_like(images, memory_format=layout)
    if out_dtype is None:
        return moved, images.new_empty(0)
    return moved, torch.empty_like(images, dtype=out_dtype, memory_format=layout)


def _words(images: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
    """The four words of each block of four pixels; each (batch, blocks, 1)."""
    blocks = math.ceil(images[0].numel() / 4)
    seed = seed.to(images.device).reshape(())
    inside = torch.arange(blocks, device=images.device).view(1, -1, 1)
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    zero = torch.zeros((), dtype=torch.long, device=images.device)
    return philox(inside, image, zero, zero, seed)


def _as_images(numbers: Tensor, images: Tensor) -> Tensor:
    """(batch, blocks, 4) cut to the shape and memory layout of ``images``."""
    flat = numbers.flatten(1)[:, : images[0].numel()]
    return flat.reshape(images.shape).contiguous(memory_format=memory_format_of(images))


def _uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
    """[0, 1) in steps of 2⁻²⁴, which float32 holds exactly."""
    return (words >> 8).to(dtype) * 2.0**-24


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


@overload
def _per_image(amount: Tensor, like: Tensor) -> Tensor: ...
@overload
def _per_image(amount: float | Tensor, like: Tensor) -> float | Tensor: ...
def _per_image(amount: float | Tensor, like: Tensor) -> float | Tensor:
    """(batch,) as (batch, 1, 1, …), with as many axes as ``like``; one value as it is."""
    if not isinstance(amount, Tensor) or amount.ndim == 0:
        return amount
    return amount.view(-1, *([1] * (like.ndim - 1)))

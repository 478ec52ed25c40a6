"""Threats: which changes of an image an attacker may make.

A threat is a norm and a radius. It knows four things: where an attack may start, how to climb along a
gradient, how to come back inside, and how far apart two images are. Every tensor has the batch first; each
example is one vector, whatever its other axes. Pixels and ``epsilon`` share the unit in which an image lies
in [0, 1].
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from paretune._values import Value, number_text
from paretune.attacks.streams import Streams
from paretune.kernels import Norm, Step, pgd_step
from paretune.kernels.reference import per_example


@dataclass(frozen=True)
class Threat(Value, ABC):
    """Base of the threats.

    Args:
        epsilon: radius of the ball around each clean image, in pixel units.
    """

    epsilon: float

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.epsilon, str | bool):
            raise TypeError(f"{name}: epsilon must be a number, got {self.epsilon!r}")
        # 1 and 1.0 are the same threat, so they must give the same repr and the same run key.
        object.__setattr__(self, "epsilon", float(self.epsilon))
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"{name}: epsilon must be a finite number above 0, got {self.epsilon:g}")

    def __str__(self) -> str:
        """``Linf 4/255``."""
        return f"{type(self).__name__} {number_text(self.epsilon)}"

    def with_epsilon(self, epsilon: float) -> Self:
        """The same norm with another radius."""
        return replace(self, epsilon=epsilon)

    def random_start(self, images: Tensor, streams: Streams, run: int = 0) -> Tensor:
        """A random point of the ball around each image, moved into [0, 1].

        Args:
            images: (batch, ...) in [0, 1].
            streams: the random numbers of each image.
            run: number of the restart or target.
        """
        return self.project(images + streams.draw(run, images, self.random_change), images)

    @abstractmethod
    def random_change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random change of each image, like ``images``; :meth:`project` brings it into the ball. All randomness is
        ``generator``'s."""

    @abstractmethod
    def step(self, images_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Each image moved by ``step_size`` (pixel units, in this norm) in the steepest direction of
        ``gradient``; a tensor (batch, 1, 1, ...) gives each image its own.

        Where the gradient is zero nothing moves. The result may lie outside the ball; see :meth:`project`.
        """

    @abstractmethod
    def project(self, images_adv: Tensor, images: Tensor) -> Tensor:
        """The points of ``images_adv`` brought into the ball around ``images`` and into [0, 1].

        ``images`` must lie in [0, 1]; the result has the same shape.
        """

    @abstractmethod
    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Distance of each pair in this norm, shape (batch,)."""

    def allows(self, images_adv: Tensor, images: Tensor) -> Tensor:
        """(batch,) whether each of ``images_adv`` is in [0, 1] and in the ball around its image, up to rounding."""
        # A unit in the last place of 1 a pixel, and eight of the radius for what the norm sums.
        rounding = self.distance(torch.full_like(images, 2**-23), torch.zeros_like(images))
        near = self.distance(images_adv, images) <= self.epsilon * (1 + 2**-20) + rounding
        return near & ((images_adv >= 0) & (images_adv <= 1)).flatten(1).all(dim=1)

    def move(self, images_adv: Tensor, gradient: Tensor, step_size: float, images: Tensor) -> Tensor:
        """:meth:`step` and :meth:`project`; on a CUDA device one kernel does both, for the norms that it knows."""
        norm = FUSED.get(type(self))
        if norm is not None and images.is_cuda:
            return pgd_step(Step(gradient, images, images_adv, norm, step_size, self.epsilon))[0]
        return self.project(self.step(images_adv, gradient, step_size), images)


@dataclass(frozen=True)
class Linf(Threat):
    """Every pixel may change by at most ``epsilon``.

    Example:
        >>> Linf(8 / 255).epsilon
        0.03137254901960784

    Args:
        epsilon: largest change of a pixel, 0 < epsilon <= 1; write 8/255 for 8 grey levels.

    Raises:
        ValueError: ``epsilon`` lies outside (0, 1].
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epsilon > 1:
            raise ValueError(
                f"Linf: epsilon must lie in (0, 1], as pixels do; got {self.epsilon:g}, "
                f"did you mean {self.epsilon:g}/255?"
            )

    def random_change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform in the ball."""
        noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        return self.epsilon * (2 * noise - 1)

    def step(self, images_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Along the sign of the gradient."""
        return images_adv + step_size * gradient.sign()

    def project(self, images_adv: Tensor, images: Tensor) -> Tensor:
        """Clamp each pixel to the box in which the ball and [0, 1] meet; exact and idempotent."""
        low = (images - self.epsilon).clamp_(min=0)
        high = (images + self.epsilon).clamp_(max=1)
        return torch.clamp(images_adv, low, high)

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Largest change of a pixel."""
        return (images - others).flatten(1).abs().amax(dim=1)


@dataclass(frozen=True)
class L2(Threat):
    """The whole image may move by at most ``epsilon`` in Euclidean length.

    Args:
        epsilon: Euclidean length over all pixels and channels, in pixel units; above 0.

    Raises:
        ValueError: ``epsilon`` is not a finite number above 0.
    """

    def random_change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform direction, at a radius that is uniform in [0, epsilon].

        Not uniform in the ball, whose volume lies at its surface: from there PGD finds less.
        """
        device, dtype = images.device, images.dtype
        direction = _unit(torch.randn(images.shape, generator=generator, device=device, dtype=dtype))
        u = torch.rand(len(images), generator=generator, device=device, dtype=dtype)
        return per_example(self.epsilon * u, images) * direction

    def step(self, images_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Along the gradient, which is scaled to unit length."""
        return images_adv + step_size * _unit(gradient)

    def project(self, images_adv: Tensor, images: Tensor) -> Tensor:
        """Shrink the change to the ball, then clamp to [0, 1].

        The result is in both sets: the image itself lies in [0, 1], so clamping moves no pixel away from it.
        It need not be the nearest point of the intersection, which has no closed form.
        """
        change = images_adv - images
        length = self.distance(images_adv, images)
        # Not min(1, epsilon / length): multiplying by 1 would still round what lies inside the ball.
        shrunk = images + change * per_example(self.epsilon / length, images)
        return torch.where(per_example(length > self.epsilon, images), shrunk, images_adv).clamp_(0, 1)

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Euclidean length of the change."""
        length: Tensor = torch.linalg.vector_norm((images - others).flatten(1), dim=1)
        return length


@dataclass(frozen=True)
class L1(Threat):
    """The changes of all pixels may add up to at most ``epsilon``, so that a few pixels may change a lot.

    How to climb and to project where [0, 1] cuts the ball is from Croce & Hein 2021, "Mind the Box: l1-APGD for
    Sparse Adversarial Attacks on Image Classifiers", https://arxiv.org/abs/2103.01208.

    Args:
        epsilon: sum of the absolute changes over all pixels and channels, in pixel units; above 0. 12 is usual for
            32-pixel colour images.

    Raises:
        ValueError: ``epsilon`` is not a finite number above 0.
    """

    def random_change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Gaussian noise, which the projection brings to the surface, with some pixels at their bounds."""
        return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)

    def step(self, images_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """The steepest step that stays in [0, 1]: the pixels with the largest slope first, each to its bound
        (Croce & Hein, proposition 2.2).

        Shorter than ``step_size`` only where all pixels that have a slope are at their bounds.
        """
        point, slope = images_adv.flatten(1), gradient.flatten(1)
        room = torch.where(slope > 0, 1 - point, point).clamp_(min=0) * (slope != 0)
        slope_order = slope.abs().argsort(dim=1, descending=True)
        sorted_room = room.gather(1, slope_order)
        if isinstance(step_size, Tensor):
            step_size = step_size.flatten(1)
        # The whole room of the first pixels, what is left for the next one, nothing for the others.
        used = torch.minimum(
            (step_size - (sorted_room.cumsum(dim=1) - sorted_room)).clamp_(min=0), sorted_room
        )
        change = torch.empty_like(used).scatter_(1, slope_order, used)
        return (point + slope.sign() * change).view_as(images_adv)

    def project(self, images_adv: Tensor, images: Tensor) -> Tensor:
        """The nearest point in both the ball and [0, 1] (Croce & Hein, proposition 2.1).

        That is every change reduced by the same amount, to at least 0, and then cut at [0, 1]. The amount is found by
        halving an interval down to neighbouring floats, so the result is exact to rounding.
        """
        centre, change = images.flatten(1), (images_adv - images).flatten(1)
        size = change.abs()
        room = torch.where(change > 0, 1 - centre, centre)

        def kept(amount: Tensor) -> Tensor:
            return torch.minimum((size - amount).clamp_(min=0), room)

        low = torch.zeros_like(size[:, :1])
        high = size.amax(dim=1, keepdim=True) if size.shape[1] else low
        inside = kept(low).sum(dim=1, keepdim=True) <= self.epsilon
        for _ in range(32):  # the 24 bits of a float32, and 8 for an amount far below the largest change
            middle = (low + high) / 2
            fits = kept(middle).sum(dim=1, keepdim=True) <= self.epsilon
            low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
        shrunk = centre + change.sign() * kept(high)
        return torch.where(inside, images_adv.flatten(1), shrunk).clamp_(0, 1).view_as(images_adv)

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Sum of the absolute changes."""
        return (images - others).flatten(1).abs().sum(dim=1)


#: The threats by the names that the command line reads.
THREATS: dict[str, type[Threat]] = {"Linf": Linf, "L2": L2, "L1": L1}
FUSED: dict[type[Threat], Norm] = {Linf: "Linf", L2: "L2"}  # those of the fused step


def _unit(vectors: Tensor) -> Tensor:
    """Each example scaled to Euclidean length 1; zero stays zero.

    The gradient of a confident model may be 1e-30, whose square is 0 in float32, so the largest entry is
    divided out first.
    """
    flat = vectors.flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return (flat / torch.where(length > 0, length, 1)).view_as(vectors)

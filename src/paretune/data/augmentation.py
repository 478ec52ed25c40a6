"""What is done to training images before a model sees them: seeded for each example, so that nothing else changes it.

An augmentation takes images and one seed for each. :class:`~paretune.data.augmenting.Augmented` makes the seeds of (seed of
the run, epoch, identity of the example), so that an image gets the same in whatever batch, process or loader worker it is
read, and again after a stop. No random state outside of it is used up.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from paretune._values import Value, check_choices


@dataclass(frozen=True)
class Augmentation(Value, ABC):
    """A random change of images that keeps their class; ``+`` puts one after the other."""

    @abstractmethod
    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Changed copies, of the same shape and in [0, 1].

        Args:
            images: (batch, 3, height, width), float32 in [0, 1].
            seeds: of each image, from 0 to 2**64 - 1; with the image they decide all that it gets.
        """

    def __add__(self, other: "Augmentation") -> "Chain":
        """This one, then the other."""
        return Chain((self, other)) if isinstance(other, Augmentation) else NotImplemented

    @property
    def moves_pixels(self) -> bool:
        """Whether a pixel may end elsewhere; else only its value changes."""
        return True

    def place(self, images: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """Move what belongs to pixels of the original images to where these are in the augmented ones.

        Args:
            images: (batch, channels, height, width), any values, such as perturbations. Zero comes where the augmented
                image shows nothing of the original.
            seeds: those of the augmented images.

        Returns:
            None if pixels are not moved one by one.
        """
        return None if self.moves_pixels else images

    def unplace(self, images: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """Move back what :meth:`place` has moved; zero comes where the augmented image had cut something off."""
        return None if self.moves_pixels else images


@dataclass(frozen=True)
class Chain(Augmentation):
    """One after the other; made by adding them up. The empty one, ``none``, changes nothing.

    Args:
        parts: each draws from seeds of its own, which its place decides.
    """

    parts: tuple[Augmentation, ...] = ()

    def __post_init__(self) -> None:
        flat: list[Augmentation] = []
        for part in self.parts:
            if not isinstance(part, Augmentation):
                raise TypeError(f"a chain is made of augmentations, got {part!r}")
            flat += part.parts if isinstance(part, Chain) else (part,)
        object.__setattr__(self, "parts", tuple(flat))

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts)) or "none"

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """All parts in turn."""
        for number, part in enumerate(self.parts):
            images = part(images, _inner(seeds, number))
        return images

    @property
    def moves_pixels(self) -> bool:
        """Whether one part does."""
        return any(part.moves_pixels for part in self.parts)

    def place(self, images: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """As all parts in turn."""
        moved: Tensor | None = images
        for number, part in enumerate(self.parts):
            moved = None if moved is None else part.place(moved, _inner(seeds, number))
        return moved

    def unplace(self, images: Tensor, seeds: Sequence[int]) -> Tensor | None:
        """As all parts, from the last to the first."""
        moved: Tensor | None = images
        for number, part in reversed([*enumerate(self.parts)]):
            moved = None if moved is None else part.unplace(moved, _inner(seeds, number))
        return moved


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors left and right.

    Args:
        p: probability.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {self.p}")

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Some of them mirrored."""
        mirrored = torch.tensor([_uniform(seed, 1)[0] < self.p for seed in seeds], device=images.device)
        return torch.where(mirrored.view(len(images), 1, 1, 1), images.flip(-1), images)

    place = unplace = __call__


@dataclass(frozen=True)
class Crop(Augmentation):
    """Shifts within a border, as ``torchvision.transforms.RandomCrop(size, padding)`` does.

    Args:
        padding: border on every side: a whole number of pixels, or a fraction of the side that the border prolongs.
            An eighth is the 4 of 32 pixels of He et al. 2016 (https://arxiv.org/abs/1512.03385, section 4.2).
        padding_mode: ``"constant"`` is black; ``"reflect"`` mirrors the image.
    """

    padding: float = 0.125
    _: KW_ONLY
    padding_mode: Literal["constant", "reflect"] = "constant"

    def __post_init__(self) -> None:
        check_choices(self)
        whole = isinstance(self.padding, int) and not isinstance(self.padding, bool)
        if not (self.padding >= 1 if whole else isinstance(self.padding, float) and 0 < self.padding < 1):
            raise ValueError(
                f"padding must be a whole number of pixels from 1 on, or a fraction of the side between 0 and 1; got "
                f"{self.padding!r}"
            )

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """All of them shifted."""
        return self._shifted(images, seeds, self.padding_mode)

    def place(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Shifted likewise, with zeros in the border, also where the image is mirrored there."""
        return self._shifted(images, seeds, "constant")

    def unplace(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Shifted back."""
        return self._shifted(images, seeds, "constant", back=True)

    def _shifted(self, images: Tensor, seeds: Sequence[int], mode: str, *, back: bool = False) -> Tensor:
        sides = images.shape[-2:]
        border = [
            self.padding if isinstance(self.padding, int) else round(self.padding * side) for side in sides
        ]
        if any(width >= side for width, side in zip(border, sides, strict=True)):
            raise ValueError(f"padding={self.padding} is no less than a side of {sides[0]}x{sides[1]} images")
        padded = F.pad(images, (border[1], border[1], border[0], border[0]), mode=mode)
        shifted = torch.empty_like(images)
        for into, image, seed in zip(shifted, padded, seeds, strict=True):
            starts = [
                int(draw * (2 * width + 1)) for draw, width in zip(_uniform(seed, 2), border, strict=True)
            ]
            top, left = (
                2 * width - start if back else start for start, width in zip(starts, border, strict=True)
            )
            into.copy_(image[:, top : top + sides[0], left : left + sides[1]])
        return shifted


def _inner(seeds: Sequence[int], number: int) -> list[int]:
    """Seeds of a part of a chain, of the outer seeds and the place of the part."""
    keys = (np.array([seed, number + 1], np.uint64) for seed in seeds)
    return [int(np.random.Philox(key=key).random_raw()) for key in keys]


def _uniform(seed: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) that stay the same for good: NumPy freezes the raw stream, but not what it makes of it."""
    raw = np.random.Philox(key=seed).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

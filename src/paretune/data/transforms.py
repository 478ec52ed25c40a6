"""Augmentations of torchvision and timm.

What these draw from, the global random states of torch, NumPy and Python, is seeded for each image and put back afterwards.
"""

import contextlib
import math
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from paretune._values import check_choices, check_whole, shown
from paretune.data.augmentation import Augmentation

Transform = Callable[[Tensor], Tensor]  # of one image, (3, height, width) in [0, 1]

_GREY = (128, 128, 128)  # what timm's operations fill with


@contextlib.contextmanager
def borrowed() -> Iterator[Callable[[int], None]]:
    """Within it, what is yielded seeds the random states of torch (on the CPU), NumPy and Python; then they are as before.

    One thread computes, because sums over an image differ in their last bit with the number of threads.
    """
    # What a user's function draws from is NumPy's old global state: there is no newer one.
    states = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002

    def seeded(seed: int) -> None:
        random.seed(seed)
        np.random.seed([seed % 2**32, seed >> 32])  # noqa: NPY002
        torch.default_generator.manual_seed(seed)

    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield seeded
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        torch.set_num_threads(states[3])


@dataclass(frozen=True)
class _Drawing(Augmentation):
    """Does with one image after the other what draws from global random states."""

    @abstractmethod
    def transform(self, height: int, width: int) -> Transform:
        """For images of this size."""

    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Each by itself."""
        transform = self.transform(*images.shape[-2:])
        changed = torch.empty_like(images)
        with borrowed() as seeded:
            for image, seed, into in zip(images, seeds, changed, strict=True):
                seeded(seed)
                into.copy_(transform(image))
        return changed.clamp_(0, 1)


@dataclass(frozen=True)
class RandomResizedCrop(_Drawing):
    """Cuts out a part and brings it to the size of the whole: torchvision's, bicubic with antialiasing.

    Args:
        scale: least and largest share of the area.
        ratio: least and largest width over height of the part.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    _: KW_ONLY
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            pair = tuple(getattr(self, name))
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                below = "at most 1" if most == 1 else "above 0"
                raise ValueError(f"{name} must be two numbers in ascending order, {below}; got {pair}")
            object.__setattr__(self, name, pair)

    def transform(self, height: int, width: int) -> Transform:
        """torchvision's."""
        from torchvision.transforms import InterpolationMode, v2

        size, how = (height, width), InterpolationMode.BICUBIC
        transform: Transform = v2.RandomResizedCrop(size, self.scale, self.ratio, how, antialias=True)
        return transform


@dataclass(frozen=True)
class ColorJitter(_Drawing):
    """Changes brightness, contrast, saturation and hue in a random order: torchvision's.

    Args:
        brightness: factors lie in [1 - brightness, 1 + brightness], from 0 on.
        contrast: likewise.
        saturation: likewise.
        hue: turns lie in [-hue, hue] of a whole one; at most 0.5.
    """

    brightness: float = 0.4
    _: KW_ONLY
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            most = 0.5 if field.name == "hue" else math.inf
            if not 0 <= getattr(self, field.name) <= most:
                limit = " and at most 0.5" if field.name == "hue" else ""
                raise ValueError(f"{field.name} must be at least 0{limit}, got {getattr(self, field.name)}")

    @property
    def moves_pixels(self) -> bool:
        """Colours only."""
        return False

    def transform(self, height: int, width: int) -> Transform:
        """torchvision's."""
        from torchvision.transforms import v2

        transform: Transform = v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        return transform


@dataclass(frozen=True)
class _Timm(_Drawing):
    """An augmentation of timm, in 8 bits as all of its operations; what comes into view is grey."""

    @abstractmethod
    def of_timm(self, hparams: dict[str, Any]) -> Callable[[Any], Any]:
        """What timm does with a PIL image.

        Args:
            hparams: as timm's training script gives them.
        """

    def transform(self, height: int, width: int) -> Transform:
        """Through a PIL image and back."""
        from PIL import Image

        policy = self.of_timm({"translate_const": int(min(height, width) * 0.45), "img_mean": _GREY})

        def changed(image: Tensor) -> Tensor:
            levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0)
            pixels = np.array(policy(Image.fromarray(levels.contiguous().numpy())))
            return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

        return changed


@dataclass(frozen=True)
class RandAugment(_Timm):
    """RandAugment of Cubuk et al. 2020 (https://arxiv.org/abs/1909.13719), as timm has it.

    The default is timm's ``rand-m9-mstd0.5-inc1``.

    Args:
        magnitude: mean strength of an operation (timm's m), at most ``most``.
        layers: operations an image (n).
        p: probability of each.
        std: standard deviation of the strength (mstd); above 100 it is uniform from 0 to ``magnitude``.
        most: the strength is cut off there (mmax); 10 is the paper's largest.
        increasing: whether all operations grow with the strength (inc); timm's own default is not.
    """

    magnitude: float = 9
    _: KW_ONLY
    layers: int = 2
    p: float = 0.5
    std: float = 0.5
    most: float = 10
    increasing: bool = True

    def __post_init__(self) -> None:
        check_whole("layers", self.layers, 1, 100)
        _check_range(
            "magnitude", self.magnitude, self.most, " (most; timm's mmax), where the strength is cut off"
        )
        _check_range("p", self.p, 1)
        _check_range("std", self.std)

    def of_timm(self, hparams: dict[str, Any]) -> Callable[[Any], Any]:
        """timm's."""
        from timm.data import auto_augment as timm

        hparams |= {"magnitude_std": math.inf if self.std > 100 else self.std, "magnitude_max": self.most}
        names = timm.rand_augment_choices("", increasing=self.increasing)
        ops = timm.rand_augment_ops(self.magnitude, prob=self.p, hparams=hparams, transforms=names)
        transform: Callable[[Any], Any] = timm.RandAugment(_whole(ops), self.layers)
        return transform


@dataclass(frozen=True)
class AutoAugment(_Timm):
    """AutoAugment of Cubuk et al. 2019 (https://arxiv.org/abs/1805.09501), as timm has it.

    Args:
        policy: ``"original"`` is the paper's for ImageNet, ``"v0"`` that of the EfficientNet code; each has a variant
            with another posterization, that ends with r. ``"3a"`` is 3-Augment of Touvron et al. 2022
            (https://arxiv.org/abs/2204.07118).
        std: standard deviation of the strengths (timm's mstd).
    """

    policy: Literal["original", "originalr", "v0", "v0r", "3a"] = "original"
    _: KW_ONLY
    std: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        _check_range("std", self.std)

    def of_timm(self, hparams: dict[str, Any]) -> Callable[[Any], Any]:
        """timm's."""
        from timm.data import auto_augment as timm

        hparams |= {"magnitude_std": self.std}
        policy = timm.auto_augment_policy(self.policy, hparams=hparams)
        transform: Callable[[Any], Any] = timm.AutoAugment([_whole(ops) for ops in policy])
        return transform


@dataclass(frozen=True)
class AugMix(_Timm):
    """The mixtures of AugMix, Hendrycks et al. 2020 (https://arxiv.org/abs/1912.02781), as timm has them; without its loss.

    Args:
        magnitude: largest strength of an operation.
        width: chains that are mixed.
        depth: operations a chain; -1 is 1 to 3 of them.
        alpha: of the Dirichlet and the beta distribution of the weights.
    """

    magnitude: float = 3
    _: KW_ONLY
    width: int = 3
    depth: int = -1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_range("magnitude", self.magnitude, 10)
        check_whole("width", self.width, 1, 100)
        if self.depth != -1:
            check_whole("depth", self.depth, 1, 100)
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")

    def of_timm(self, hparams: dict[str, Any]) -> Callable[[Any], Any]:
        """timm's."""
        from timm.data import auto_augment as timm

        ops = timm.augmix_ops(self.magnitude, hparams=hparams | {"magnitude_std": math.inf})
        transform: Callable[[Any], Any] = timm.AugMixAugment(_whole(ops), self.alpha, self.width, self.depth)
        return transform


def _whole(ops: list[Any]) -> list[Any]:
    """``ops`` of timm, of which posterization may leave no bit: all is black then, what newer versions of Pillow refuse."""
    from PIL import Image

    for op in ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = partial(_posterized, op.aug_fn, Image.new)
    return ops


def _posterized(
    posterize: Callable[..., Any], black: Callable[..., Any], image: Any, bits: int, **options: Any
) -> Any:
    return posterize(image, bits, **options) if bits > 0 else black(image.mode, image.size)


def _check_range(name: str, value: float, most: float = math.inf, what: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise ValueError(f"{name} must be a number, at least 0{limit}{what}; got {shown(value)}")

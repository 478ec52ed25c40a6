"""Which augmentation training images get, by name; and the split that they are read from."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from paretune._values import parse, shown
from paretune.data.augmentation import Augmentation, Chain, Crop, Flip
from paretune.data.custom import Custom
from paretune.data.image_split import ImageSplit
from paretune.data.transforms import AugMix, AutoAugment, ColorJitter, RandAugment, RandomResizedCrop

_TRIED = 8  # seeds that a chain is tried with, twice each

#: The augmentations by the names that the command line reads.
AUGMENTATIONS: dict[str, type[Augmentation]] = {
    kind.__name__: kind
    for kind in (Flip, Crop, RandomResizedCrop, ColorJitter, RandAugment, AutoAugment, AugMix, Chain)
}
# The sections of timm's texts, and what is there where they say nothing.
_SECTIONS = {"m": "magnitude", "n": "layers", "p": "p", "mstd": "std", "mmax": "most", "inc": "increasing"}
_OF_TIMM: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "rand": ("RandAugment", {"magnitude": "10", "std": "0", "increasing": "0"}, _SECTIONS),
    "augmix": ("AugMix", {}, {"m": "magnitude", "w": "width", "d": "depth", "a": "alpha"}),
    **{
        name: ("AutoAugment", {"policy": repr(name)}, {"mstd": "std"})
        for name in ("original", "originalr", "v0", "v0r", "3a")
    },
}


def read_augmentation(given: Any) -> Chain:
    """The chain that this names.

    >>> read_augmentation("flip+crop")
    Flip() + Crop()
    >>> read_augmentation("Flip(0.3) + rand-m9-mstd0.5-inc1")
    Flip(0.3) + RandAugment()

    Args:
        given: an augmentation; a text as above, or ``"none"``; or a function of one image, see
            :class:`~paretune.data.Custom`.

    Raises:
        ValueError: it names none, or a function needs a name.
        TypeError: it is nothing of these.
    """
    if isinstance(given, Augmentation):
        return Chain((given,))
    if isinstance(given, str):
        if given.strip().lower() == "none":
            return Chain()
        texts = map(_from_timm, given.split("+"))
        return Chain((parse("+".join(texts), AUGMENTATIONS),))
    return Chain((Custom(given),))


def _from_timm(text: str) -> str:
    """The call that one of timm's texts stands for; any other text as it is."""
    name, *sections = text.strip().split("-")
    if name not in _OF_TIMM:
        return text
    kind, values, known = _OF_TIMM[name]
    values = dict(values)
    for section in sections:
        match = re.fullmatch(r"([a-z]+)(\d+\.?\d*)", section)
        if match is None or match[1] not in known:
            raise ValueError(
                f"cannot read {shown(section)} in {shown(text)}; of timm's sections {', '.join(known)} are read, each with "
                f"a number, or write {kind}(...)"
            )
        values[known[match[1]]] = match[2]
    if "increasing" in values:
        values["increasing"] = str(float(values["increasing"]) != 0)
    return f"{kind}({', '.join(f'{key}={value}' for key, value in values.items())})"


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """A split whose images are augmented, indexed by ``(epoch, rows)``.

    Args:
        split: to read from.
        augmentation: what its images get.
        seed: of the run.

    Raises:
        ValueError: ``augmentation`` does not do with the first image what an augmentation does, or not the same twice.
    """

    def __init__(self, split: ImageSplit, augmentation: Chain, seed: int) -> None:
        self.split, self.augmentation, self.seed = split, augmentation, seed
        for epoch in range(_TRIED if augmentation.parts else 0):
            first, second = (self[epoch, [0]][0] for _ in range(2))
            if not torch.equal(first, second):
                raise ValueError(
                    f"augmentation {augmentation!r} gives other pixels for the same image and seed, so that no run could be "
                    "repeated or resumed: let it draw from the global random state of torch, numpy or random, which is "
                    "seeded for each image, and from nothing else"
                )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: tuple[int, Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, height, width) as they are in this epoch, float32 in [0, 1], and labels (batch,)."""
        epoch, rows = index
        images, labels = self.split[rows]
        if self.augmentation.parts:
            images = self.augmentation(images, self._seeds(epoch, self.split.ids[rows]))
        return images, labels

    def place(self, images: Tensor, epoch: int, ids: Tensor) -> Tensor | None:
        """What belongs to pixels of the examples ``ids``, moved to where these are in this epoch."""
        return self.augmentation.place(images, self._seeds(epoch, ids))

    def unplace(self, images: Tensor, epoch: int, ids: Tensor) -> Tensor | None:
        """The way back of :meth:`place`."""
        return self.augmentation.unplace(images, self._seeds(epoch, ids))

    def _seeds(self, epoch: int, ids: Tensor) -> list[int]:
        words = ((self.seed, epoch, number, 1) for number in ids.tolist())
        return [int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) for entropy in words]

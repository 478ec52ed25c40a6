"""Labelled images in three disjoint splits, to train on, to choose by, to report; and what is done to the first of them.

An augmentation is a value, or the text of its call: ``Flip() + Crop(4)`` or ``"flip+crop"``, ``RandAugment(9)`` or timm's
``"rand-m9-mstd0.5-inc1"``. :func:`~paretune.train` takes either, or any function of one image; ``"none"`` changes nothing.
Images are augmented for training alone.

Names load on first use, so that the sizes of images, which options of the command line have, need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "images": ("ImageData", "load_data"),
    "image_split": ("ImageSplit",),
    "augmentation": ("Augmentation", "Chain", "Crop", "Flip"),
    "transforms": ("AugMix", "AutoAugment", "ColorJitter", "RandAugment", "RandomResizedCrop"),
    "custom": ("Custom",),
    "augmenting": ("AUGMENTATIONS", "Augmented", "read_augmentation"),
}

if TYPE_CHECKING:
    from paretune.data.augmentation import Augmentation, Chain, Crop, Flip
    from paretune.data.augmenting import AUGMENTATIONS, Augmented, read_augmentation
    from paretune.data.custom import Custom
    from paretune.data.image_split import ImageSplit
    from paretune.data.images import ImageData, load_data
    from paretune.data.transforms import AugMix, AutoAugment, ColorJitter, RandAugment, RandomResizedCrop
else:
    _HOME = {name: module for module, names in _NAMES.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(importlib.import_module(f"paretune.data.{_HOME[name]}"), name)
        raise AttributeError(f"module 'paretune.data' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "AUGMENTATIONS",
    "AugMix",
    "Augmentation",
    "Augmented",
    "AutoAugment",
    "Chain",
    "ColorJitter",
    "Crop",
    "Custom",
    "Flip",
    "ImageData",
    "ImageSplit",
    "RandAugment",
    "RandomResizedCrop",
    "load_data",
    "read_augmentation",
]

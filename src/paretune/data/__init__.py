"""Labelled images in three disjoint splits: to train on, to choose by, to report.

Names load on first use, so that the sizes of images, which options of the command line have, need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.data.images import ImageData, ImageSplit, load_data
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(importlib.import_module("paretune.data.images"), name)
        raise AttributeError(f"module 'paretune.data' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = ["ImageData", "ImageSplit", "load_data"]

"""What shifts share that change the pixels of each example and nothing else."""

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from paretune.data.image_split import ImageSplit
from paretune.shifts.base import Shift


@dataclasses.dataclass(frozen=True)
class Changing(Shift):
    """One shifted split, of changed images; the same change for all of them."""

    @abstractmethod
    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        """Changed copies.

        Args:
            images: (batch, 3, height, width), float32 in [0, 1].
            ids: (batch,); nothing depends on them.

        Returns:
            of the same shape, in [0, 1].
        """

    def label(self) -> str:
        """The name that results use, such as ``"rotation 30"``."""
        words = [re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()]
        for field in sorted(dataclasses.fields(self), key=lambda field: field.kw_only is True):
            value = getattr(self, field.name)
            if not (field.kw_only and value == field.default):
                words.append(value if isinstance(value, str) else f"{value:.12g}")
        return " ".join(words)

    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        """The changed split under its :meth:`label`."""
        return {self.label(): split.changed(self.change, repr(self))}

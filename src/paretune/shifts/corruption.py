"""Common corruptions as shifts: one at one severity, or a set of them at several.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
https://arxiv.org/abs/1903.12261; what they do to images is in :mod:`paretune.shifts.corruptions`.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from paretune._values import check_choices
from paretune.data.image_split import ImageSplit
from paretune.shifts.base import Shift
from paretune.shifts.corruptions import COMMON, EXTRA, SEVERITIES, Version, corrupt
from paretune.shifts.corruptions.applying import check_corruption

_SETS = {"common": COMMON, "extra": EXTRA, "all": (*COMMON, *EXTRA)}


@dataclass(frozen=True)
class Corruption(Shift):
    """One corruption at one severity, such as ``Corruption("gaussian_noise", severity=3)``.

    Args:
        kind: ``"fog"`` and the like, see ``paretune.shifts.corruptions.CORRUPTIONS``.
        severity: from 1 to 5.
        version: of the published numbers: ``"224"`` of ImageNet-C, ``"32"`` of CIFAR-10-C; None takes those of the nearer
            size.
    """

    kind: str
    _: KW_ONLY
    severity: int = 3
    version: Version | None = None

    def __post_init__(self) -> None:
        check_corruption(self.kind, self.severity, self.version)

    @property
    def label(self) -> str:
        """What results call it: ``gaussian_noise 3``."""
        return f"{self.kind} {self.severity}"

    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        """The same examples, corrupted."""
        change = partial(_corrupted, kind=self.kind, severity=self.severity, version=self.version)
        return {self.label: split.changed(change, repr(self))}


@dataclass(frozen=True)
class Corruptions(Shift):
    """A set of corruptions at several severities, each measured on its own.

    Args:
        which: ``"common"``, the 15 that the mean corruption error is of; ``"extra"``, the four others; or ``"all"``.
        severities: of each.
        version: as of :class:`Corruption`.
    """

    which: Literal["common", "extra", "all"] = "common"
    _: KW_ONLY
    severities: tuple[int, ...] = tuple(SEVERITIES)
    version: Version | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        object.__setattr__(self, "severities", tuple(self.severities))
        if not self.severities or len({*self.severities}) < len(self.severities):
            raise ValueError(
                f"severities must name at least one from 1 to 5, each once; got {self.severities}"
            )
        for severity in self.severities:
            check_corruption(COMMON[0], severity, self.version)

    @property
    def parts(self) -> tuple[Corruption, ...]:
        """All of them, one corruption after the other."""
        return tuple(
            Corruption(kind, severity=severity, version=self.version)
            for kind in _SETS[self.which]
            for severity in self.severities
        )

    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        """The same examples, once for each corruption and severity."""
        return {name: images for part in self.parts for name, images in part.of(split).items()}


def _corrupted(images: Tensor, ids: Tensor, *, kind: str, severity: int, version: Version | None) -> Tensor:
    return corrupt(images, ids, kind, severity, version)

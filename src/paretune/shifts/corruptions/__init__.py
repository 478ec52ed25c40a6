"""The 15 corruptions of ImageNet-C and its four extra ones, at severities 1 to 5, for images of any size from 8 pixels on.

See :mod:`paretune.shifts.corruptions.base` for what they are true to, and :func:`corrupt` for how they are applied.
"""

from paretune.shifts.corruptions.applying import COMMON, CORRUPTIONS, EXTRA, corrupt
from paretune.shifts.corruptions.base import SEVERITIES, VERSIONS, Function, Version, version_for

__all__ = [
    "COMMON",
    "CORRUPTIONS",
    "EXTRA",
    "SEVERITIES",
    "VERSIONS",
    "Function",
    "Version",
    "corrupt",
    "version_for",
]

"""Shifts as values: other images of the same classes, which a model is measured on beside attacks.

A shift is one file and one line here: a frozen dataclass that makes shifted splits of a split by their names.
"""

from collections.abc import Iterable, Mapping

from paretune._values import from_dict, parse_many
from paretune.shifts.arrays import Arrays as Arrays
from paretune.shifts.base import Shift, shifted, shifted_splits
from paretune.shifts.colour import ChannelSwap as ChannelSwap
from paretune.shifts.colour import Grey as Grey
from paretune.shifts.colour import Hue as Hue
from paretune.shifts.colour import Invert as Invert
from paretune.shifts.corruption import Corruption as Corruption
from paretune.shifts.corruption import Corruptions as Corruptions
from paretune.shifts.folder import Folder as Folder
from paretune.shifts.geometry import Rotation as Rotation
from paretune.shifts.geometry import Shear as Shear
from paretune.shifts.geometry import Translation as Translation
from paretune.shifts.geometry import Zoom as Zoom
from paretune.shifts.subsets import Subsets as Subsets

#: The shifts by the names that the command line reads: all that are imported here.
SHIFTS: dict[str, type[Shift]] = {
    name: kind
    for name, kind in globals().items()
    if isinstance(kind, type) and issubclass(kind, Shift) and kind is not Shift
}


class Shifts(tuple[Shift, ...]):
    """Several shifts; reads ``"Corruption('fog', severity=3), Grey()"`` or a list of such calls."""

    @classmethod
    def read(cls, value: object) -> "Shifts":
        """From a text, a shift, or a list of texts, of shifts or of dictionaries as :meth:`Value.to_dict` makes them.

        Raises:
            ValueError: it names no shift, or something else.
        """
        shifts: list[Shift] = []
        several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
        for item in value if several and isinstance(value, Iterable) else [value]:
            if isinstance(item, Shift):
                shifts.append(item)
            elif isinstance(item, Mapping):
                shifts.append(from_dict(item, SHIFTS))
            else:
                shifts += parse_many(str(item), SHIFTS)
        return cls(shifts)


__all__ = ["SHIFTS", "Shift", "Shifts", "shifted", "shifted_splits", *SHIFTS]

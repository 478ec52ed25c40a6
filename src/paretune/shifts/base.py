"""What a shift is: other images of the same classes, made of a split or found elsewhere, that a model is measured on.

A shift is a value beside attacks: ``evaluate(model, data.report, shifts=[Corruptions("common")])``. It makes one split or
several by name, which training, rows and reports keep as what is elsewhere (:attr:`paretune.data.ImageData.elsewhere`).
Nothing is chosen by it.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paretune._values import Value, check_whole
from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData


@dataclass(frozen=True)
class Shift(Value):
    """Base of the shifts."""

    @abstractmethod
    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        """The shifted splits by the names that results use; of changed pixels each keeps labels, ids and order of ``split``.

        Raises:
            ValueError: there are no such images, or they are of other classes.
        """


def shifted_splits(split: ImageSplit, shifts: Sequence[Shift]) -> dict[str, ImageSplit]:
    """What ``shifts`` make of ``split``, by name.

    Raises:
        TypeError: something in ``shifts`` is no shift.
        ValueError: two of them make what has the same name, or as in :meth:`Shift.of`.
    """
    splits: dict[str, ImageSplit] = {}
    for shift in shifts:
        if not isinstance(shift, Shift):
            raise TypeError(f"shifts must hold shifts such as Corruption('fog', severity=3), got {shift!r}")
        for name, images in shift.of(split).items():
            if name in splits:
                raise ValueError(f"shifts: {name!r} is made twice, at last by {shift!r}; name it once")
            splits[name] = images
    return splits


def shifted(data: ImageData, shifts: Sequence[Shift], limit: int | None = None) -> ImageData:
    """``data`` with what ``shifts`` make of its report split beside what is elsewhere in it.

    Args:
        data: in splits.
        shifts: to measure.
        limit: images of each shift, the first ones, which are a random sample; None for all.

    Raises:
        TypeError: something in ``shifts`` is no shift.
        ValueError: two things elsewhere have the same name, or as in :meth:`Shift.of`.
    """
    if not shifts:
        return data
    if limit is not None:
        check_whole("shift_limit", limit, 1)
    splits = {
        name: split if limit is None else split.first(limit)
        for name, split in shifted_splits(data.report, shifts).items()
    }
    for name in splits:
        if name in data.elsewhere:
            raise ValueError(
                f"shifts: {name!r} is the name of a domain of {data.name!r}; leave one of the two out"
            )
    return replace(data, elsewhere={**data.elsewhere, **splits})

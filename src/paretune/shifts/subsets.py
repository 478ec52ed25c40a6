"""Natural shifts inside a data set: what one camera, hospital or year has taken."""

from collections.abc import Mapping
from dataclasses import dataclass

from paretune.data.image_split import ImageSplit
from paretune.shifts.base import Shift


@dataclass(frozen=True)
class Subsets(Shift):
    """Each subset of the split by itself: accuracy by camera, hospital or year.

    Subsets are a column of a table: ``load_data("scans.csv", columns={"subset": "hospital"})``.
    """

    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        """One split a subset, by its name, with the ids and in the order of ``split``.

        Raises:
            ValueError: the data does not say what examples are of, or all are of one subset.
        """
        names = sorted({*(split.subsets or ())})
        if len(names) < 2:
            why = f"all are of {names[0]!r}" if names else "the data does not say"
            raise ValueError(
                f"{self!r} needs examples of two subsets, and {why}; name a column of a table or of a data set of Hugging "
                "Face, as in columns={'subset': 'camera'}"
            )
        return {name: split.subset(name, repr(self)) for name in names}

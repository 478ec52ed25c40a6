"""Some labelled images of a data set, in a fixed order: what is trained on, chosen by, or measured."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paretune.data.pixels import Reader
from paretune.data.sources import digest

Change = Callable[[Tensor, Tensor], Tensor]
_KEPT_BYTES = 1 << 26  # changed images of a split that are kept: 400 colour images of 224 x 224 in 8 bits


def holds_integers(tensor: Tensor) -> bool:
    """Whether the values are whole numbers by their type."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


@dataclass(eq=False)
class Changed:
    """Reads images and changes them; images of 8 bits are made once where all of the split fit into memory.

    Args:
        read: the images as they were.
        change: what happens to them.
        ids: of all examples of the split.
    """

    read: Reader
    change: Change
    ids: Tensor
    kept: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, rows: Tensor) -> Tensor:
        """Changed images (batch, 3, height, width) at ``rows``.

        Raises:
            ValueError: the change gave images of another shape, or values outside of [0, 1].
        """
        missing = torch.tensor(
            sorted({row for row in rows.tolist() if row not in self.kept}), dtype=torch.int64
        )
        changed_rows: dict[int, Tensor] = {}
        if len(missing):
            images = self.read(missing)
            changed = self.change(images, self.ids[missing])
            if changed.shape != images.shape or not bool(((changed >= 0) & (changed <= 1)).all()):
                raise ValueError(
                    f"a shift must keep the shape of images and values in [0, 1]; of {tuple(images.shape)} it made "
                    f"{tuple(changed.shape)}, from {changed.min():g} to {changed.max():g}"
                )
            changed_rows = dict(zip(missing.tolist(), changed, strict=True))
            levels = (changed * 255).round()
            if torch.equal(levels / 255, changed) and len(self.ids) * changed[0].numel() <= _KEPT_BYTES:
                self.kept |= zip(missing.tolist(), levels.to(torch.uint8), strict=True)
        if not len(rows):
            return self.read(rows)
        return torch.stack(
            [
                changed_rows[row] if row in changed_rows else self.kept[row].float() / 255
                for row in rows.tolist()
            ]
        )


class ImageSplit(Dataset[tuple[Tensor, Tensor]]):
    """One of the three splits: images and labels by index, in a fixed random order.

    It is indexed by batch, so a loader without collation does one fetch for each list of indices:
    ``DataLoader(split, sampler=[[0, 5, 2], [1, 4, 3]], batch_size=None)``.

    Attributes:
        labels: Class of each example, int64, shape (examples,).
        ids: Identity of each example in the whole data set, whatever the seed, the limit and the image size;
            int64, shape (examples,).
        fingerprint: Digest of data set, image size, ids and labels. Results with the same fingerprint are
            about the same images in the same order. Of a folder or a table, names and sizes of the files stand for
            their content; of a data set of torch or Hugging Face, its length, classes, labels and the pixels of up
            to 32 evenly spaced examples.
        classes: Name of each class, which labels index; None where nobody named them.
        groups: Number of the group of each example, for ``compare(groups=...)``; int64, shape (examples,). None
            where the data has no groups.
        shift: The call of the shift that made it; None for the images as they are.
        paired: Whether its examples are those that another split begins with, in their order, with other pixels.
        among: Numbers of the classes that its images are of, if they are some of those that labels number: a model answers
            with one of these. In ascending order.
        subsets: What each example is of, such as the camera that took it, by name; None where the data does not say.
    """

    def __init__(
        self,
        labels: Tensor,
        ids: Tensor,
        read: Reader,
        fingerprint: str,
        classes: tuple[str, ...] | None = None,
        groups: Tensor | None = None,
        *,
        shift: str | None = None,
        paired: bool = False,
        among: tuple[int, ...] | None = None,
        subsets: tuple[str, ...] | None = None,
    ) -> None:
        if among is not None and not bool(torch.isin(labels, torch.tensor(among)).all()):
            raise ValueError(f"labels must be among the classes {among}; some are not")
        self.labels = labels
        self.ids = ids
        self.fingerprint = fingerprint
        self.classes = classes
        self.groups = groups
        self.shift = shift
        self.paired = paired
        self.among = among
        self.subsets = subsets
        self._read = read

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageSplit({len(self)} examples, {self.fingerprint[:12]})"

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, 3, height, width), float32 in [0, 1], and labels (batch,); an int has no batch axis.

        Raises:
            IndexError: An index lies outside of the split.
            TypeError: ``index`` is not made of integers or booleans.
        """
        rows = self._rows(index)
        images, labels = self._read(rows.reshape(-1)), self.labels[rows]
        return (images[0], labels) if rows.ndim == 0 else (images, labels)

    def changed(self, change: Change, shift: str) -> "ImageSplit":
        """The same examples with other pixels, which are made when a batch asks for them.

        Args:
            change: From images (batch, 3, height, width) in [0, 1] and ids (batch,) to images of that shape in [0, 1], the
                same for an image whatever the batch. It can be pickled, as data loaders with workers need it.
            shift: The call that says what it is.
        """
        return ImageSplit(
            self.labels,
            self.ids,
            Changed(self._read, change, self.ids),
            digest(self.fingerprint, shift),
            self.classes,
            self.groups,
            shift=shift,
            paired=True,
            among=self.among,
            subsets=self.subsets,
        )

    def first(self, count: int) -> "ImageSplit":
        """The first ``count`` examples, which are a random sample as the order is; all of them if there are no more."""
        if count >= len(self):
            return self
        return ImageSplit(
            self.labels[:count],
            self.ids[:count],
            self._read,
            digest(self.fingerprint, f"first {count}"),
            self.classes,
            None if self.groups is None else self.groups[:count],
            shift=self.shift,
            paired=self.paired,
            among=self.among,
            subsets=None if self.subsets is None else self.subsets[:count],
        )

    def subset(self, name: str, shift: str) -> "ImageSplit":
        """The examples of one of ``subsets``, with their ids and in their order.

        Args:
            name: of the subset.
            shift: The call that says what it is.

        Raises:
            ValueError: No example is of it.
        """
        rows = torch.tensor([row for row, subset in enumerate(self.subsets or ()) if subset == name])
        if len(rows) == 0:
            raise ValueError(f"no example is of the subset {name!r}")
        return ImageSplit(
            self.labels[rows],
            self.ids[rows],
            partial(_read_rows, self._read, rows),
            digest(self.fingerprint, f"subset {name}"),
            self.classes,
            None if self.groups is None else self.groups[rows],
            shift=shift,
            among=self.among,
            subsets=(name,) * len(rows),
        )

    def labelled(self, classes: Sequence[str], *, among: tuple[int, ...] | None = None) -> "ImageSplit":
        """The same images with labels that number ``classes``, which hold those of the images by their names.

        Args:
            classes: Names of the classes, such as those that a model answers with.
            among: Numbers of those that a model may answer with; None for all.

        Raises:
            ValueError: An image is of another class, or nobody named those of the images.
        """
        names = self.classes
        if names is None:
            raise ValueError("the classes of the images have no names by which they could be found")
        places = {name: place for place, name in enumerate(classes)}
        if strange := [
            names[label] for label in sorted({*self.labels.tolist()}) if names[label] not in places
        ]:
            raise ValueError(
                f"there are images of the class {strange[0]!r}, which is none of the {len(places)} classes"
            )
        codes = torch.tensor([places.get(name, -1) for name in names])
        return ImageSplit(
            codes[self.labels],
            self.ids,
            self._read,
            digest(self.fingerprint, repr(tuple(classes)), repr(among)),
            tuple(classes),
            self.groups,
            shift=self.shift,
            paired=self.paired,
            among=among,
            subsets=self.subsets,
        )

    def _rows(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        if isinstance(index, slice):
            return torch.tensor(range(len(self))[index], dtype=torch.int64)
        wanted = torch.as_tensor(index).cpu()
        if wanted.numel() == 0:
            return torch.empty(0, dtype=torch.int64)
        mask = wanted.dtype == torch.bool and wanted.ndim == 1
        if wanted.ndim > 1 or not (mask or holds_integers(wanted)):
            raise TypeError(f"index must be an int, a slice, or a list or 1-D tensor of ints; got {index!r}")
        return torch.arange(len(self))[wanted if mask else wanted.to(torch.int64)]


def _read_rows(read: Reader, chosen: Tensor, rows: Tensor) -> Tensor:
    return read(chosen[rows])


@dataclass(frozen=True, eq=False)
class _OfParts:
    """Reads images of several splits, whose rows are counted through."""

    readers: tuple[Reader, ...]
    starts: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Images (batch, 3, height, width) at ``rows``."""
        if not len(rows):
            return self.readers[0](rows)
        part = torch.searchsorted(self.starts, rows, right=True) - 1
        images: dict[int, Tensor] = {}
        for number in sorted({*part.tolist()}):
            places = (part == number).nonzero().flatten()
            read = self.readers[number](rows[places] - self.starts[number])
            images |= zip(places.tolist(), read, strict=True)
        return torch.stack([images[place] for place in range(len(rows))])


def joined(splits: Sequence[ImageSplit]) -> ImageSplit:
    """All examples of ``splits``, one split after the other; they have their classes and the kind of pixels in common."""
    first = splits[0]
    sizes = torch.tensor([len(split) for split in splits])
    groups = [split.groups for split in splits if split.groups is not None]
    subsets = [split.subsets for split in splits if split.subsets is not None]
    return ImageSplit(
        torch.cat([split.labels for split in splits]),
        torch.cat([split.ids for split in splits]),
        _OfParts(tuple(split._read for split in splits), sizes.cumsum(0) - sizes),
        digest("joined", *(split.fingerprint for split in splits)),
        first.classes,
        torch.cat(groups) if len(groups) == len(splits) else None,
        shift=first.shift,
        among=first.among,
        subsets=tuple(itertools.chain(*subsets)) if len(subsets) == len(splits) else None,
    )

"""Labelled images in three disjoint splits: one to train on, one to choose by, one to report.

A frontier whose points were chosen on the images that measure it looks better than it is. Training, choice
and measurement therefore never share an example, and which example goes where follows from the data set and
the arguments alone. Images leave this module as float32 in [0, 1] of shape (batch, 3, height, width).
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paretune.data.domains import elsewhere_rows
from paretune.data.image_split import ImageSplit, holds_integers
from paretune.data.reading import NAMED, Reading, read_source
from paretune.data.sizes import ImageSize, checked_size
from paretune.data.sources import Source, digest, stored_source
from paretune.data.splits import ROLES, SPLITS, split_rows


@dataclass(frozen=True)
class ImageData:
    """A data set in three disjoint splits; made by :func:`load_data` or :meth:`from_tensors`.

    Attributes:
        name: What the data set is called in results.
        train: Examples to train on.
        select: Examples to choose checkpoints and points of a frontier by.
        report: Examples to measure what was chosen. The official test set where there is one.
        elsewhere: What else is measured and never trained on or chosen by, by name: the domains that are not trained on.
            ``dataclasses.replace(data, elsewhere={"night": split})`` measures any other splits of the same classes.
        classes: Name of each class; labels index them.
        image_size: In pixels, the side of square images, or (height, width) of others.
        loaded_with: Arguments with which :func:`load_data` makes the same splits again, as JSON has them; paths are
            absolute. None for what has no name and no path.
        learnt: Digest of the examples that the train split comes from, before they are split; of several domains the digest
            of each, with spaces between.
        skipped: How many files ``skip_bad=True`` has left out.
        augmentation: What :func:`paretune.train` does to the images of ``train`` where nobody says: ``"flip+crop"``;
            ``"crop"`` where a mirror may change what is shown (Fashion-MNIST, and classes that are digits, letters, numbers,
            or go left or right); ``"none"`` for digits, and for tensors, of which nothing is known.
        fingerprint: Digest of the three splits, and of what is elsewhere.
    """

    name: str
    train: ImageSplit
    select: ImageSplit
    report: ImageSplit
    classes: tuple[str, ...]
    image_size: ImageSize
    loaded_with: Mapping[str, Any] | None = field(default=None, compare=False)
    learnt: str | None = field(default=None, compare=False)
    skipped: int = field(default=0, compare=False)
    augmentation: str = field(default="none", compare=False)
    elsewhere: Mapping[str, ImageSplit] = field(default_factory=dict, hash=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        splits = [split.fingerprint for split in (self.train, self.select, self.report)]
        for name, split in self.elsewhere.items():
            if split.classes is not None and split.classes != self.classes:
                raise ValueError(f"elsewhere: {name!r} has the classes {split.classes}, not {self.classes}")
            if split.fingerprint in splits[:2]:
                raise ValueError(f"elsewhere: {name!r} is trained on or selected by; give other examples")
            splits += [name, split.fingerprint]
        object.__setattr__(self, "fingerprint", digest(*splits))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{role}={len(getattr(self, role))}" for role in ROLES)
        others = {name: len(split) for name, split in self.elsewhere.items()}
        sizes += f", elsewhere={others}" if others else ""
        return f"ImageData({self.name!r}, classes={len(self.classes)}, image_size={self.image_size}, {sizes})"

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str] | None = None,
        name: str = "tensors",
        *,
        seed: int = 0,
        img_size: ImageSize | None = None,
        limit: int | None = None,
        splits: tuple[float, float, float] = SPLITS,
    ) -> "ImageData":
        """Split images that are already in memory; they are copied.

        Example:
            >>> images, labels = torch.rand(30, 1, 8, 8), torch.arange(30) % 3
            >>> ImageData.from_tensors(images, labels, classes=["cat", "dog", "owl"])
            ImageData('tensors', classes=3, image_size=8, train=18, select=3, report=9)

        Args:
            images: Shape (examples, 1 or 3, height, width); floats in [0, 1], or uint8 in [0, 255].
            labels: Integers from 0 to classes - 1, shape (examples,).
            classes: Name of each class; the numbers where it is left out.
            name: What the data set is called in results.
            seed: As in :func:`load_data`, and so are the arguments after it.
            img_size: In pixels, what to bring the images to: the side of squares, or (height, width).
            limit: Number of examples to keep over all splits.
            splits: Shares of train, select and report.

        Raises:
            ValueError: Images or labels break a rule above, a class is empty, or as in :func:`load_data`.
        """
        images, labels = torch.as_tensor(images).detach().cpu(), torch.as_tensor(labels).detach().cpu()
        names = None if classes is None else tuple(classes)
        _check_images(images)
        if labels.ndim != 1 or not holds_integers(labels):
            got = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ValueError(f"labels must be integers of shape (examples,); got {got}")
        if len(labels) != len(images):
            raise ValueError(f"images and labels differ in length: {len(images)} and {len(labels)}")
        if classes is None:
            largest = int(labels.max())
            if largest >= len(labels):
                raise ValueError(
                    f"labels must count from 0 without gaps; {len(labels)} of them reach {largest}"
                )
            classes = [str(number) for number in range(largest + 1)]
        if len(set(classes)) != len(classes):
            raise ValueError(f"classes must have different names; got {list(classes)}")
        if images.dtype != torch.uint8:
            images = images.to(torch.float32)
        source = stored_source(name, classes, {"train": (images, labels)})
        source = replace(source, named=names is not None)
        return _split(source, img_size=img_size, seed=seed, limit=limit, splits=splits)


def load_data(
    name_or_path: str | Path | Dataset[Any] | Mapping[str, Any] | tuple[Any, ...] | Any,
    *,
    img_size: ImageSize | None = None,
    seed: int = 0,
    limit: int | None = None,
    splits: tuple[float, float, float] = SPLITS,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    root: str | Path | None = None,
    download: bool = False,
    train_domains: str | Sequence[str] | None = None,
    domain: str | None = None,
) -> ImageData:
    """Load labelled images by name, from files or from a data set, and split them.

    Example:
        >>> data = load_data("digits", img_size=32)
        >>> data
        ImageData('digits', classes=10, image_size=32, train=1078, select=269, report=450)
        >>> images, labels = data.report[:16]
        >>> images.shape, labels.dtype
        (torch.Size([16, 3, 32, 32]), torch.int64)

    An official test set becomes the report split, whatever the seed, and only the rest is split; likewise an
    official validation set is the select split, or the report split where no test set was published. Splits
    are stratified: each holds its share of every class to within one example, and at least one. Of groups,
    each goes to one split, and shares are as near as that allows.

    What is read by its own name (digits and the like) is held in memory; all else is opened when a batch asks for it.

    Args:
        name_or_path: One of

            - ``"digits"``, ``"fashion-mnist"``, ``"cifar10"``, ``"cifar100"``, ``"emoji"`` (see
              :mod:`paretune.data.emoji`), or ``"hf:NAME"`` through the package ``datasets``;
            - a folder that holds one folder of images per class, at any depth, or ``train`` and ``val`` and/or
              ``test`` folders of that kind. Images are told by their suffix, in any case; names that begin with a
              dot are passed over;
            - a .csv, .tsv or .parquet file or a DataFrame with a column of paths and one of labels, and maybe one of
              splits (train, val, test) and one of groups, whose images are never in two splits;
            - a map-style data set of torch or torchvision, whose examples are (image, label), or a data set of
              Hugging Face. Images are PIL images, tensors or arrays, see ``paretune.data.pixels.decoded``, which
              read the same each time;
            - given splits: a tuple (train, select, report) or (train, report), or a mapping with those names or
              train, val and test, of any of the last three.
        img_size: In pixels, the side of square images, or (height, width). Images are scaled (bicubic,
            antialiased) until they just cover it, and the centre is cut out. The default keeps the size of the
            images, which must then be equal.
        seed: Decides which examples go where, for all that the source leaves open; not negative.
        limit: Number of examples to keep over all splits, in proportion to ``splits`` and to the classes. It
            takes examples away and moves none to another split.
        splits: Shares of train, select and report, which sum to 1. Beside an official test set, train and
            select share the rest in proportion.
        name: What to call the data in results; its own name by default.
        classes: Names of the classes in the order of labels, where the data does not say or not in this order.
        columns: Names of columns by what they hold, ``"image"``, ``"label"``, ``"split"``, ``"group"``, ``"domain"`` or
            ``"subset"``, where they are called otherwise than ``path``, ``label``, ``split``, ``group`` and so on. A subset
            is what an example is of, such as a camera, for :class:`~paretune.shifts.Subsets`.
        skip_bad: Decode all files first, and leave out those that cannot be read, with a warning that names them.
            Otherwise such files are an error that names all whose beginning or end is damaged; damage in the middle
            shows when a batch reads it.
        root: Where relative paths of a table start; the default is the folder of the file. Or the torchvision folder
            with Fashion-MNIST or CIFAR; the default is ``data``, and Fashion-MNIST is sought in the place of the
            Debian package ``dataset-fashion-mnist`` first. Or where npm has installed the pictures of ``"emoji"``; the
            default is the working directory.
        download: Let torchvision download Fashion-MNIST or CIFAR into ``root``.
        train_domains: Names of the domains to train on, for data in domains: ``"emoji"``; a folder of folders as above, one
            for each domain, with lists ``DOMAIN_train.txt`` and ``DOMAIN_test.txt`` beside them as DomainNet has; a table or
            a data set of Hugging Face with a column ``domain``; or a mapping of any of the last four kinds by domain. The
            three splits are then of these domains alone, and each other domain is in ``elsewhere``: its official test set
            if it has one, else all of it, and under a ``limit`` at most what the report split would have of it. Images of
            groups that are trained on or selected by are left out there, with a warning. Classes are those of the domains
            that are trained on; others may lack some.
        domain: The same where it is one, as in ``load_data("emoji", domain="google")``.

    Raises:
        ValueError: An argument breaks a rule above, the name is unknown, a class has too few images for its
            splits, images cannot be read, or an example does not read the same twice.
        TypeError: The data cannot be read by row: a stream, or a data loader.
        FileNotFoundError: The data set, the folder or the table is not on this machine.
        ImportError: ``"hf:NAME"`` without the package ``datasets``.
    """
    if domain is not None and train_domains is not None:
        raise ValueError(
            f"domain={domain!r} and train_domains={train_domains!r} are one thing; give one of them"
        )
    one = train_domains if domain is None else domain
    if isinstance(one, str):
        train_domains = [one]
    how = Reading(
        train_domains=train_domains,
        name=name,
        classes=classes,
        columns=columns or {},
        root=None if root is None else Path(root),
        download=download,
        skip_bad=skip_bad,
    )
    data = _split(read_source(name_or_path, how), img_size=img_size, seed=seed, limit=limit, splits=splits)
    if not isinstance(name_or_path, str | Path):
        return data
    path = Path(name_or_path)
    known = str(name_or_path).startswith("hf:") or name_or_path in NAMED
    loaded_with = {
        "name_or_path": str(name_or_path if known else path.resolve()),
        "img_size": list(data.image_size) if isinstance(data.image_size, tuple) else data.image_size,
        "seed": int(seed),
        "limit": None if limit is None else int(limit),
        "splits": [float(share) for share in splits],
        "root": None if root is None else str(Path(root).resolve()),
        "name": name,
        "classes": None if classes is None else list(classes),
        "columns": dict(columns or {}),
        "skip_bad": bool(skip_bad),
        "train_domains": None if train_domains is None else list(train_domains),
    }
    return replace(data, loaded_with=loaded_with)


def as_data(data: Any, img_size: ImageSize) -> ImageData:
    """``data`` if it is split, else what :func:`load_data` makes of it at ``img_size``."""
    return data if isinstance(data, ImageData) else load_data(data, img_size=img_size)


def as_split(
    data: Any, img_size: ImageSize | None, classes: Sequence[str] | None, learnt: str | None
) -> ImageSplit:
    """``data`` if it is a split, else all examples of what :func:`load_data` takes, at ``img_size``.

    Args:
        data: Without splits of its own.
        img_size: None keeps the size of the images.
        classes: Names of the classes in the order of a model's logits, for data that does not say.
        learnt: Digest of the examples that the model was trained on, where known: ``ImageData.learnt``.

    Raises:
        ValueError: It is in several splits, or the model was trained on it.
    """
    if isinstance(data, ImageSplit):
        return data
    if isinstance(data, ImageData):
        raise ValueError("data has three splits; measure data.report, which nothing was chosen by")
    source = read_source(data, Reading(classes=classes))
    if len(source.pools) > 1:
        raise ValueError(f"{source.name} is in several splits; measure load_data(...).report")
    if learnt is not None and {source.learnt, source.content}.intersection(learnt.split()):
        raise ValueError(
            f"the model was trained on images of {source.name}; measure load_data(...).report, with the seed and the limit "
            "of the training, of which it has seen none"
        )
    _check_label_range(source)
    img_size = None if img_size is None else checked_size("img_size", img_size)
    return one_split(source, torch.arange(len(source.labels)), img_size)


def check_same_classes(logits: int, known: Sequence[str] | None, named: Sequence[str] | None) -> None:
    """Refuse data whose labels number other classes than the logits of a model.

    Args:
        logits: how many the model has.
        known: names of the classes that they stand for, where known.
        named: names of the classes of the data, where known.

    Raises:
        ValueError: the data has another number of classes, or other names, or the same in another order.
    """
    if named is None:
        return
    if len(named) != logits:
        raise ValueError(f"the model has {logits} logits, the data {len(named)} classes ({_some(named)})")
    if known is None or len(known) != logits or list(known) == list(named):
        return
    label = next(label for label in range(logits) if known[label] != named[label])
    raise ValueError(
        f"the model and the data have other classes: label {label} is {known[label]!r} for the model and {named[label]!r} "
        f"in the data. The model's are {_some(known)}; the data's are {_some(named)}. Use data of the model's classes; "
        "where only names differ, rename them, or set model.classes = None"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:10])) + (", …" if len(names) > 10 else "")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            "images must have shape (examples, channels, height, width) with 1 or 3 channels and no empty "
            f"axis; got {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floats in [0, 1] or uint8 in [0, 255]; got {images.dtype}. Convert them with "
            ".to(torch.uint8) if they are bytes"
        )
    good = ((images >= 0) & (images <= 1)).flatten(1).all(1)  # false for NaN too
    if not good.all():
        first = int(good.to(torch.uint8).argmin())
        low, high = images[first].min().item(), images[first].max().item()
        raise ValueError(
            f"images must lie in [0, 1]; example {first} has values from {low:g} to {high:g}, the first of "
            f"{int((~good).sum())} that do not. Divide bytes by 255, undo normalisation, replace NaN"
        )


def checked_options(
    seed: int, img_size: ImageSize | None, limit: int | None, splits: tuple[float, float, float]
) -> ImageSize | None:
    """The size, if all of these options of :func:`load_data` are in range.

    Raises:
        ValueError: One is not.
    """
    _check_number("seed", seed, least=0)
    if img_size is not None:
        img_size = checked_size("img_size", img_size)
    if limit is not None:
        _check_number("limit", limit, least=1)
    if len(splits) != 3 or not all(share > 0 for share in splits) or not math.isclose(sum(splits), 1):
        raise ValueError(f"splits must be three positive shares that sum to 1; got {splits}")
    return img_size


def _split(
    source: Source,
    *,
    img_size: ImageSize | None,
    seed: int,
    limit: int | None,
    splits: tuple[float, float, float],
) -> ImageData:
    img_size = checked_options(seed, img_size, limit, splits)
    check_labels(source)
    end = source.pools[-1][0].stop
    rows_of = partial(
        split_rows,
        source.labels[:end].numpy(),
        source.pools,
        num_classes=len(source.classes),
        seed=seed,
        shares=splits,
        groups=None if source.groups is None else source.groups[:end].numpy(),
    )
    rows = rows_of(limit=limit)
    size = img_size or checked_size("images", source.pixels.shape_of(int(rows["train"][0])))
    train, select, report = (
        one_split(source, torch.from_numpy(rows[role]), img_size, size) for role in ROLES
    )
    elsewhere = {
        name: one_split(source, ids, img_size, size)
        for name, ids in elsewhere_rows(source, rows_of, None if limit is None else round(limit * splits[2]))
    }
    learnt = source.learnt or source.content
    return ImageData(
        source.name,
        train,
        select,
        report,
        source.classes,
        size,
        learnt=learnt,
        skipped=source.skipped,
        augmentation=source.augmentation,
        elsewhere=elsewhere,
    )


def one_split(
    source: Source, ids: Tensor, img_size: ImageSize | None, size: ImageSize | None = None
) -> ImageSplit:
    """One split: the rows ``ids`` at ``img_size``, or all at ``size``, the one that they have."""
    size = img_size or size or checked_size("images", source.pixels.shape_of(int(ids[0])))
    labels = source.labels[ids]
    fingerprint = digest(source.content, f"image_size={size}", ids, labels)
    read = source.pixels.reader(ids, size, resize=img_size is not None)
    groups = None if source.groups is None else source.groups[ids]
    classes = source.classes if source.named else None
    subsets = None if source.subsets is None else tuple(source.subsets[row] for row in ids.tolist())
    return ImageSplit(labels, ids, read, fingerprint, classes, groups, subsets=subsets)


def _check_number(name: str, value: int, *, least: int) -> None:
    try:
        valid = operator.index(value) >= least
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")


def _check_label_range(source: Source) -> None:
    labels, classes = source.labels, source.classes
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        first = int(outside.to(torch.uint8).argmax())
        raise ValueError(
            f"labels must lie between 0 and {len(classes) - 1} for {len(classes)} classes; "
            f"example {first} has {int(labels[first])}"
        )


def check_labels(source: Source) -> None:
    """Raise ValueError if labels are out of range, or a class has too few examples for the splits of a pool."""
    _check_label_range(source)
    labels, classes = source.labels, source.classes
    if len(classes) < 2:
        raise ValueError(f"{source.name!r} has only one class ({', '.join(classes)}); a classifier needs two")
    for pool, roles in source.pools:
        counts = torch.bincount(labels[pool.start : pool.stop], minlength=len(classes))
        label = int(counts.argmin())
        if counts[label] < len(roles):
            raise ValueError(
                f"class {classes[label]!r} (label {label}) of {source.name!r} has {int(counts[label])} "
                f"examples for {' and '.join(roles)}, which need one each; add some or leave the class out"
            )

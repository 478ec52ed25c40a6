"""The distance between two data sets, with an interval and a floor."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from paretune._values import LAST_SEED, check_whole, parse, told
from paretune.backbones.backbone import Backbone
from paretune.backbones.features import entering_head
from paretune.backbones.modes import evaluation_mode
from paretune.data.image_split import ImageSplit
from paretune.data.images import ImageData, load_data
from paretune.data.sizes import ImageSize
from paretune.data.splits import sample_rows
from paretune.shifts.distances.base import Floats, Kind, Pair, Rows, squared_distances
from paretune.shifts.distances.frechet import Frechet
from paretune.shifts.distances.halves import interval, spread
from paretune.shifts.distances.mmd import MMD
from paretune.shifts.distances.otdd import OTDD

DISTANCES: Mapping[str, type[Kind]] = {"OTDD": OTDD, "MMD": MMD, "Frechet": Frechet}


@dataclass(frozen=True)
class Distance:
    """A distance between samples of two data sets.

    Attributes:
        value: The distance, squared as ``kind`` defines it.
        low: Lower end of the interval; None without resamples, here and below.
        high: Upper end of the interval.
        floor: Mean distance between two random halves of one sample, over both. It is what equal data sets come out at, with
            half the examples: a value near it, or below, tells nothing apart.
        kind: What was measured.
        examples: How many of each set.
        paired: Whether the examples of both have the same ids and labels in the same order, as those of a data set and its
            corrupted copy have. They are halved together. Copies of the same images are nearer to each other than samples of
            different images would be.
        level: Of the interval.
        resamples: From how many halves interval and floor are.
    """

    value: float
    low: float | None
    high: float | None
    floor: float | None
    kind: Kind
    examples: tuple[int, int]
    paired: bool
    level: float
    resamples: int

    def __repr__(self) -> str:
        parts = [f"{self.value:.5g}"]
        if self.low is not None and self.high is not None:
            parts += [f"{self.level * 100:g} % interval {self.low:.5g} to {self.high:.5g}"]
            parts += [f"floor {self.floor:.5g}"]
        parts += [repr(self.kind), f"{self.examples[0]} and {self.examples[1]} examples"]
        return f"Distance({', '.join(parts)}{' with the same ids' * self.paired})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``kind`` as its call."""
        return {**vars(self), "kind": repr(self.kind), "examples": list(self.examples)}


def distance(
    a: ImageSplit | ImageData | Any,
    b: ImageSplit | ImageData | Any,
    kind: Kind | str | None = None,
    backbone: Backbone | None = None,
    *,
    img_size: ImageSize | None = None,
    limit: int = 1000,
    seed: int = 0,
    resamples: int = 50,
    level: float = 0.95,
    batch_size: int = 128,
) -> Distance:
    """How far data sets ``a`` and ``b`` are apart.

    Example:
        >>> digits = load_data("digits")
        >>> distance(digits.train, digits.report, "OTDD(on='pixels')", limit=100, resamples=0)
        Distance(22.866, OTDD(on='pixels'), 100 and 100 examples)

    A transport between samples costs more than the one between what they were drawn from, with many features much more: two
    samples of one data set are not at 0, but at ``floor`` or a little lower. :class:`OTDD` and :class:`Frechet` fall with
    the number of examples, so **compare distances of as many examples only**, and read ``value`` beside ``floor``.

    The interval is about the mean of the value over samples of these sizes, which resampling can tell; it is not about the
    limit of many examples, which it cannot. It takes the backbone as given and the examples of a set as independent; of
    data with groups there is none.

    Args:
        a: A split as it is; of split data its train split, which is what one learns from, so that nothing that is reported
            is looked at; or what :func:`~paretune.load_data` takes, which is then split.
        b: Likewise. It should hold other images than ``a``; see ``Distance.paired`` about those that it shares.
        kind: :class:`OTDD`, :class:`MMD` or :class:`Frechet`, or the text of its call; ``OTDD()`` by default.
        backbone: Whose features are measured; not needed on pixels. One that has learnt the first of two tasks tells what
            the second is like for it.
        img_size: In pixels, for what is loaded here: the side of square images, or (height, width). The backbone's own where
            it is left out, and without a backbone that of the images.
        limit: Examples of each set, at most, drawn at random: of each class its share, and at least one.
        seed: Of what is drawn and of the resamples.
        resamples: Cuts into halves, for interval and floor; 0 for neither. About 10 % of the width of the interval is left
            to chance with 50.
        level: Of the interval.
        batch_size: Images in the backbone at once.

    Raises:
        ValueError: An argument breaks a rule above, a set has no examples, a class with too few of them, or groups, image
            sizes differ, or features are not finite.
        ImportError: :class:`OTDD` without the package POT.
    """
    kind = OTDD() if kind is None else _kind(kind)
    check_whole("limit", limit, 2)
    check_whole("seed", seed, 0, LAST_SEED)
    check_whole("batch_size", batch_size, 1)
    if resamples != 0:
        check_whole("resamples", resamples, 10, hint=", or 0 for no interval")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if kind.on == "features" and backbone is None:
        raise ValueError(
            f"{kind!r} needs backbone=, such as load_backbone('efficientnet-lite0', 2), or on='pixels'"
        )
    size = img_size if img_size is not None or backbone is None else backbone.image_size
    splits = {name: _split_of(name, data, size) for name, data in (("a", a), ("b", b))}
    labels = {name: split.labels.numpy() for name, split in splits.items()}
    rows = {name: sample_rows(each, limit, seed) for name, each in labels.items()}
    for name, split in splits.items():
        _check_counts(name, split, labels[name][rows[name]], kind, resamples)
    network = backbone if kind.on == "features" else None
    samples = {
        name: _examples(name, split, rows[name], network, batch_size) for name, split in splits.items()
    }
    if len(sizes := {each.size for each in samples.values()}) > 1:
        wrong = " and ".join(f"{height}x{width}" for height, width in sizes)
        raise ValueError(f"the images of a and b have the sizes {wrong}; load both with one img_size=")
    counts = len(rows["a"]), len(rows["b"])
    pair = Pair(
        squared_distances(np.concatenate([each.points for each in samples.values()])),
        np.concatenate([labels[name][rows[name]] for name in splits]),
        np.arange(counts[0]),
        np.arange(counts[0], sum(counts)),
    )
    drawn = [(split.ids[rows[name]], split.labels[rows[name]]) for name, split in splits.items()]
    paired = all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))
    value = kind.of(pair)
    low = high = floor = None
    if resamples:
        halves = spread(kind, pair, paired=paired, resamples=resamples, seed=seed)
        low, high = interval(value, halves.error, resamples=resamples, level=level)
        low, floor = max(low, 0.0) if kind.never_negative else low, halves.floor
    return Distance(value, low, high, floor, kind, counts, paired, level, resamples)


def _kind(kind: Kind | str) -> Kind:
    if isinstance(kind, str):
        kind = parse(kind, DISTANCES)
    if not isinstance(kind, Kind):
        raise ValueError(f"kind must be one of {', '.join(DISTANCES)}, or the text of its call; got {kind!r}")
    return kind


def _split_of(name: str, data: ImageSplit | ImageData | Any, size: ImageSize | None) -> ImageSplit:
    if isinstance(data, ImageData):
        return data.train
    if isinstance(data, ImageSplit):
        return data
    with told(name, str(data) if isinstance(data, str | Path) else None):
        return load_data(data, img_size=size).train


def _check_counts(name: str, split: ImageSplit, labels: Rows, kind: Kind, resamples: int) -> None:
    """Refuse a set that is too small for the kind of distance, or for its halves.

    Raises:
        ValueError: it has no examples, or too few, of a class where labels count.
    """
    if not len(labels):
        raise ValueError(f"{name} has no examples")
    if split.groups is not None and resamples:
        raise ValueError(
            f"{name} has groups, whose examples are not independent, as halves take them to be; give resamples=0, for no "
            "interval and no floor"
        )
    least = kind.least * (2 if resamples else 1)
    numbers, counts = np.unique(labels if kind.labelled else np.zeros_like(labels), return_counts=True)
    if counts.min() >= least:
        return
    label, count = int(numbers[counts.argmin()]), int(counts.min())
    called = label if split.classes is None else repr(split.classes[label])
    what = f"class {called} of {name}" if kind.labelled else name
    way = f"raise limit where the set has more{', or leave the class out' * kind.labelled}"
    if count >= kind.least:
        way += "; or give resamples=0, for no interval"
    raise ValueError(
        f"{what} has {count} example{'s' * (count != 1)} of the {len(labels)} that are measured; {kind!r} needs "
        f"{least}{', half of them in each half' * bool(resamples)}: {way}"
    )


class _Sample(NamedTuple):
    """Examples as points, (examples, dimensions), and height and width of their images."""

    points: Floats
    size: tuple[int, int]


def _examples(
    name: str, split: ImageSplit, rows: Rows, backbone: Backbone | None, batch_size: int
) -> _Sample:
    """The pixels of ``rows``, or the features of ``backbone``.

    Raises:
        ValueError: they are not finite.
    """
    parts = []
    for start in range(0, len(rows), batch_size):
        images, _ = split[torch.from_numpy(rows[start : start + batch_size])]
        size = int(images.shape[2]), int(images.shape[3])
        if backbone is not None:
            with evaluation_mode(backbone), torch.no_grad(), entering_head(backbone) as seen:
                backbone(images.to(backbone.mean.device))
            images = seen[0]
        parts.append(images.flatten(1).double().cpu().numpy())
    points = np.concatenate(parts)
    good = np.isfinite(points).all(1)
    if not good.all():
        what = "pixels" if backbone is None else "features"
        raise ValueError(f"the {what} of example {int(rows[good.argmin()])} of {name} are not finite")
    return _Sample(points, size)

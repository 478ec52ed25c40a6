"""Labelled images that are opened one by one, before they are split, and several of them as given splits."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretune.data.pixels import LazyPixels
from paretune.data.sources import Source, digest, usually_augmented
from paretune.data.splits import ROLES, pools_of

# What others call the parts of a data set, in lower case, and the split that each becomes.
PART_ROLES = {
    "train": "train",
    "training": "train",
    "select": "select",
    "val": "select",
    "valid": "select",
    "validation": "select",
    "dev": "select",
    "report": "report",
    "test": "report",
    "testing": "report",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Labelled images in a fixed order.

    Attributes:
        classes: Name of each class; labels index them.
        named: Whether somebody named the classes; else they are numbers.
        labels: Class of each example, int64, shape (examples,).
        pixels: The images.
        content: Text that says what the examples are.
        groups: What each example belongs to, for parts whose examples are not independent.
        skipped: How many files were left out as they cannot be read.
        subsets: What each example is of, such as the camera that took it, for parts that say so.
    """

    classes: tuple[str, ...]
    named: bool = True
    labels: Tensor
    pixels: LazyPixels
    content: str
    groups: tuple[str, ...] | None = None
    skipped: int = 0
    subsets: tuple[str, ...] | None = None


def joined(name: str, parts: Mapping[str, Part], elsewhere: Mapping[str, Part] | None = None) -> Source:
    """One source of the parts by role, of which the train part names the classes.

    Args:
        name: What to call it.
        parts: By role.
        elsewhere: What is only measured, by name, with the same classes.

    Raises:
        ValueError: There is no train part, a part has other classes, or a file, a group or all examples are in several
            parts.
    """
    if "train" not in parts:
        raise ValueError(f"{name} has no train part; it has {' and '.join(parts)}")
    parts = {role: parts[role] for role in ROLES if role in parts}
    train = parts["train"]
    for role, part in parts.items():
        if part.classes != train.classes:
            raise ValueError(
                f"{name}: the {role} part has the classes {', '.join(part.classes)}, and the train part "
                f"{', '.join(train.classes)}; give all parts the same classes in the same order"
            )
    check_apart(name, parts)
    pools = pools_of({role: len(part.labels) for role, part in parts.items()})
    elsewhere = elsewhere or {}
    every = [*parts.values(), *elsewhere.values()]
    ends = [*itertools.accumulate(len(part.labels) for part in every)][len(parts) - 1 :]
    source = Source(
        name,
        train.classes,
        torch.cat([part.labels for part in every]),
        train.pixels if len(every) == 1 else _pixels(every),
        digest(repr([*train.classes]), repr(pools), *elsewhere, *(part.content for part in every)),
        pools,
        named=train.named,
        groups=_groups(name, parts, elsewhere),
        skipped=sum(part.skipped for part in every),
        learnt=digest(repr([*train.classes]), train.content),
        elsewhere=dict(zip(elsewhere, itertools.starmap(range, itertools.pairwise(ends)), strict=True)),
        subsets=_subsets(every),
    )
    return usually_augmented(source)


def merged(parts: Mapping[str, Part]) -> Part:
    """The parts, by name, as one; all have the same classes, and groups or none."""
    every = [*parts.values()]
    if len(every) == 1:
        return every[0]
    groups = [part.groups for part in every if part.groups is not None]
    return replace(
        every[0],
        labels=torch.cat([part.labels for part in every]),
        pixels=_pixels(every),
        content="\n".join(f"{name!r}\n{part.content}" for name, part in parts.items()),
        groups=tuple(itertools.chain(*groups)) if groups else None,
        skipped=sum(part.skipped for part in every),
        subsets=_subsets(every),
    )


def _subsets(parts: Sequence[Part]) -> tuple[str, ...] | None:
    """What each example of all parts is of; None if some part does not say."""
    known = [part.subsets for part in parts if part.subsets is not None]
    return tuple(itertools.chain(*known)) if len(known) == len(parts) else None


def check_apart(name: str, parts: Mapping[str, Part]) -> None:
    """Refuse parts that have examples in common, as far as files or whole parts tell."""
    for (role, part), (other, rest) in itertools.combinations(parts.items(), 2):
        if not (part.pixels.files or rest.pixels.files) and part.content == rest.content:
            raise ValueError(
                f"{name}: the {role} and the {other} part hold the same examples; give each its own"
            )
        if part.pixels.files and rest.pixels.files:  # whose content is only names and sizes
            mine, theirs = (
                {half.pixels.where(row) for row in range(len(half.labels))} for half in (part, rest)
            )
            if both := sorted(mine & theirs):
                files = "1 file is" if len(both) == 1 else f"{len(both)} files are"
                raise ValueError(
                    f"{name}: {files} in the {role} and in the {other} part: {', '.join(both[:10])}; leave each in one"
                )


def _pixels(parts: Sequence[Part]) -> LazyPixels:
    starts = list(itertools.accumulate((len(part.labels) for part in parts[:-1]), initial=0))
    opened, names = [part.pixels.open_image for part in parts], [part.pixels.where for part in parts]
    files = all(part.pixels.files for part in parts)
    return LazyPixels(partial(_of_parts, opened, starts), partial(_of_parts, names, starts), files)


def _of_parts(parts: Sequence[Callable[[int], Any]], starts: Sequence[int], row: int) -> Any:
    """What the part of a row, which counts over all parts, says of it."""
    number = bisect.bisect_right(starts, row) - 1
    return parts[number](row - starts[number])


def _groups(name: str, parts: Mapping[str, Part], elsewhere: Mapping[str, Part]) -> Tensor | None:
    """Number of the group of each example; None if there are no groups, or not everywhere.

    What is elsewhere may be of the groups in the parts.
    """
    known = {role: part.groups for role, part in parts.items() if part.groups is not None}
    roles: dict[str, set[str]] = {}
    for role, groups in known.items():
        for group in groups:
            roles.setdefault(group, set()).add(role)
    if across := sorted(group for group, places in roles.items() if len(places) > 1):
        raise ValueError(
            f"{name}: {len(across)} of {len(roles)} groups {'is' if len(across) == 1 else 'are'} in several splits, so that "
            f"some of what is measured was learnt: {', '.join(across[:10])}{', …' if len(across) > 10 else ''}. Move each "
            "to one split, or leave the splits to paretune"
        )
    if len(known) < len(parts):
        return None
    every = [group for part in (*parts.values(), *elsewhere.values()) for group in part.groups or ()]
    codes = {group: number for number, group in enumerate(dict.fromkeys(every))}
    return torch.tensor([codes[group] for group in every])


def class_labels(
    values: Sequence[Any], classes: Sequence[str] | None, where: str
) -> tuple[Tensor, tuple[str, ...], bool]:
    """Labels as numbers, the names of the classes, and whether somebody named them.

    Args:
        values: Numbers of classes, or their names.
        classes: Names of all classes in their order, where known.
        where: What to call a value in an error, before its row.

    Raises:
        ValueError: A value is neither, or names no class.
    """
    labels = [_label(value, f"{where} {row}") for row, value in enumerate(values)]
    names = {value for value in labels if isinstance(value, str)}
    if names and len(names) < len(set(labels)):
        number = next(value for value in labels if not isinstance(value, str))
        raise ValueError(f"{where}: labels are names or numbers, not both; got {min(names)!r} and {number}")
    if not names:
        largest = max((int(value) for value in labels), default=0)
        if classes is None and largest >= len(labels):
            raise ValueError(
                f"{where}: labels must count from 0 without gaps; {len(labels)} of them reach {largest}"
            )
        known = tuple(map(str, range(largest + 1))) if classes is None else tuple(classes)
        return torch.tensor(labels, dtype=torch.int64), known, classes is not None
    known = tuple(in_order(names)) if classes is None else tuple(classes)
    codes = {name: code for code, name in enumerate(known)}
    if strange := [row for row, value in enumerate(labels) if value not in codes]:
        raise ValueError(
            f"{where} {strange[0]} has the label {labels[strange[0]]!r}, the first of {len(strange)} that are none of the "
            f"classes {', '.join(known)}"
        )
    return torch.tensor([codes[str(value)] for value in labels]), known, True


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted names, numbers by their size."""
    names = list(names)
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def _label(value: Any, where: str) -> int | str:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind in "iu":
        return int(array.reshape(()))
    what = (
        f"a vector of {array.size} numbers; give the number of the class, its argmax"
        if array.size > 1
        else repr(value)
    )
    raise ValueError(f"{where}: a label is the number of a class from 0 on, or its name, not {what}")

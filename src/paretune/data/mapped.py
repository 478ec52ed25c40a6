"""Data sets that answer a row with an image and a label: those of torch, torchvision and Hugging Face."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from paretune.data.parts import Part, class_labels
from paretune.data.pixels import LazyPixels
from paretune.data.sources import digest
from paretune.data.tables import COLUMNS

logger = logging.getLogger(__name__)

# Examples that stand for the pixels of all in a digest, evenly spaced; each is read twice.
_PROBES = 32


def check_mapped(given: Any) -> None:
    """Refuse what does not answer rows by their number.

    Raises:
        TypeError: It does not.
    """
    name = type(given).__name__
    if isinstance(given, torch.utils.data.DataLoader):
        raise TypeError(
            "a DataLoader gives batches in an order of its own; give its data set, loader.dataset"
        )
    if isinstance(given, IterableDataset) or not (
        hasattr(given, "__getitem__") and hasattr(given, "__len__")
    ):
        raise TypeError(
            f"{name} cannot be read by row, as splits, repeated evaluations and resumed runs need; give a data set with "
            "__getitem__ and __len__ (of Hugging Face: without streaming)"
        )
    if len(given) == 0:
        raise ValueError(f"{name} has no examples")


def is_huggingface(given: Any) -> bool:
    """Whether this behaves like a ``datasets.Dataset``."""
    return hasattr(given, "features") and hasattr(given, "column_names")


def name_of(given: Any) -> str:
    """What to call a data set in results."""
    if isinstance(given, Subset):
        return name_of(given.dataset)
    return str(getattr(getattr(given, "info", None), "dataset_name", None) or type(given).__name__)


def read_mapped(given: Any, name: str, *, classes: Sequence[str] | None, columns: Mapping[str, str]) -> Part:
    """Images and labels of a data set, read when they are asked for.

    Labels are taken from where torchvision and ``datasets`` keep them, else each example is read once. Length, classes,
    labels and the pixels of up to 32 evenly spaced examples say what the data set is.

    Args:
        given: ``given[row]`` is (image, label), or a mapping with the columns below; for images see
            :func:`~paretune.data.pixels.decoded`.
        name: What to call it.
        classes: Names of the classes in the order of labels; None takes its ``classes``.
        columns: Names of its columns of images, labels and subsets where rows are mappings, by ``"image"``, ``"label"`` and
            ``"subset"``; the last is of Hugging Face alone.

    Raises:
        TypeError: It cannot be read by row.
        ValueError: An example is no image with a label, or reads otherwise the second time.
    """
    check_mapped(given)
    keys = _keys(given, name, columns)
    stated = _classes(given, keys)
    if stated is not None and classes is not None and tuple(classes) != stated:
        raise ValueError(
            f"{name} has the classes {', '.join(stated)}, not {', '.join(classes)}; give those of the data, in its order"
        )
    values = list(given[keys[1]]) if is_huggingface(given) and keys else _labels(given)
    if values is None:
        logger.info("%s: reading all %d examples once for their labels", name, len(given))
        values = [_example(given, keys, row)[1] for row in range(len(given))]
    labels, known, named = class_labels(values, stated or classes, f"{name}: example")
    if is_huggingface(given) and keys and hasattr(given, "select_columns"):
        opened = partial(
            _column, given.select_columns([keys[0]]), keys[0]
        )  # else the rest would be decoded too
    else:
        opened = partial(_image, given, keys, labels, known)
    pixels = LazyPixels(opened, partial("{1} of {0}".format, name), files=False)
    count = min(_PROBES, len(given))
    rows = [number * (len(given) - 1) // max(1, count - 1) for number in range(count)]
    probed = [pixels.image(row) for row in rows]
    for row, first in zip(rows, probed, strict=True):
        if not torch.equal(first, pixels.image(row)):
            raise ValueError(
                f"{name} reads example {row} otherwise the second time: leave random transforms out (a fixed Resize and "
                "ToTensor are fine), else nothing that is measured could be measured again; those for training are the "
                "augmentation= of train and sweep"
            )
    content = digest(str(len(given)), repr(known), labels, *probed)
    subsets = _subsets(given, name, columns["subset"]) if "subset" in columns else None
    return Part(classes=known, named=named, labels=labels, pixels=pixels, content=content, subsets=subsets)


def _subsets(given: Any, name: str, column: str) -> tuple[str, ...]:
    if not is_huggingface(given) or column not in given.column_names:
        has = (
            f"it has the columns {', '.join(given.column_names)}"
            if is_huggingface(given)
            else "it has no columns"
        )
        raise ValueError(f"{name} has no column {column!r} of subsets; {has}")
    return tuple(_cells(given, column, name))


def column_domains(
    given: Mapping[str, Any], name: str, columns: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The rows of each domain, by split, without the column that tells it.

    Args:
        given: Data sets of Hugging Face by split.
        name: What to call all of them.
        columns: Names of columns by what they hold.

    Raises:
        ValueError: A split has no column of domains, or a cell of it is empty.
    """
    domains: dict[str, dict[str, Any]] = {}
    for split, part in given.items():
        check_mapped(part)
        present = list(part.column_names)
        usual = [column for column in present if column.lower() in COLUMNS["domain"]]
        chosen = (
            [column for column in present if column == columns["domain"]] if "domain" in columns else usual
        )
        if len(chosen) != 1:
            asked = f"called {columns['domain']!r}" if "domain" in columns else "of domains"
            raise ValueError(
                f"{name} ({split}) has {len(chosen) or 'no'} columns {asked}; its columns are {', '.join(present)}. Say "
                "which with columns={'domain': ...} (--columns domain=...)"
            )
        rows: dict[str, list[int]] = {}
        for row, value in enumerate(_cells(part, chosen[0], f"{name} ({split})")):
            rows.setdefault(value, []).append(row)
        rest = part.remove_columns(chosen)
        for domain, of_domain in rows.items():
            domains.setdefault(domain, {})[str(split)] = rest.select(of_domain)
    return domains


def _cells(given: Any, column: str, name: str) -> list[str]:
    """The cells of a column of Hugging Face as text, numbers of classes by their names.

    Raises:
        ValueError: One is empty, or such a number has no name.
    """
    names = getattr((given.features or {}).get(column), "names", None)
    cells = []
    for row, value in enumerate(given[column]):
        if value is None or not str(value).strip() or (names and not 0 <= value < len(names)):
            raise ValueError(f"{name}: column {column!r} has {value!r} in row {row}; name all of them")
        cells.append(names[value] if names else str(value))
    return cells


def _keys(given: Any, name: str, columns: Mapping[str, str]) -> tuple[str, str] | None:
    """Columns of the image and of the label; None where rows are pairs."""
    if is_huggingface(given):
        features = dict(given.features or {}) or dict.fromkeys(given.column_names)
    elif isinstance(first := given[0], Mapping):
        features = dict.fromkeys(first)
    else:
        return None
    by_type = {
        "image": [column for column, feature in features.items() if type(feature).__name__ == "Image"],
        "label": [column for column, feature in features.items() if hasattr(feature, "names")],
    }
    names: list[str] = []
    for what, of_type in by_type.items():
        usual = [column for column in features if str(column).lower() in COLUMNS[what]]
        chosen = of_type or usual
        if what in columns:
            chosen = [column for column in features if column == columns[what]]
        if len(chosen) != 1:
            listed = ", ".join(f"{column}: {type(feature).__name__}" for column, feature in features.items())
            raise ValueError(
                f"{name} must have one column of the {what}, not {len(chosen)} ({listed}); say which with "
                f"columns={{{what!r}: ...}}"
            )
        names += chosen
    return names[0], names[1]


def _classes(given: Any, keys: tuple[str, str] | None) -> tuple[str, ...] | None:
    if is_huggingface(given) and keys:
        names = getattr((given.features or {}).get(keys[1]), "names", None)
    elif isinstance(given, Subset):
        return _classes(given.dataset, keys)
    elif isinstance(given, ConcatDataset):
        of_parts = {_classes(part, keys) for part in given.datasets}
        return of_parts.pop() if len(of_parts) == 1 else None
    else:
        names = getattr(given, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)


def _labels(given: Any) -> list[Any] | None:
    """Labels of all examples from where data sets usually keep them; None if they are elsewhere."""
    if isinstance(given, Subset):
        inner = _labels(given.dataset)
        return None if inner is None else [inner[row] for row in given.indices]
    if isinstance(given, ConcatDataset):
        of_parts = [_labels(part) for part in given.datasets]
        return None if None in of_parts else [label for labels in of_parts for label in labels or ()]
    if getattr(given, "target_transform", None) is not None:
        return None
    if isinstance(given, TensorDataset):
        return list(given.tensors[1].numpy()) if len(given.tensors) == 2 else None
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(given, attribute, None)
        if isinstance(values, list | tuple | Tensor | np.ndarray) and len(values) == len(given):
            return list(np.asarray(values) if isinstance(values, Tensor) else values)
    return None


def _example(given: Any, keys: tuple[str, str] | None, row: int) -> tuple[Any, Any]:
    example = given[row]
    if keys is not None:
        return example[keys[0]], example[keys[1]]
    if not (isinstance(example, tuple | list) and len(example) == 2):
        size = f" of {len(example)}" if isinstance(example, tuple | list) else ""
        raise ValueError(
            f"an example must be (image, label), or a mapping with both; got a {type(example).__name__}{size}"
        )
    return example[0], example[1]


def _image(
    given: Any, keys: tuple[str, str] | None, labels: Tensor, classes: tuple[str, ...], row: int
) -> Any:
    image, value = _example(given, keys, row)
    (label,), _, _ = class_labels([value], classes, "example")
    if label != labels[row]:
        raise ValueError(f"its label is {value!r} now, and was {int(labels[row])} when all labels were read")
    return image


def _column(given: Any, column: str, row: int) -> Any:
    return given[row][column]

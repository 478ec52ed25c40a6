"""Domains whose official splits are lists of files, as DomainNet is published (Peng et al. 2019, https://arxiv.org/abs/1812.01754).

Beside the folders of the domains lie ``real_train.txt``, ``real_test.txt`` and so on, with lines such as
``real/zebra/real_345_000001.jpg 344``.
"""

import itertools
from pathlib import Path

from paretune.data.parts import Part
from paretune.data.tables import read_table

_LISTS = {"train": "_train.txt", "test": "_test.txt"}


def listed_domain(path: Path, domain: str, *, skip_bad: bool) -> dict[str, Part] | None:
    """The official train and test images of a domain by role; None where it has no lists.

    Classes are called as their folders and ordered by their numbers in the lists. What is in no list is left out.

    Args:
        path: The folder with the domains and the lists.
        domain: Its name.
        skip_bad: As in :func:`~paretune.data.files.readable`.

    Raises:
        ValueError: A list is missing, a line of one cannot be read, a folder has two numbers or a number two folders, or
            images cannot be read.
    """
    import pandas as pd

    lists = {split: path / f"{domain}{end}" for split, end in _LISTS.items()}
    missing = [str(file) for file in lists.values() if not file.is_file()]
    if len(missing) == len(lists):
        return None
    if missing:
        raise ValueError(
            f"{missing[0]} is missing, the other list of the domain {domain!r} is there; keep both or none"
        )
    rows: list[tuple[str, str, str]] = []
    numbers: dict[str, int] = {}
    for split, file in lists.items():
        for place, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            image, _, number = line.strip().rpartition(" ")
            parts = Path(image).parts
            if not number.isdecimal() or len(parts) < 3 or parts[0] != domain:
                raise ValueError(
                    f"line {place} of {file} is {line!r:.100}, not {domain}/CLASS/IMAGE and the number of the class"
                )
            name = parts[-2]
            if numbers.setdefault(name, int(number)) != int(number):
                raise ValueError(
                    f"line {place} of {file} gives {name!r} the number {number}; it is {numbers[name]} before"
                )
            rows.append((image, name, split))
    classes = sorted(numbers, key=lambda name: numbers[name])
    for name, other in itertools.pairwise(classes):
        if numbers[name] == numbers[other]:
            raise ValueError(
                f"the lists of {domain!r} in {path} give {name!r} and {other!r} the number {numbers[name]}"
            )
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    return read_table(
        table, f"{path.name}, {domain}", base=path, columns={}, classes=classes, skip_bad=skip_bad
    )

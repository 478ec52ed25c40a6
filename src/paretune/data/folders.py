"""Images in one folder for each class, at any depth below it."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from paretune.data.files import IMAGE_SUFFIXES, image_files, open_file, readable
from paretune.data.parts import PART_ROLES, Part
from paretune.data.pixels import LazyPixels
from paretune.data.splits import ROLES


def read_folder(path: Path, *, classes: Sequence[str] | None, skip_bad: bool) -> dict[str, Part]:
    """A folder with one folder of images per class, or ``train`` and ``val`` and/or ``test`` of that kind, by role.

    Its content is made of file names and sizes, because reading every file would take too long.

    Args:
        path: The folder.
        classes: Names of the class folders in the order of labels; None takes all, sorted.
        skip_bad: As in :func:`~paretune.data.files.readable`.

    Raises:
        ValueError: A class folder is missing, empty or one too many, images cannot be read, or it is not clear which
            folders are classes.
    """
    folders = _by_role(path)
    class_names = subfolders(folders["train"])
    if not class_names:
        raise ValueError(
            f"{folders['train']} has no class folders; expected {folders['train']}/<class>/<image>"
        )
    names = class_names if classes is None else classes
    parts: dict[str, Part] = {}
    for role, folder in folders.items():
        if unknown := sorted(set(subfolders(folder)) - set(names)):
            known = folders["train"] if classes is None else "the list of classes"
            raise ValueError(f"{folder} has the class folder {unknown[0]!r}, which {known} lacks")
        parts[role] = _part(folder, names, skip_bad=skip_bad)
    return parts


def _part(folder: Path, classes: Sequence[str], *, skip_bad: bool) -> Part:
    inside = [image_files(folder / name) if (folder / name).is_dir() else [] for name in classes]
    if empty := [str(folder / name) for name, files in zip(classes, inside, strict=True) if not files]:
        raise ValueError(
            f"no image ({', '.join(IMAGE_SUFFIXES)}) lies in the class folder {', '.join(empty)}; add some, or remove it"
        )
    for name, files in zip(classes, inside, strict=True):
        if _names_a_split(name) and not any(file.parent == folder / name for file in files):
            raise ValueError(
                f"no image lies in the class folder {folder / name} itself, and its name is that of a split: rename it if "
                "it is a class; else keep train, val and test folders alone, or say in a CSV file which image goes where"
            )
    if len(classes) == 1 and len(deeper := subfolders(folder / classes[0])) > 1:
        raise ValueError(
            f"{folder} has only one class ({classes[0]}); if the classes are {', '.join(deeper[:10])}, give "
            f"{folder / classes[0]}"
        )
    files = [file for of_class in inside for file in of_class]
    labels = [label for label, of_class in enumerate(inside) for _ in of_class]
    kept = readable(files, str(folder), skip_bad=skip_bad)
    lost = set(labels) - {labels[row] for row in kept}
    if lost:
        raise ValueError(f"no image that can be read lies in the class folder {folder / classes[min(lost)]}")
    shown = [str(files[row]) for row in kept]
    listing = [f"{files[row].relative_to(folder).as_posix()} {files[row].stat().st_size}" for row in kept]
    return Part(
        classes=tuple(classes),
        labels=torch.tensor([labels[row] for row in kept]),
        pixels=LazyPixels(partial(open_file, shown), shown.__getitem__, files=True),
        content="\n".join(listing),
        skipped=len(files) - len(kept),
    )


def _by_role(path: Path) -> dict[str, Path]:
    """Folders of class folders by role, in the order of roles."""
    roles = {name: PART_ROLES.get(name.lower()) for name in subfolders(path)}
    if "train" not in roles.values() or None in roles.values():
        return {"train": path}
    parts: dict[str, Path] = {}
    for role in ROLES:
        names = [name for name in roles if roles[name] == role]
        if len(names) > 1:
            raise ValueError(f"{path} has both {names[0]!r} and {names[1]!r}; keep one of them")
        if names:
            parts[role] = path / names[0]
    return parts


def _names_a_split(name: str) -> bool:
    return name.lower() in PART_ROLES or re.fullmatch(r"(fold|split|part)[ _-]?\d+", name.lower()) is not None


def subfolders(path: Path) -> list[str]:
    """Names of the folders in ``path``, sorted, without hidden ones and what an archiver of macOS adds."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    return [name for name in names if not name.startswith(".") and name != "__MACOSX"]

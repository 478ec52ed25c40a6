"""Other images of the classes of a model, in folders: ImageNet-V2, -A, -R, -Sketch and -C, ObjectNet, and the like."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from paretune._values import FrozenDict, check_whole, shown
from paretune.data.files import image_files
from paretune.data.folders import subfolders
from paretune.data.image_split import ImageSplit
from paretune.data.pixels import LazyPixels
from paretune.data.sizes import checked_size
from paretune.data.sources import digest
from paretune.data.splits import sample_rows
from paretune.shifts.base import Shift
from paretune.shifts.corruptions import SEVERITIES
from paretune.shifts.imagenet import MASKS, class_number, published

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder(Shift):
    """All images below ``path``, at the size of the images of the split; of that split only its classes count.

    ``path/CLASS/IMAGE`` is called as the folder is, and ``path/CORRUPTION/SEVERITY/CLASS/IMAGE``, as ImageNet-C has it with
    or without folders of kinds above, ``"fog 3"`` and so on. A class folder is called as a class of the model, or by the
    WordNet id or the number of a class of ImageNet, see :func:`~paretune.shifts.imagenet.class_number`.

    Two numbers are published of ImageNet-A, -R and ObjectNet, and differ by many points: over all classes of the model, and
    among those that the images are of. It is the first without ``mask``. With it the name ends with ``(among 200)``, and no
    other class is an answer, or a target of an attack.

    >>> Folder("imagenet-r", mask="imagenet-r")
    Folder('imagenet-r', mask='imagenet-r')

    Args:
        path: the folder.
        mask: classes among which the model answers: ``"folders"``, those that ``path`` has images of; ``"imagenet-a"`` or
            ``"imagenet-r"``, the published 200; or names of classes. None for all.
        classes: the class that each folder is of, where it is called otherwise: a mapping, or a JSON file of one. Folders
            that it does not name are left out. Where ``folder_to_objectnet_label.json`` lies beside the file, its keys are
            ObjectNet's labels. Where a folder is of several classes (``"folding chair; rocking chair"``) no single logit is
            right, so that its images are left out, with a warning: the numbers are then not those of ObjectNet's paper.
        border: pixels to cut off on each side before anything else; ObjectNet has a red border of 2.
        called: what results call it; the name of the folder by default.
    """

    path: str | Path
    _: KW_ONLY
    mask: str | Sequence[str] | None = None
    classes: str | Path | Mapping[str, Any] | None = None
    border: int = 0
    called: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))
        if isinstance(self.mask, str) and self.mask not in ("folders", *MASKS):
            raise ValueError(
                f"mask must be 'folders', {', '.join(map(repr, MASKS))} or names of classes, got {shown(self.mask)}"
            )
        if self.mask is not None and not isinstance(self.mask, str):
            object.__setattr__(self, "mask", tuple(map(str, self.mask)))
        if isinstance(self.classes, Mapping):
            object.__setattr__(self, "classes", FrozenDict(self.classes))
        elif self.classes is not None:
            object.__setattr__(self, "classes", str(self.classes))
        check_whole("border", self.border, 0, 1000)

    def of(self, split: ImageSplit) -> Mapping[str, ImageSplit]:
        """One split of all images, in a random order that is always the same; of ImageNet-C one a corruption and severity.

        Raises:
            FileNotFoundError: there is no such folder, or no file of classes.
            ValueError: a folder is of no class of ``split`` or has no image, or a class of the mask is none of these.
        """
        root = Path(self.path)
        if not root.is_dir():
            raise FileNotFoundError(f"path={self.path!r} of {self!r} is not a folder")
        height, width = split[:1][0].shape[-2:]
        corrupted = {folder: f"{folder.parent.name} {folder.name}" for folder in _severities(root)}
        named = corrupted or {root: self.called or root.resolve().name}
        prefix = f"{self.called} " if corrupted and self.called else ""
        return dict(
            self._read(folder, prefix + name, split, (height, width)) for folder, name in named.items()
        )

    def _read(
        self, folder: Path, name: str, split: ImageSplit, shape: tuple[int, int]
    ) -> tuple[str, ImageSplit]:
        """The name and the images of one folder of class folders."""
        numbers = self._numbers(folder, split)
        among = self._among(folder, numbers, split)
        files: list[Path] = []
        labels: list[int] = []
        for kind, of_kind in numbers.items():
            if len(of_kind) > 1:  # several logits would be right
                continue
            inside = image_files(folder / kind)
            if not inside:
                raise ValueError(f"no image lies in {folder / kind}; add some, or remove it")
            if among is not None and of_kind[0] not in among:
                raise ValueError(
                    f"{folder / kind} is of a class that mask={shown(self.mask)} leaves out; name it there too"
                )
            files += inside
            labels += [of_kind[0]] * len(inside)
        if several := [kind for kind, of_kind in numbers.items() if len(of_kind) > 1]:
            logger.warning(
                "%s: the images in %d of %d folders are left out, as each is of several classes: %s",
                *(folder, len(several), len(numbers), ", ".join(several)),
            )
        if not files:
            raise ValueError(f"{folder} has no image of one class of the model")
        every = torch.tensor(labels)
        order = torch.from_numpy(sample_rows(every.numpy(), None))
        paths = list(map(str, files))
        pixels = LazyPixels(partial(_opened, paths, self.border), paths.__getitem__, files=True)
        size = checked_size("image_size", shape)
        listing = [f"{file.relative_to(folder).as_posix()} {file.stat().st_size}" for file in files]
        said = f"image_size={size} border={self.border} among={among}"
        return f"{name} (among {len(among)})" if among else name, ImageSplit(
            every[order],
            order,
            pixels.reader(order, size, resize=True),
            digest("\n".join(listing), said, order, every[order]),
            split.classes,
            shift=repr(self),
            among=among,
        )

    def _numbers(self, folder: Path, split: ImageSplit) -> dict[str, tuple[int, ...]]:
        """The classes that each folder is of, in their order; mostly one."""
        kinds = subfolders(folder)
        if not kinds:
            raise ValueError(f"{folder} has no class folders; expected {folder}/CLASS/IMAGE")
        known = self._mapping()
        if known is None:
            return {kind: (self._number(kind, folder / kind, split),) for kind in kinds}
        if strange := sorted({*known} - {*kinds}):
            logger.info("%s has no folder of %s", folder, ", ".join(strange))
        numbers: dict[str, tuple[int, ...]] = {}
        for kind in kinds:
            if kind in known:
                meant = known[kind]
                if isinstance(meant, str) and class_number(meant, split.classes) is None:
                    meant = tuple(meant.split("; "))
                names = meant if isinstance(meant, Sequence) and not isinstance(meant, str) else (meant,)
                several = {self._number(name, folder / kind, split) for name in names}
                numbers[kind] = tuple(sorted(several))
        if not numbers:
            raise ValueError(
                f"{folder} has none of the folders that classes= names ({_some([*known])}); it has {_some(kinds)}"
            )
        return numbers

    def _mapping(self) -> dict[str, Any] | None:
        """What ``classes`` says of folders by their names."""
        if self.classes is None or isinstance(self.classes, Mapping):
            return None if self.classes is None else dict(self.classes)
        file = Path(self.classes)
        if not file.is_file():
            raise FileNotFoundError(f"classes={self.classes!r} of {self!r} is not a file")
        known = _json(file)
        labels = file.parent / "folder_to_objectnet_label.json"
        if not labels.is_file():
            return known
        return {folder: known[label] for folder, label in _json(labels).items() if label in known}

    def _number(self, name: object, where: object, split: ImageSplit) -> int:
        number = class_number(str(name), split.classes)
        if isinstance(name, int) and not isinstance(name, bool):  # of the class itself
            number = name if split.classes is None or 0 <= name < len(split.classes) else None
        if number is None:
            known = "classes without names" if split.classes is None else _some(split.classes)
            raise ValueError(
                f"{where}: {name!r} is no class of the model ({known}); remove it, or say with classes={{{name!r}: ...}} or "
                "a JSON file which class each folder is of"
            )
        return number

    def _among(
        self, folder: Path, numbers: Mapping[str, tuple[int, ...]], split: ImageSplit
    ) -> tuple[int, ...] | None:
        """The classes of the mask by their numbers, in ascending order."""
        if self.mask is None:
            return None
        if self.mask == "folders":
            chosen = {number for several in numbers.values() for number in several}
        else:
            names = published(self.mask) if isinstance(self.mask, str) else self.mask
            chosen = {self._number(name, f"mask={shown(self.mask)} of {folder}", split) for name in names}
        if len(chosen) < 2:
            raise ValueError(
                f"mask={shown(self.mask)} of {folder} leaves one class, which would always be right"
            )
        return tuple(sorted(chosen))


def _severities(root: Path) -> list[Path]:
    """Folders ``CORRUPTION/SEVERITY`` in ``root``, or one level deeper; ``root`` may be a corruption itself.

    Raises:
        ValueError: some folders in it are so and others not.
    """
    if severities := _inside(root):
        return severities
    within: dict[str, list[Path]] = {}
    for name in subfolders(root):
        folder = root / name
        places = [folder, *(folder / kind for kind in subfolders(folder))]
        within[name] = [severity for place in places for severity in _inside(place)]
    if any(within.values()) and (others := [name for name, inside in within.items() if not inside]):
        raise ValueError(
            f"{root} has corruptions by severity, and {others[0]!r}, which has none; keep these apart"
        )
    return [severity for inside in within.values() for severity in inside]


def _inside(corruption: Path) -> list[Path]:
    """Its folders of severities; a folder without folders in it is a class with that number."""
    return [
        corruption / name
        for name in subfolders(corruption)
        if name in map(str, SEVERITIES) and subfolders(corruption / name)
    ]


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} must hold an object with a class for each folder, not {type(content).__name__}"
        )
    return content


def _opened(files: Sequence[str], border: int, row: int) -> Any:
    from PIL import Image

    image = Image.open(files[row])
    return image.crop((border, border, image.width - border, image.height - border)) if border else image


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")

"""Where labelled images come from: digits, Fashion-MNIST, CIFAR, class folders and Hugging Face data sets.

Every function here returns a :class:`Source`: all examples of one data set in a fixed order. Which of them
train a model and which measure it is decided in :mod:`paretune.data.splits`.
"""

import gzip
import hashlib
import logging
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretune.data.pixels import LazyPixels, Pixels, StoredPixels
from paretune.data.splits import ROLES, Pools, pools_of
from paretune.runs.disk import regular

logger = logging.getLogger(__name__)

# What others call the parts of a data set, in lower case, and the split that each becomes.
_PART_ROLES = {
    "train": "train",
    "training": "train",
    "val": "select",
    "valid": "select",
    "validation": "select",
    "dev": "select",
    "test": "report",
    "testing": "report",
}
_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TORCHVISION_ROOT = Path("data")  # as in torchvision's own examples

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """All labelled images of one data set. The row of an example is its identity.

    Attributes:
        name: What the data set is called in results.
        classes: Name of each class; labels index them.
        labels: Class of each example, int64, shape (examples,).
        pixels: The images.
        content: Digest of what the examples are.
        pools: Consecutive ranges of rows and the roles that each range is split into.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    pixels: Pixels
    content: str
    pools: Pools


def digest(*parts: str | Tensor) -> str:
    """SHA-256 of texts and tensors (dtype, shape and values), in hexadecimal."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = np.ascontiguousarray(part.numpy())
            state.update(f"{array.dtype} {array.shape};".encode())
            state.update(array.data)
        else:
            text = part.encode()
            state.update(f"text {len(text)};".encode() + text)
    return state.hexdigest()


def stored_source(name: str, classes: Sequence[str], parts: Mapping[str, tuple[Tensor, Tensor]]) -> Source:
    """A source in memory; ``parts`` maps roles to images (n, 1 or 3, height, width) and labels (n,)."""
    images = torch.cat([images for images, _ in parts.values()])
    labels = torch.cat([labels for _, labels in parts.values()]).to(torch.int64)
    pools = pools_of({role: len(labels) for role, (_, labels) in parts.items()})
    content = digest(repr(tuple(classes)), repr(pools), labels, images)
    return Source(name, tuple(classes), labels, StoredPixels(images), content, pools)


def read_digits(root: Path | None, download: bool) -> Source:
    """The 1,797 handwritten digits of 8x8 pixels inside scikit-learn; no official test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]  # grey levels are 0 to 16
    labels = torch.from_numpy(digits.target)
    return stored_source("digits", [str(number) for number in range(10)], {"train": (images, labels)})


def read_fashion_mnist(root: Path | None, download: bool) -> Source:
    """Fashion-MNIST (Xiao et al., https://arxiv.org/abs/1708.07747): 60,000 + 10,000 grey images of 28x28."""
    torchvision_root = root or _TORCHVISION_ROOT
    if download:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(torchvision_root, download=True)
    places = [torchvision_root / "FashionMNIST" / "raw", torchvision_root]
    if root is None and not download:
        places.insert(0, DEBIAN_FASHION_MNIST)
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for place in places:
        found = [path for stem in stems if (path := _idx_file(place, stem)) is not None]
        if len(found) == len(stems):
            train, report = _read_idx_pair(*found[:2]), _read_idx_pair(*found[2:])
            return stored_source("fashion-mnist", _FASHION_CLASSES, {"train": train, "report": report})
    raise FileNotFoundError(
        f"Fashion-MNIST is in none of {', '.join(map(str, places))}; install it with "
        "`apt-get install dataset-fashion-mnist`, pass the root= of a torchvision folder that has it, or "
        f"download it with load_data('fashion-mnist', root={str(torchvision_root)!r}, download=True)"
    )


def _idx_file(place: Path, stem: str) -> Path | None:
    return next((path for end in (".gz", "") if (path := place / f"{stem}-ubyte{end}").is_file()), None)


def _read_idx_pair(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    pair = _read_idx(images, rank=3)[:, None], _read_idx(labels, rank=1)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(
            f"{images} has {len(pair[0])} images, {labels} has {len(pair[1])} labels; replace both"
        )
    return pair


def _read_idx(path: Path, *, rank: int) -> Tensor:
    """Bytes in LeCun's IDX format: 0, 0, type (8 for bytes), rank, sizes as big-endian uint32, values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">I{rank}I", content)
    except (struct.error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); replace it") from None
    start = 4 + 4 * rank
    if magic != 0x800 + rank or len(content) - start != math.prod(shape) or 0 in shape:
        raise ValueError(
            f"{path} is damaged: {len(content) - start} values for the shape {shape}, "
            f"magic number {magic:#x} instead of {0x800 + rank:#x}; replace it"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def read_cifar10(root: Path | None, download: bool) -> Source:
    """CIFAR-10 as torchvision keeps it: 50,000 + 10,000 colour images of 32x32."""
    return _read_cifar("cifar10", "CIFAR10", root, download)


def read_cifar100(root: Path | None, download: bool) -> Source:
    """CIFAR-100 as torchvision keeps it: 50,000 + 10,000 colour images of 32x32, with the fine labels."""
    return _read_cifar("cifar100", "CIFAR100", root, download)


def _read_cifar(name: str, class_name: str, root: Path | None, download: bool) -> Source:
    import torchvision.datasets

    root = root or _TORCHVISION_ROOT
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    classes: Sequence[str] = ()
    for role in ("train", "report"):
        try:
            part = getattr(torchvision.datasets, class_name)(root, train=role == "train", download=download)
        except RuntimeError as error:
            if download:
                raise
            raise FileNotFoundError(  # torchvision's answer to an absent and to a damaged folder is the same
                f"no complete {class_name} under root={str(root)!r} ({error}); download it with "
                f"load_data({name!r}, root={str(root)!r}, download=True)"
            ) from None
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        parts[role], classes = (images, torch.tensor(part.targets)), part.classes
    return stored_source(name, classes, parts)


def read_folder(path: Path) -> Source:
    """A folder with one folder of images per class, or ``train`` and ``val`` and/or ``test`` of that kind.

    Its digest is made of file names and sizes, because reading every file would take too long.
    """
    parts = _folder_parts(path)
    classes = _folders(parts["train"])
    if not classes:
        raise ValueError(f"{parts['train']} has no class folders; expected {parts['train']}/<class>/<image>")
    files: list[Path] = []
    labels: list[int] = []
    sizes: dict[str, int] = {}
    for role, part in parts.items():
        if unknown := sorted(set(_folders(part)) - set(classes)):
            raise ValueError(f"{part} has the class folder {unknown[0]!r}, which {parts['train']} lacks")
        for label, name in enumerate(classes):
            found = _image_files(part / name)
            if not found:
                suffixes = ", ".join(_IMAGE_SUFFIXES)
                raise ValueError(f"no image ({suffixes}) lies in the class folder {part / name}")
            files += found
            labels += [label] * len(found)
        sizes[role] = len(files) - sum(sizes.values())
    pools = pools_of(sizes)
    listing = [f"{file.relative_to(path).as_posix()} {regular(file).stat().st_size}" for file in files]
    content = digest(repr(classes), repr(pools), "\n".join(listing))
    names = [str(file) for file in files]
    pixels = LazyPixels(partial(_open_file, names), names.__getitem__, cheap_to_open=True)
    return Source(path.resolve().name, tuple(classes), torch.tensor(labels), pixels, content, pools)


def _folder_parts(path: Path) -> dict[str, Path]:
    """Folders of class folders by role, in the order of roles."""
    roles = {name: _PART_ROLES.get(name.lower()) for name in _folders(path)}
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


def _folders(path: Path) -> list[str]:
    """Names of the folders in ``path``, sorted, without hidden ones and what an archiver of macOS adds."""
    names = sorted(entry.name for entry in path.glob("*") if entry.is_dir())
    return [name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _image_files(folder: Path) -> list[Path]:
    files = [file for file in folder.glob("*") if file.suffix.lower() in _IMAGE_SUFFIXES]
    return sorted(file for file in files if not file.name.startswith("."))


def _open_file(files: Sequence[str], row: int) -> Any:
    from PIL import Image

    return Image.open(files[row])


def read_huggingface(name: str) -> Source:
    """A data set of the Hugging Face hub, or a local folder in one of its formats, through ``datasets``.

    Its digest is made of its name, its sizes and its labels.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f'load_data("hf:{name}") needs the package datasets; install it with: '
            'pip install "paretune[datasets]"'
        ) from None
    for file in Path(name).rglob("*"):  # of a local folder
        if file.exists() and not file.is_dir():
            regular(file)
    loaded = datasets.load_dataset(name)
    by_role = {_PART_ROLES[part]: part for part in reversed(loaded) if part in _PART_ROLES}
    parts = {role: by_role[role] for role in ROLES if role in by_role}
    if len(loaded) == 1:
        parts = {"train": next(iter(loaded))}
    if "train" not in parts:
        raise ValueError(f"hf:{name} has the splits {', '.join(loaded)}, but none called 'train'")
    features = loaded[parts["train"]].features
    image_column = _only_column(name, features, datasets.Image)
    label_column = _only_column(name, features, datasets.ClassLabel)
    labels = {role: torch.tensor(list(loaded[part][label_column])) for role, part in parts.items()}
    for role in set(labels) - {"train"}:
        if bool((labels[role] < 0).all()):  # the mark of a test set whose answers were never published
            logger.info("hf:%s: the split %r has no labels and is left out", name, parts[role])
            del labels[role], parts[role]
    classes = tuple(features[label_column].names)
    images = [loaded[part].select_columns([image_column]) for part in parts.values()]
    opened = partial(_open_row, images, image_column)
    pixels = LazyPixels(opened, partial("{1} of hf:{0}".format, name), cheap_to_open=False)
    all_labels = torch.cat(list(labels.values()))
    pools = pools_of({role: len(part) for role, part in labels.items()})
    content = digest(name, repr(classes), repr(pools), all_labels)
    return Source(f"hf:{name}", classes, all_labels, pixels, content, pools)


def _only_column(name: str, features: Mapping[str, Any], kind: type) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        columns = ", ".join(f"{column}: {type(feature).__name__}" for column, feature in features.items())
        raise ValueError(
            f"hf:{name} must have one column of type {kind.__name__}, not {len(found)} ({columns}); "
            "read it with datasets and pass tensors to ImageData.from_tensors"
        )
    return found[0]


def _open_row(parts: Sequence[Any], column: str, row: int) -> Any:
    """The image of a row, counted over all parts."""
    for part in parts:
        if row < len(part):
            return part[row][column]
        row -= len(part)
    raise IndexError(row)


# Names that load_data knows and what reads them, given the torchvision folder and whether to download to it.
SOURCES: dict[str, Callable[[Path | None, bool], Source]] = {
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
}

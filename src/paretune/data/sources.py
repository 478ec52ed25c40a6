"""All labelled images of one data set, and those that have a name: digits, Fashion-MNIST and CIFAR.

Every reader of a data set returns a :class:`Source`: all examples in a fixed order. Which of them train a model
and which measure it is decided in :mod:`paretune.data.splits`.
"""

import gzip
import hashlib
import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paretune.data.pixels import Pixels, StoredPixels
from paretune.data.splits import Pools, pools_of

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
        named: Whether somebody named the classes; else they are numbers.
        groups: Number of the group of each example, int64, shape (examples,); None where each is its own.
        skipped: How many files were left out as they cannot be read.
        learnt: Digest of the examples of the first pool, that of the train split; None if it is ``content``. Of several
            domains the digest of each, with spaces between.
        augmentation: What its training images get where nobody says.
        elsewhere: Consecutive ranges of rows beyond those of the pools, by name, which are only measured.
        subsets: What each example is of, such as the camera that took it; None where the data does not say.
        domains: Rows of each domain in the pools, by name; nothing where there are no domains.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    pixels: Pixels
    content: str
    pools: Pools
    named: bool = True
    groups: Tensor | None = None
    skipped: int = 0
    learnt: str | None = None
    augmentation: str = "none"
    elsewhere: Mapping[str, range] = field(default_factory=dict)
    subsets: tuple[str, ...] | None = None
    domains: Mapping[str, tuple[range, ...]] = field(default_factory=dict)


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


def usually_augmented(source: Source) -> Source:
    """``source``, whose training images are cropped, and flipped where a mirror makes no other image of them.

    It does of digits, letters and what goes left or right; classes that are numbers may be digits. Fashion-MNIST and the
    other data sets of its family show all of a kind from one side.
    """
    handed = any(re.search(r"(?<![a-z])(left|right)(?![a-z])", name.lower()) for name in source.classes)
    signs = all(len(name) == 1 or name.isdecimal() for name in source.classes)
    mirrored = not (handed or signs or "mnist" in source.name.lower())
    return replace(source, augmentation="flip+crop" if mirrored else "crop")


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
        paths = [path for stem in stems if (path := _idx_file(place, stem)) is not None]
        if len(paths) == len(stems):
            train, report = _read_idx_pair(*paths[:2]), _read_idx_pair(*paths[2:])
            parts = {"train": train, "report": report}
            return usually_augmented(stored_source("fashion-mnist", _FASHION_CLASSES, parts))
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
    return usually_augmented(stored_source(name, classes, parts))


# Names that load_data knows and what reads them, given the torchvision folder and whether to download to it.
SOURCES: dict[str, Callable[[Path | None, bool], Source]] = {
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
}

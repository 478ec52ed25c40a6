"""Files of images: which names count as images, and which files can be read."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paretune.data.pixels import check_depth, reason
from paretune.runs.disk import regular

logger = logging.getLogger(__name__)

# What Pillow reads, by itself or with a plugin: a photo that it cannot read is named, not passed over.
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
_SHOWN = 100  # names of files in an error


def image_files(folder: Path) -> list[Path]:
    """Images in ``folder`` and the folders inside it, by their suffix in any case, sorted.

    Names that begin with a dot and ``__MACOSX`` are passed over. Links are followed, into each folder once.
    """
    return sorted(_walk(folder, {folder.resolve()}))


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if not entry.is_dir():
            if entry.suffix.lower() in IMAGE_SUFFIXES:
                yield entry
        elif (real := entry.resolve()) not in seen:
            seen.add(real)
            yield from _walk(entry, seen)


def readable(files: Sequence[Path], what: str, *, skip_bad: bool) -> list[int]:
    """Positions of the files that are images; all others are named together.

    By default headers and ends of files are looked at, which finds what is no image or cut off without decoding photos.

    Args:
        files: Where the images should be.
        what: What to call all of them.
        skip_bad: Decode every file, and leave out those that fail, with a warning that names them.

    Raises:
        ValueError: Some cannot be read, and ``skip_bad`` is false.
    """
    bad = {row: why for row, file in enumerate(files) if (why := _fault(file, decode=skip_bad))}
    if not bad:
        return list(range(len(files)))
    names = [f"{files[row]} ({why})" for row, why in bad.items()]
    listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    if not skip_bad:
        raise ValueError(
            f"cannot read {len(bad)} of the {len(files)} images of {what}: {listed}; remove or replace them, or leave "
            "them out with skip_bad=True (--skip-bad)"
        )
    logger.warning(
        "%d of the %d images of %s cannot be read and are left out: %s", len(bad), len(files), what, listed
    )
    return [row for row in range(len(files)) if row not in bad]


def _fault(file: Path, *, decode: bool) -> str | None:
    """Why ``file`` cannot be read; None if it can."""
    from PIL import Image

    try:
        regular(file)
        with Image.open(file) as image:
            check_depth(image)
            if decode:
                image.load()
            elif image.format == "PNG":
                image.verify()  # the checksums, to the end
            elif image.format not in ("JPEG", "MPO") or not _has_end(file):
                image.load()
    except FileNotFoundError:
        return "it does not exist"
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        return reason(error).replace(repr(str(file)), "it").replace(str(file), "it")
    return None


def _has_end(jpeg: Path) -> bool:
    """Whether the end marker is near the end; cameras may write something after it."""
    with open(jpeg, "rb") as file:
        file.seek(max(0, jpeg.stat().st_size - 4096))
        return b"\xff\xd9" in file.read()


def open_file(files: Sequence[str], row: int) -> Any:
    """A PIL image, not decoded yet."""
    from PIL import Image

    return Image.open(files[row])

"""Files of images: which names count as images, and which files can be read."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paretune.data.pixels import check_depth, decoded, reason
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

    By default a file is decoded only if its header and its end, of PNG its checksums, do not show that it is whole.

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
        "%d of the %d images of %s cannot be read and %s left out: %s",
        len(bad),
        len(files),
        what,
        "is" if len(bad) == 1 else "are",
        listed,
    )
    return [row for row in range(len(files)) if row not in bad]


def _fault(file: Path, *, decode: bool) -> str | None:
    """Why ``file`` cannot be read; None if it can."""
    from PIL import Image

    try:
        regular(file)
        with Image.open(file) as image:
            check_depth(image)
            whole = not decode and _looks_whole(image, file)
        if not whole:
            decoded(Image.open(file))
    except FileNotFoundError:
        return "it does not exist"
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        return reason(error).replace(repr(str(file)), "it").replace(str(file), "it")
    return None


def _looks_whole(image: Any, file: Path) -> bool:
    """Whether the file of an image that was opened is there to the end, as far as can be told without decoding."""
    if image.format == "PNG":
        try:
            image.verify()  # the checksums, to the end
        except Exception:
            return False
        return True
    if image.format not in ("JPEG", "MPO"):
        return False
    with open(file, "rb") as content:
        content.seek(max(0, file.stat().st_size - 4096))  # cameras may write something after the end marker
        return b"\xff\xd9" in content.read()


def open_file(files: Sequence[str], row: int) -> Any:
    """A PIL image, not decoded yet."""
    from PIL import Image

    return Image.open(files[row])

"""Files that are either whole or absent: a killed process or a full disk never leaves half of one."""

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """What the system refuses inside, a full disk say, is an error that names ``path`` and the reason.

    Raises:
        OSError: with the number of the system, whichever library met it.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        known = re.search(r"\(os error (\d+)\)", str(error))
        if known is None:
            raise OSError(f"{path} cannot be written: {error}") from None
        raise OSError(int(known[1]), os.strerror(int(known[1])), str(path)) from None
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def regular(path: Path) -> Path:
    """``path``, if it is a file: opening a pipe would wait for ever, and a device has no end.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is something else.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no file, but a directory, a pipe or a device; put a file in its place")
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over ``path``, else removed.

    Raises:
        OSError: it cannot be written; the message has ``path`` and the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left half written in ``directory``; for who is alone there."""
    for path in directory.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Remove ``path`` and what is in it; a killed process leaves it whole or absent."""
    gone = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    os.replace(path, gone)
    shutil.rmtree(gone)


def sync(path: Path) -> None:
    """Make the content of a file, or a rename in a directory where the system can, durable."""
    if os.name == "posix" or not path.is_dir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary_path)`` and move the result to ``path`` in one step."""
    with atomic_path(path) as temporary:
        write(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented, sorted JSON; NaN and infinity are refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def save_tensors(
    path: Path, tensors: "Mapping[str, Tensor | NDArray[Any]]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors``, all of torch or all of numpy, as a safetensors file, whole or not at all.

    Raises:
        OSError: it cannot be written; the message has ``path`` and the reason, such as a full disk.
    """
    values: dict[str, Any] = dict(tensors)
    save_file: Callable[..., None]
    if all(isinstance(value, np.ndarray) for value in values.values()):
        from safetensors.numpy import save_file

        values = {name: np.asarray(value, order="C") for name, value in values.items()}
    else:
        from safetensors.torch import save_file

        values = {name: value.detach().cpu().contiguous() for name, value in values.items()}
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors would leave it to its owner alone
        save_file(values, temporary, dict(metadata) if metadata else None)
        temporary.chmod(mode)

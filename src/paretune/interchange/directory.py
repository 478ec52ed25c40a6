"""Writing a directory that appears whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from paretune.runs.disk import naming, sync


def write_directory(directory: str | Path, mark: str, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill an empty directory, and move that to ``directory``.

    Args:
        directory: created or replaced. It may only replace an empty directory or one of its kind.
        mark: the file by which that is known.
        write: called with a temporary directory beside it.

    Raises:
        FileExistsError: ``directory`` holds something else.
        OSError: it cannot be written; the message has ``directory`` and the reason.
    """
    directory = Path(directory)
    if (
        directory.exists()
        and not (directory / mark).is_file()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise FileExistsError(f"{directory} exists and is not an adapter; choose another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with naming(directory):
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
        try:
            write(staging)
            for file in staging.rglob("*"):
                sync(file)
            sync(staging)
            staging.chmod(0o755)
            if directory.exists():
                old = staging.with_name(staging.name.removesuffix(".tmp") + ".old.tmp")
                os.replace(directory, old)
                os.replace(staging, directory)
                shutil.rmtree(old)
            else:
                os.replace(staging, directory)
            sync(directory.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return directory

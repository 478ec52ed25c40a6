"""An object store, as fsspec (https://filesystem-spec.readthedocs.io) opens it: whole files by their names.

Object stores write one file whole, and know no locks, no renaming and no appending.
"""

import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_URL = re.compile(r"([A-Za-z][\w+.-]+):/+(.*)", re.S)
_INSTALL = "pip install 'paretune[storage]', and s3fs for s3://, gcsfs for gs://"


def as_url(path: str | Path) -> str | None:
    """``path`` without a slash at its end if it is a URL, also one that ``Path`` has shortened; else None.

    >>> as_url("s3://bucket/runs/"), as_url("runs")
    ('s3://bucket/runs', None)
    """
    known = _URL.fullmatch(path.as_posix() if isinstance(path, Path) else path)
    if known is None:
        return None
    return f"{known[1]}://{'/' if known[1] in ('file', 'local') else ''}{known[2].rstrip('/')}"


def check_local(name: str, path: str | Path) -> None:
    """Raise ValueError if ``path``, which is the argument ``name``, is a URL where none is taken."""
    if (url := as_url(path)) is not None:
        raise ValueError(
            f"{name}={url!r} is a URL, which paretune compare, paretune.sweep and compare_until take to write to: give the "
            "path of a directory of this machine here, and copy it to the URL when it is complete"
        )


class Objects:
    """The files below a URL.

    Args:
        url: as fsspec takes it; of a protocol that writes files whole.

    Raises:
        ImportError: a package is missing; the message has the line that installs it.
        ValueError: there is no such protocol, or the URL names no directory.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        options = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}
        try:
            fsspec: Any = importlib.import_module("fsspec")
            self.fs, root = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise ImportError(f"{url} needs a package that is missing ({error}): {_INSTALL}") from None
        except ValueError as error:
            raise ValueError(
                f"{url} is no URL that fsspec knows ({error}): give one such as s3://BUCKET/DIRECTORY, or a path"
            ) from None
        self.root = root.rstrip("/")
        if not self.root:
            raise ValueError(f"{url} names no directory: give one such as s3://BUCKET/DIRECTORY")

    def names(self, under: str = "") -> set[str]:
        """The files in the directory ``under`` and below, by their paths there, but for hidden ones."""
        top = self._place(under)
        with self._naming("read"):
            try:
                listed = self.fs.find(top)
            except FileNotFoundError:
                return set()
        names = (name[len(top) :].strip("/") for name in listed)
        return {name for name in names if name and not any(part.startswith(".") for part in name.split("/"))}

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        with self._naming("read"), contextlib.suppress(FileNotFoundError):
            content: bytes = self.fs.cat_file(self._place(name))
            return content
        return None

    def write(self, name: str, content: bytes) -> None:
        """Put ``content`` in the place of a file."""
        with self._naming("written"):
            self.fs.pipe_file(self._place(name), content)

    def get(self, name: str, path: Path) -> bool:
        """Copy a file to ``path``; False if there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._naming("read"), contextlib.suppress(FileNotFoundError):
            self.fs.get_file(self._place(name), str(path))
            return True
        path.unlink(missing_ok=True)
        return False

    def put(self, path: Path, name: str) -> None:
        """Copy ``path`` there."""
        with self._naming("written"):
            self.fs.put_file(str(path), self._place(name))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._naming("written"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._place(name))

    def _place(self, name: str) -> str:
        return f"{self.root}/{name.strip('/')}".rstrip("/")

    @contextlib.contextmanager
    def _naming(self, done: str) -> Iterator[None]:
        """Let whatever a store raises, which is of no common type, be an OSError that says where it was."""
        try:
            self.fs.invalidate_cache()  # other machines write there too
            yield
        except Exception as error:
            kind = PermissionError if isinstance(error, PermissionError) else OSError
            raise kind(
                f"{self.url} cannot be {done} ({type(error).__name__}: {error}); check that the bucket exists, has place "
                "and is open to the credentials of this machine"
            ) from None

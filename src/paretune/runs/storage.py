"""Runs at a URL of an object store: each is made in a directory of the machine that makes it, and sent.

Every machine has a working directory of the URL, below ``$PARETUNE_CACHE``, else ``~/.cache/paretune``. What a run has
kept at an evaluation point is sent when it is kept, so that another machine can go on from there, see
``paretune.runs.stored``.
Credentials are those that the package for the protocol finds, on every machine.
"""

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from paretune.runs import disk
from paretune.runs.holding import held
from paretune.runs.lock import alone
from paretune.runs.objects import Objects, as_url
from paretune.runs.rows import RACE, SEARCH, TASKS, read_json
from paretune.runs.stored import ABOUT, FETCHING, Stored, files, machine, working

log = logging.getLogger(__name__)

_SHARED = ("sweep.json", RACE, f"lr-search/{SEARCH}")  # beside the runs
_AT_ONCE = 16  # runs that are looked at, as most of the time is waiting
_DAY = 86400.0


@contextlib.contextmanager
def opened(out: str | Path) -> Iterator[Path]:
    """The directory to make runs for ``out`` in: itself, or the working directory of a URL, whose runs are sent there.

    One process works so at a URL: on this machine for certain, of several machines as :func:`~paretune.runs.holding.held`
    tells.

    Raises:
        BlockingIOError: another one does; the message says who.
        ImportError: fsspec, or what it needs for the URL, is missing.
        ValueError: there is no such protocol.
        OSError: the store cannot be read or written.
    """
    url = as_url(out)
    if url is None:
        yield Path(out)
        return
    objects = Objects(url)
    root = working(url)
    for left in root.glob(f"{FETCHING}*"):
        if time.time() - left.stat().st_mtime > _DAY:
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as entered:
        try:
            entered.enter_context(alone(root / ".driver-of-url"))
            entered.enter_context(held(objects, "", machine(url)))
        except BlockingIOError as error:
            raise BlockingIOError(f"out={url!r}: {error}") from None
        log.info("out=%s: runs are made in a directory of each machine, here %s, and sent there", url, root)
        _fetch_shared(objects, root)
        yield root


def local_copy(path: str | Path) -> Path:
    """``path``, or of a URL the working directory with the runs that are there now; those that are further here stay.

    Raises:
        ImportError, ValueError, OSError: as :func:`opened`.
    """
    url = as_url(path)
    if url is None:
        return Path(path)
    root, objects = working(url), Objects(url)
    names = objects.names()
    runs = _runs(names) | _runs(name for name, _ in files(root))
    _each([Stored(url, name) for name in sorted(runs)], Stored.fetch)
    _fetch_shared(objects, root)
    return root


def stored_at(path: Path) -> Stored | None:
    """What is sent from ``path``; None unless it is in a working directory."""
    for above in path.parents:
        if (above / ABOUT).is_file():
            url = str(read_json(above / ABOUT)["url"])
            return Stored(url, path.relative_to(above).as_posix()) if working(url) == above else None
    return None


def check_shared(stored: Stored | None) -> None:
    """Raise ValueError if other processes cannot see what is stored there."""
    if stored is not None and stored.root.startswith("memory:"):
        raise ValueError(
            f"out={stored.root!r} is in the memory of this process, and others make the runs: give a path, or the URL of a "
            "store that they reach"
        )


def settle(paths: Iterable[Path]) -> None:
    """Make run directories below one of :func:`opened` and their URLs the same, where nobody works on them."""
    _each([stored for path in paths if (stored := stored_at(path)) is not None], Stored.settle)


def share(file: Path) -> None:
    """Send a file beside the runs, if its directory is that of a URL."""
    if (stored := stored_at(file)) is not None:
        Objects(stored.root).put(file, stored.name)


def below(place: str | Path, *names: str) -> str:
    """The URL, or the whole path, of what is so called in ``place``."""
    url = as_url(place)
    return str(Path(place, *names).resolve()) if url is None else "/".join([url, *names])


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Where to write a file, and others beside it: ``path``, or a directory of which all is sent to a URL at the end."""
    url = as_url(path)
    if url is None:
        yield Path(path)
        return
    above, _, name = url.rpartition("/")
    objects = Objects(above)
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / name
        for file, _ in files(Path(directory)):
            objects.put(Path(directory) / file, file)


def _fetch_shared(objects: Objects, root: Path) -> None:
    for name in _SHARED:
        content = objects.read(name)
        if content is None:
            (root / name).unlink(missing_ok=True)
        else:
            disk.write_text(root / name, content.decode())


def _each(runs: Sequence[Stored], do: Callable[[Stored], None]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(do, runs))


def _runs(names: Iterable[str]) -> set[str]:
    """The outermost directories that are runs; empty for the one that these names are in."""
    marked = {
        PurePosixPath(name).parent for name in names if PurePosixPath(name).name in ("config.json", TASKS)
    }
    return {place.as_posix().removeprefix(".") for place in marked if not marked.intersection(place.parents)}

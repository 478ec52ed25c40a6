"""A run at a URL, and its directory on this machine.

Rows are sent before the checkpoint that counts them, and ``DONE`` last, so that what is at the URL is at any time a run that
readers find no fault with, and that another machine goes on from. Beside the directory of a run that may have more than its
URL lies a file that says so; without one it is a copy, which gives way to what is at the URL.
"""

import contextlib
import hashlib
import logging
import math
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from paretune._values import cache_directory
from paretune.runs import disk
from paretune.runs.forgetting import FILES
from paretune.runs.holding import HOLDER, Hold, held, holder
from paretune.runs.lock import alone
from paretune.runs.objects import Objects
from paretune.runs.rows import TASKS, read_json, read_stated

log = logging.getLogger(__name__)

ABOUT = ".storage.json"  # in a working directory: its URL, and what no other working directory is called
FETCHING = ".fetching-"  # begins what is on its way
_WHAT = ("config.json", TASKS)  # what a run is
_PATIENCE = 10.0  # seconds for who reads a run here, or has just ended


@dataclass(frozen=True)
class Stored:
    """A run at a URL, and its directory on each machine.

    Args:
        root: URL of all runs.
        name: of the directory below it; empty where ``root`` is that of the run.
    """

    root: str
    name: str

    @property
    def path(self) -> Path:
        """Its directory on this machine."""
        return working(self.root) / self.name

    @property
    def _unsent(self) -> Path:
        """Is there while the directory may have more than the URL."""
        return self.path.with_name(f".{self.path.name}.unsent")

    @property
    def _holder(self) -> str:
        return f"{self.name}/{HOLDER}".lstrip("/")

    def fetch(self) -> None:
        """Make the directory what is at the URL, unless it is further or a process of this machine is at work in it.

        Raises:
            OSError: the store cannot be read.
        """
        objects = Objects(self.root)
        names = objects.names(self.name)
        if not names:
            self._put_away()
            return
        done = sorted(name for name in names if PurePosixPath(name).name == "DONE")
        if done and _reached(self.path) == math.inf and self._same(objects, done):
            self._unsent.unlink(missing_ok=True)  # DONE was sent last
            return
        with tempfile.TemporaryDirectory(dir=working(self.root), prefix=FETCHING) as temporary:
            self._download(objects, names, Path(temporary))
            with contextlib.suppress(BlockingIOError), alone(self.path):
                if not self._unsent.exists() or _reached(self.path) < _reached(Path(temporary)):
                    _place(Path(temporary), self.path)
                    self._unsent.unlink(missing_ok=True)

    def _put_away(self) -> None:
        """Hide what was sent whole and is gone at the URL, where somebody has removed it."""
        if self._unsent.exists() or not any(files(self.path)):
            return
        gone = self.path.with_name(f".{self.path.name}.gone")
        with contextlib.suppress(BlockingIOError), alone(self.path):
            log.warning("%s has no %s any more; the copy of it here is now %s", self.root, self.name, gone)
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(self.path, gone)

    def _same(self, objects: Objects, done: Sequence[str]) -> bool:
        """Whether here and there are the same finished runs, each of which has digests of all its files."""
        here = {file: _content(self.path / file) for file, _ in files(self.path) if file.endswith("DONE")}
        return here == {file: objects.read(f"{self.name}/{file}") for file in done}

    def _download(self, objects: Objects, names: set[str], to: Path) -> None:
        """What counts rows before the rows, and these before what they name, as another machine may add to all."""
        for name in sorted(names, key=_rank, reverse=True):
            if _rank(name):
                objects.get(f"{self.name}/{name}", to / name)
        for name in sorted(objects.names(self.name)):
            if not _rank(name):
                objects.get(f"{self.name}/{name}", to / name)

    def glance(self, names: Iterable[str]) -> None:
        """Fetch these files alone, for those who watch, if nobody on this machine has to do with the run."""
        if self._unsent.exists():
            return
        objects = Objects(self.root)
        for name in names:
            content = objects.read(f"{self.name}/{name}")
            if content is not None:
                with contextlib.suppress(BlockingIOError), alone(self.path):
                    disk.write_text(self.path / name, content.decode())

    def settle(self) -> None:
        """Fetch it, or send it if it is finished here and not there."""
        self.fetch()
        if self._unsent.exists() and _reached(self.path) == math.inf:
            with sending(self, resume=True):
                pass

    def forget(self) -> None:
        """Remove all but the configuration of the run at the URL, what counts its rows first."""
        objects = Objects(self.root)
        for name in sorted(objects.names(self.name), key=_rank, reverse=True):
            if PurePosixPath(name).name not in _WHAT:
                objects.remove(f"{self.name}/{name}")

    def at_work(self) -> str | None:
        """Who works on it on another machine, if anybody does."""
        return holder(Objects(self.root), self._holder, machine(self.root))

    def release(self) -> None:
        """Let others work on it, as who did so has gone."""
        Objects(self.root).remove(self._holder)


class Sending:
    """Sends what is new in the directory of a run; as a sink, whenever there are rows and the checkpoint that counts them.

    Args:
        stored: the run.
        objects: the store.
        hold: of the run there.
    """

    def __init__(self, stored: Stored, objects: Objects, hold: Hold) -> None:
        self.stored, self.objects, self.hold = stored, objects, hold
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of each file

    def __repr__(self) -> str:
        return f"Sending({self.stored.root!r})"

    def open(self, run: Any) -> Self:
        """It takes any run, as it sends whole files."""
        return self

    def send(self, steps: Any) -> None:
        """What can be sent; the rest is sent the next time."""
        try:
            self.flush()
        except OSError as error:
            log.warning(
                "%s: %s. The run goes on in %s, and is sent later", self.stored.name, error, self.stored.path
            )

    def close(self, *, done: bool) -> None:
        """Nothing is open between two sendings."""

    def flush(self) -> None:
        """Send all that is new.

        Raises:
            OSError: the store takes nothing, or another machine has taken the run over.
        """
        self.hold.check()
        path, name = self.stored.path, self.stored.name
        known = self.objects.names(name)
        here = {file: (state.st_size, state.st_mtime_ns) for file, state in files(path)}
        finished = _reached(path) == math.inf
        for file in sorted(known - {*here}, key=_rank, reverse=True):
            if _rank(file) and not finished:  # what counts rows that are no more
                self.objects.remove(f"{name}/{file}")
        for file in sorted(here, key=_rank):
            if file not in known or self._sent.get(file) != here[file]:
                self.objects.put(path / file, f"{name}/{file}")
                self._sent[file] = here[file]
        for file in sorted(known - {*here}):
            self.objects.remove(f"{name}/{file}")


@contextlib.contextmanager
def sending(stored: Stored, *, resume: bool) -> Iterator[Sending]:
    """Work on a run here: what is at its URL is fetched before, unless this machine has more, and all is sent at the end.

    Args:
        stored: the run.
        resume: False removes what is at the URL instead.

    Raises:
        BlockingIOError: another process or machine works on it, see :func:`~paretune.runs.holding.held`.
        OSError: the store cannot be used. What is in the directory stays there, and is sent the next time.
    """
    objects = Objects(stored.root)
    with alone(stored.path, patience=_PATIENCE):
        pass
    with held(objects, stored.name, machine(stored.root)) as hold:
        if resume:
            stored.fetch()
        else:
            stored.forget()
        stored.path.parent.mkdir(parents=True, exist_ok=True)
        stored._unsent.touch()
        sender = Sending(stored, objects, hold)
        yield sender
        try:
            sender.flush()
        except OSError as error:
            raise type(error)(
                f"{error}. Nothing is lost: the run is in {stored.path}, and the same call on this machine sends it"
            ) from None
        stored._unsent.unlink(missing_ok=True)


def working(url: str) -> Path:
    """The working directory of ``url``, which no other machine has, also where they share the one above."""
    digest = hashlib.sha256(f"{socket.gethostname()} {url}".encode()).hexdigest()[:16]
    root = cache_directory("storage").absolute() / digest
    if not (root / ABOUT).exists():
        root.mkdir(parents=True, exist_ok=True)
        disk.write_json(root / ABOUT, {"url": url, "machine": uuid.uuid4().hex})
    return root


def machine(url: str) -> str:
    """What the working directory of ``url`` is called, and no other one."""
    return str(read_json(working(url) / ABOUT)["machine"])


def _rank(name: str) -> int:
    """What is read first and written last has the highest; what only rows name has 0."""
    file = PurePosixPath(name).name
    return len(FILES) - FILES.index(file) if file in FILES else 0


def files(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Each file that is sent, by its path there."""
    for above, below, beside in os.walk(directory):
        below[:] = [name for name in below if not name.startswith(".")]
        for file in beside:
            if not file.startswith("."):
                path = Path(above, file)
                yield path.relative_to(directory).as_posix(), path.stat()


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _reached(path: Path) -> float:
    """Up to which step the run in ``path`` is kept: infinity where it is finished."""
    tasks = [file.parent for file in path.glob("*/config.json")] if (path / TASKS).exists() else [path]
    if tasks and all((task / "DONE").exists() for task in tasks):
        return math.inf
    try:
        stated = read_stated(path, "")
    except ValueError:  # damaged
        return 0.0
    return 0.0 if stated is None else stated.step


def _place(source: Path, target: Path) -> None:
    """Make ``target`` what ``source`` is, which is used up; a process that is killed leaves no run that lacks rows."""
    here, new = ([file for file, _ in files(place)] for place in (target, source))
    for file in sorted(here, key=_rank, reverse=True):
        (target / file).unlink()
    for file in sorted(new, key=_rank):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, target / file)
    for directory in sorted((place for place in target.rglob("*") if place.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # there is something in it
            directory.rmdir()

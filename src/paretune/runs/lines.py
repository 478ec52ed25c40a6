"""Files of JSON lines that one process writes and others read while they grow."""

import contextlib
import errno
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from paretune.runs import disk

log = logging.getLogger(__name__)


class Lines(NamedTuple):
    """What :meth:`Tail.read` found."""

    rows: list[dict[str, Any]]
    restarted: bool  # the file was cut or replaced: these rows are all of it, not an addition


class Tail:
    """Reads what was added to a file of JSON lines since the last time.

    A last line without its newline waits for its end: a process may be writing it. A file that is gone has no lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._offset = -1, 0  # inode, and how much of it was read

    def read(self) -> Lines:
        """The rows that are new; lines that are no JSON object are left out.

        Raises:
            ValueError: there is something else than a file.
        """
        try:
            with open(disk.regular(self.path), "rb") as file:
                status = os.fstat(file.fileno())
                restarted = self._file != -1 and (
                    status.st_ino != self._file or status.st_size < self._offset
                )
                if restarted:
                    self._offset = 0
                self._file = status.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            restarted = self._file != -1
            self._file, self._offset = -1, 0
            return Lines([], restarted)
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        return Lines([row for line in content[:whole].splitlines() if (row := _row(line))], restarted)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def append_whole(file: io.FileIO, text: str, *, sync: bool) -> None:
    """Add ``text`` to an unbuffered file in a single write; what a full disk took of it is taken back.

    Raises:
        OSError: the message names the file.
    """
    content, size = text.encode(), file.seek(0, os.SEEK_END)
    with disk.naming(str(file.name)):
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


class AppendRow(Protocol):
    """What :func:`append_lines` yields."""

    def __call__(self, row: Mapping[str, Any], *, sync: bool) -> None:
        """Append ``row``, at once for those who watch; ``sync`` makes it and those before it durable."""


@contextlib.contextmanager
def append_lines(path: Path | None, last_step: int) -> Iterator[AppendRow]:
    """A function that appends one row a step to ``path``, of which those up to ``last_step`` are kept; None writes nothing.

    Lines after ``last_step`` and a torn last one are dropped: a resumed run writes them again. A file that is gone begins
    anew, and the log says so.

    Raises:
        ValueError: a line is damaged, or some up to ``last_step`` were lost.
    """
    if path is None:
        yield lambda row, *, sync: None
        return
    lines = whole_lines(path, last_step)
    if len(lines) < last_step:
        log.warning("%s lacks the steps up to %d: it was removed", path, last_step - len(lines))
    if path.exists():
        disk.write_text(path, "".join(lines))
    with open(path, "ab", buffering=0) as file:

        def append(row: Mapping[str, Any], *, sync: bool) -> None:
            append_whole(file, json.dumps(row) + "\n", sync=sync)

        yield append


def whole_lines(path: Path, last_step: int) -> list[str]:
    """The lines up to ``last_step``, which come step by step.

    Raises:
        ValueError: a line is damaged, or some up to ``last_step`` were lost.
    """
    whole = disk.regular(path).read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    lines = whole.splitlines(keepends=True)
    steps = [row.get("step") if (row := _row(line)) else None for line in lines]
    first = steps[0] if steps else last_step + 1
    if (
        not isinstance(first, int)
        or steps != [*range(first, first + len(steps))]
        or not (first <= last_step + 1 <= first + len(steps))
    ):
        raise ValueError(
            f"{path} lacks lines up to step {last_step}, or they are damaged. Restore it from a copy, or remove it: the run "
            "then goes on, and its log begins there"
        )
    return [line.decode() + "\n" for line in whole.splitlines()[: last_step + 1 - first]]

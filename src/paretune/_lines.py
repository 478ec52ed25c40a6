"""Files of JSON lines that one process writes and others read while they grow."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from paretune import _files

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
        """The rows that are new; lines that are no JSON object are left out."""
        try:
            with open(self.path, "rb") as file:
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


@contextlib.contextmanager
def append_lines(path: Path | None, last_step: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends one row to ``path``, of which the rows up to ``last_step`` are kept; None writes nothing.

    Lines after ``last_step`` and a torn last one are dropped: a resumed run writes them again.
    """
    if path is None:
        yield lambda _row: None
        return
    if path.exists():
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        lines = [line + "\n" for line in whole.splitlines()]
        _files.write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= last_step))
    with open(path, "a", encoding="utf-8", buffering=1) as file:  # line by line, for those who watch

        def append(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")

        yield append

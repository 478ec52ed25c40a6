"""The report of a directory that changes, rebuilt in a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paretune.runs.store import Run, find_runs, load_runs

log = logging.getLogger(__name__)

Build = Callable[[list[Run]], str]  # makes the page
_SHARE = 5  # a report that takes a second is made every five at most: training has the rest
_Signature = tuple[tuple[str, int, int], ...]


class Reporter:
    """Keeps the last report that could be made; at most one is made every ``every`` seconds, fewer if they take long.

    Attributes:
        html: the page, None until there is one.
        version: how many pages there were.
        problem: why the last attempt failed, or which runs are left out; None if all is well.
    """

    def __init__(self, directory: Path, every: float, build: Build | None = None) -> None:
        self.directory, self.every = directory, every
        self.html: bytes | None = None
        self.version = 0
        self.problem: str | None = None
        self._build = build or self._report
        self._known: dict[Any, Any] = {}  # conditions of the last report
        self._read: dict[Path, tuple[_Signature, Run]] = {}
        self._seen: _Signature | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="report", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """No new report is begun; one that is being made has five seconds."""
        self._stop.set()
        self._thread.join(timeout=5)

    def refresh(self) -> bool:
        """Make the report if the directory is not as it was; whether there is a new one."""
        seen = tuple(_signature(self.directory))
        if seen == self._seen:
            return False
        self._seen = seen  # a report that fails is not tried again before something changes
        try:
            runs, left_out = self._readable()
            if runs:
                self.html = self._build(runs).encode(errors="replace")  # a file may have any name
                self.version += 1
            self.problem = "; ".join(left_out) or None
            return bool(runs)
        except BaseException as error:  # a panic of the renderer is no Exception, and must not end the thread
            log.info("the report failed", exc_info=True)
            self.problem = f"{type(error).__name__}: {error}"
            return False

    def _readable(self) -> tuple[list[Run], list[str]]:
        """Runs with points, and why others are left out; a run whose files are as they were is not read again."""
        runs, left_out = [], []
        read: dict[Path, tuple[_Signature, Run]] = {}
        for path in find_runs(self.directory):
            seen = (*_files(path),)
            before = self._read.get(path)
            try:
                run = before[1] if before is not None and before[0] == seen else load_runs(path)[0]
            except Exception as error:  # whatever is in its files, the others are shown
                left_out.append(f"{path.name} is left out: {error}")
                continue
            read[path] = (seen, run)
            if len(run.points):
                runs.append(run)
        self._read = read
        return runs, left_out

    def _report(self, runs: list[Run]) -> str:
        from paretune.report.page import report_html

        return report_html(runs, known=self._known)

    def _work(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            self.refresh()
            self._stop.wait(max(self.every, (_SHARE - 1) * (time.monotonic() - started)))


def _signature(directory: Path) -> Iterator[tuple[str, int, int]]:
    """Changes when a point is added, a run begins, ends or goes; reads no file."""
    for path in find_runs(directory):
        yield from _files(path)


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    for name in ("config.json", "points.jsonl", "DONE"):
        try:
            status = (path / name).stat()
        except OSError:
            continue
        yield f"{path}/{name}", status.st_mtime_ns, status.st_size

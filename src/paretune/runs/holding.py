"""Who works in a directory of an object store, which has no locks."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from paretune.runs.objects import Objects

HOLDER = ".holder.json"  # in a directory of the store: who works there
_REFRESHED = 20.0  # seconds between two times that a holder says so
_STALE = 180.0  # seconds of silence after which it counts for nothing


class Hold:
    """That this process works in a directory of a store, see :func:`held`.

    Args:
        objects: the store.
        file: says so there.
        machine: what all processes with the same working directories have in common, and no others.
    """

    def __init__(self, objects: Objects, file: str, machine: str) -> None:
        self.objects, self.file, self.machine, self.token = objects, file, machine, uuid.uuid4().hex
        self._ended, self._refreshing = threading.Event(), threading.Thread(target=self._go_on, daemon=True)

    def check(self) -> None:
        """Raise BlockingIOError if another process has taken the directory over."""
        there = _holder(self.objects, self.file)
        if there is not None and there["token"] != self.token:
            raise BlockingIOError(f"{self._directory} was taken over by {_who(there)}")

    def refresh(self) -> None:
        """Say that this process is there."""
        told = {"machine": self.machine, "token": self.token, "time": time.time()}
        told |= {"host": socket.gethostname(), "process": os.getpid()}
        self.objects.write(self.file, json.dumps(told).encode())

    def begin(self) -> None:
        """Say so for the first time, and go on with it; raise BlockingIOError where another one does."""
        there = holder(self.objects, self.file, self.machine)
        if there is None:
            self.refresh()
            there = holder(self.objects, self.file, "", but=self.token)  # of two at once the later one
        if there is not None:
            raise BlockingIOError(
                f"{self._directory} is in use by {there}. Wait until that has ended, or end it, and give the same call again"
                f" (what was killed counts as ended {_STALE:g} seconds later)"
            )
        self._refreshing.start()

    def end(self) -> None:
        """Say so no more."""
        self._ended.set()
        self._refreshing.join()  # or it might say so once more
        with contextlib.suppress(OSError):
            self.check()
            self.objects.remove(self.file)

    def _go_on(self) -> None:
        while not self._ended.wait(_REFRESHED):
            with contextlib.suppress(OSError):  # the next time, or what is sent says it
                self.check()
                self.refresh()

    @property
    def _directory(self) -> str:
        return f"{self.objects.url}/{self.file.removesuffix(HOLDER)}".rstrip("/")


@contextlib.contextmanager
def held(objects: Objects, name: str, machine: str) -> Iterator[Hold]:
    """Be the only machine that works in the directory ``name``, as far as a store without locks can tell.

    A file there says who works, and is written again three times a minute; three minutes after the last time it counts for
    nothing. So a second machine is told who the first one is, provided that their clocks agree within a minute. Of two that
    begin in the same moment both may go on: each looks again before it writes, and stops where the other one was later.
    They would write the same rows.

    Args:
        objects: the store.
        name: of the directory there.
        machine: a name that no other one has. What a process of the same machine has left behind is taken over at once:
            locks of its own file system tell whether that is still there.

    Raises:
        BlockingIOError: another machine is at work there; the message says who.
    """
    hold = Hold(objects, f"{name}/{HOLDER}".lstrip("/"), machine)
    hold.begin()
    try:
        yield hold
    finally:
        hold.end()


def holder(objects: Objects, file: str, machine: str, *, but: str | None = None) -> str | None:
    """Who works there: None if nobody does, or one of this ``machine``, or the one whose token is ``but``."""
    there = _holder(objects, file)
    if there is None or there["machine"] == machine or there["token"] == but:
        return None
    return _who(there) if abs(time.time() - there["time"]) < _STALE else None


def _holder(objects: Objects, file: str) -> dict[str, Any] | None:
    content = objects.read(file)
    try:
        there: dict[str, Any] = json.loads(content or b"null")
        known = {name: str(there[name]) for name in ("machine", "token", "host", "process")}
        return known | {"time": float(there["time"])}
    except (ValueError, KeyError, TypeError):  # none, or what nobody of us has written
        return None


def _who(there: dict[str, Any]) -> str:
    return f"process {there['process']} on {there['host']}"

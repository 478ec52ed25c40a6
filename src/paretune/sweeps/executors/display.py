"""What comes of the runs of a sweep while they are made: bars, and what they log."""

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from paretune.runs.progress import bars


class Messages(Protocol):
    """A queue of log records, ``(name of a run, status)``, and ``(name of a run, None)`` for one that has ended."""

    def put(self, message: Any, /) -> None:
        """Add one."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take one, or raise :class:`queue.Empty`."""

    def empty(self) -> bool:
        """Whether there is none now."""


def levels() -> dict[str, int]:
    """The levels that were set, of the root logger under the empty name."""
    known = {"": logging.getLogger()} | logging.Logger.manager.loggerDict
    return {name: log.level for name, log in known.items() if isinstance(log, logging.Logger) and log.level}


@contextlib.contextmanager
def shown(messages: Messages, names: Sequence[str], *, finished: int = 0, enabled: bool) -> Iterator[None]:
    """One bar for the whole sweep and one for each run under way; and what the workers log, lines that are alike once.

    Args:
        messages: what comes of the runs.
        names: of all runs.
        finished: how many of them were so before.
        enabled: show bars.
    """
    stop = threading.Event()
    display = bars(enabled=enabled)

    def listen() -> None:
        with display:
            whole = display.add_task(f"{len(names)} runs", total=None, note="")
            tasks: dict[str, Any] = {}
            steps: dict[str, int] = {}
            total, ended = 0, finished
            logged: set[tuple[str, int, str]] = set()
            while not (stop.is_set() and messages.empty()):
                try:
                    message = messages.get(timeout=0.2)
                except queue.Empty:
                    continue
                if isinstance(message, logging.LogRecord):
                    once = getattr(message, "once", False)  # whatever the numbers in it are
                    line = message.name, message.levelno, "" if once else message.getMessage()
                    if line not in logged:
                        logging.getLogger(message.name).handle(message)
                    logged.add(line)
                    continue
                name, status = message
                if status is None:
                    ended += 1
                    steps[name] = total or steps.get(name, 0)
                    if name in tasks:
                        display.update(tasks[name], visible=False)
                else:
                    if name not in tasks:
                        tasks[name] = display.add_task(name, total=status.total, note="")
                    total, steps[name] = status.total, status.step
                    display.update(tasks[name], completed=status.step)
                    if status.clean is not None:
                        display.update(tasks[name], note=str(status))
                if total:
                    done = total * finished + sum(steps.values())
                    display.update(whole, total=total * len(names), completed=done)
                display.update(whole, note=f"{ended} done")

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)

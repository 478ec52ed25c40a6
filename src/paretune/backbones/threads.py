"""What threads need to share models: a lock, and a gate that many pass at once or one alone."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any


class Lock:
    """A reentrant lock; a copy of what holds it gets one of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


class Gate:
    """Lets any number of threads use a thing at once, or one of them change it; a copy of what holds it gets its own.

    Who waits to change it goes before those who come to use it. A thread that uses it may use it again meanwhile, and one
    that changes it may do either.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._users: dict[int, int] = {}  # how often each thread uses it
        self._changer: int | None = None
        self._waiting = 0

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Nobody else changes it meanwhile."""
        me = threading.get_ident()
        with self._turn:
            if me != self._changer and me not in self._users:
                self._turn.wait_for(lambda: self._changer is None and not self._waiting)
            self._users[me] = self._users.get(me, 0) + 1
        try:
            yield
        finally:
            with self._turn:
                self._users[me] -= 1
                if not self._users[me]:
                    del self._users[me]
                self._turn.notify_all()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Nobody else uses or changes it meanwhile.

        Raises:
            RuntimeError: this thread is using it.
        """
        me = threading.get_ident()
        with self._turn:
            nested = me == self._changer
            if not nested and me in self._users:
                raise RuntimeError("it cannot change while this thread uses it; change it before or after")
            self._waiting += 1
            try:
                self._turn.wait_for(lambda: nested or (self._changer is None and not self._users))
            finally:
                self._waiting -= 1
                self._turn.notify_all()
            self._changer = me
        try:
            yield
        finally:
            with self._turn:
                if not nested:
                    self._changer = None
                self._turn.notify_all()

    def __reduce__(self) -> tuple[Any, ...]:
        return Gate, ()

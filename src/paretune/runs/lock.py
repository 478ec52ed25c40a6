"""One process at a time in a directory."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from paretune.runs.disk import regular, remove_leftovers, write_text

log = logging.getLogger(__name__)

_LOCK, _HOLDER = ".lock", ".lock-holder"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # as some network file systems answer


@contextlib.contextmanager
def alone(directory: Path, *, patience: float = 0) -> Iterator[None]:
    """Be the only one who writes in ``directory``, and remove what killed processes left half written there.

    The lock is the system's, so that it ends with the process, however that ends. Readers need none. Where the file system
    has no locks, the log says so.

    Args:
        directory: made if it does not exist.
        patience: seconds to wait for another one to end.

    Raises:
        BlockingIOError: another one is at work there; the message says who.
    """
    directory.mkdir(parents=True, exist_ok=True)
    holder = directory / _HOLDER
    with contextlib.ExitStack() as held:
        lock = directory / _LOCK
        try:
            held.enter_context(FileLock(lock, timeout=patience))
            held.callback(_remove, lock)  # while it is held; who waits for it sees that and makes its own
        except Timeout:
            raise BlockingIOError(
                f"{directory} is in use by {_content(holder) or 'another process'}. Wait until that has ended, or end "
                "it, and give the same call again; or choose another directory"
            ) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s cannot be locked (%s): take care that no other process writes there", directory, error
            )
        remove_leftovers(directory)
        held.callback(_remove, holder)
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}")
        yield


def mine(name: str) -> bool:
    """Whether a file of this name is here because of :func:`alone`, or was left half written."""
    return name in (_LOCK, _HOLDER) or (name.startswith(".") and name.endswith(".tmp"))


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps files that are open
        file.unlink()


def _content(file: Path) -> str:
    try:
        return regular(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""

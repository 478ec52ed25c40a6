"""Train, killed with SIGKILL before the first change of the disk, then before the second of the next attempt, and so on.

Usage: python -m tests.killed DIRECTORY. Prints how many times the run was killed.
Or: python -m tests.killed DIRECTORY everything. The run keeps all that a run can keep from step to step.
Or: python -m tests.killed DIRECTORY full. From there on the disk takes nothing more, instead; each error names a file.
Or: python -m tests.killed DIRECTORY small. Files of 100 bytes are the largest, of 200 the next time, and so on.
Or: python -m tests.killed DIRECTORY tasks. Two tasks train in one run.
Or: python -m tests.killed DIRECTORY over. Starts a finished run and a half-finished one over; each time that is killed, at
the next change, and the run is resumed in DIRECTORY/finished-N or DIRECTORY/half-N.
"""

import errno
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import paretune.training.loop  # noqa: E402, F401  # once, here, instead of in every child
from paretune.runs.store import load_runs  # noqa: E402
from tests import tiny, together  # noqa: E402  # after the thread count

tiny.data()
CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir")


def child(out: Path, fatal: int, last: int, resume: bool, full: bool, largest: int) -> None:
    """Train in this process up to step ``last``; it dies just before its ``fatal``-th change of the disk takes effect.

    If ``full``, that change and all later ones are refused instead, and it exits with 3; so it does if a file would have
    more than ``largest`` bytes.
    """
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    count = 0

    def fatally(change: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if full and count >= fatal:
                named = arguments[:1] if isinstance(arguments[0], str | os.PathLike) else ()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return counting

    for name in CHANGES:
        setattr(os, name, fatally(getattr(os, name)))
    try:
        run = together.run if sys.argv[2:] == ["tasks"] else tiny.run
        options = tiny.everything() if sys.argv[2:] == ["everything"] else {}

        def end(status: Any) -> None:
            if status.step == last:
                os._exit(0)

        run(out, **options, resume=resume, progress=end)
    except OSError as error:
        known = error.errno == (errno.EFBIG if largest else errno.ENOSPC)
        os._exit(3 if known and str(out) in str(error) and "\n" not in str(error) else 1)
    os._exit(0)


def killed(
    out: Path, *, fatal: int = 0, last: int = 0, resume: bool = True, full: bool = False, largest: int = 0
) -> bool:
    """Whether a process that trained was killed, or stopped by the disk, and did not come to its end."""
    pid = os.fork()
    if pid == 0:
        child(out, fatal, last, resume, full, largest)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, 3):
        sys.exit("the child failed")
    return not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 3


if __name__ == "__main__":
    directory, kills = Path(sys.argv[1]), 0
    if sys.argv[2:] == ["over"]:
        killed(directory / "finished")
        killed(directory / "half", last=6)
        for state in ("finished", "half"):
            number = 1
            while True:
                out = directory / f"{state}-{number}"
                shutil.copytree(directory / state, out)
                if not killed(out, fatal=number, last=1, resume=False):
                    break
                (run,) = load_runs(out)  # readers find no fault with it
                assert len(run.points) == 3 or not run.done
                assert not killed(out)
                number += 1
            shutil.rmtree(out)
            kills += number - 1
    elif sys.argv[2:] == ["small"]:
        while killed(directory, largest=100 * 2**kills):
            kills += 1
    else:
        while killed(directory, fatal=kills + 1, full=sys.argv[2:] == ["full"]):
            kills += 1
    print(kills)

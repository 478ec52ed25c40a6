"""Train, killed with SIGKILL before the first change of the disk, then before the second of the next attempt, and so on.

Usage: python -m tests.killed DIRECTORY. Prints how many times the run was killed.
Or: python -m tests.killed DIRECTORY over. Starts a finished run and a half-finished one over; each time that is killed, at
the next change, and the run is resumed in DIRECTORY/finished-N or DIRECTORY/half-N.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

import paretune.training  # noqa: E402, F401  # once, here, instead of in every child
from paretune.results import load_runs  # noqa: E402
from tests import tiny  # noqa: E402  # after the thread count

tiny.data()
CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir")


def child(out: Path, fatal: int, last: int, resume: bool) -> None:
    """Train in this process up to step ``last``; it dies just before its ``fatal``-th change of the disk takes effect."""
    count = 0

    def fatally(change: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return counting

    for name in CHANGES:
        setattr(os, name, fatally(getattr(os, name)))
    tiny.run(out, resume=resume, progress=lambda status: os._exit(0) if status.step == last else None)
    os._exit(0)


def killed(out: Path, *, fatal: int = 0, last: int = 0, resume: bool = True) -> bool:
    """Whether a process that trained was killed, and did not come to its end."""
    pid = os.fork()
    if pid == 0:
        child(out, fatal, last, resume)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("the child failed")
    return not os.WIFEXITED(status)


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
    else:
        while killed(directory, fatal=kills + 1):
            kills += 1
    print(kills)

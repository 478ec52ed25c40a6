"""Train, killed with SIGKILL at the first write to disk, then at the second of the next attempt, and so on to the end.

Usage: python tests/killed.py DIRECTORY. Prints how many times the run was killed.
"""

import os
import signal
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

import paretune.training  # noqa: E402, F401  # once, here, instead of in every child
from tests import tiny  # noqa: E402  # after the thread count

tiny.data()


def child(out: Path, fatal: int) -> None:
    """Train in this process; it dies just before its ``fatal``-th sync to disk takes effect."""
    sync, count = os.fsync, 0

    def counting(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = counting
    tiny.run(out)
    os._exit(0)


if __name__ == "__main__":
    directory, kills = Path(sys.argv[1]), 0
    while True:
        pid = os.fork()
        if pid == 0:
            child(directory, fatal=kills + 1)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit("the child failed")
            break
        kills += 1
    print(kills)

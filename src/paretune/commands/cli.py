"""The command line: errors, exit codes, what is logged. Errors are one line and exit code 2."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from paretune.commands.parser import Level, read

# Which weights of a checkpoint were taken; precision and engine, and why; which images are left out; what makes it slow;
# which learning rates a search tries and takes; which runs were lost, and how many fit into memory.
TOLD = (
    "paretune.backbones.weights",
    "paretune.attacks.copy",
    "paretune.data.files",
    "paretune.evaluation.speed",
    "paretune.sweeps.searching",
    "paretune.sweeps.executors.cluster",
    "paretune.sweeps.executors.local",
)
LAUNCHED = ("paretune.training.processes",)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``paretune``; returns the exit code."""
    logging.basicConfig(level=logging.ERROR, format="paretune: %(message)s")
    log = logging.getLogger(__name__)
    try:
        called = read(sys.argv[1:] if argv is None else argv)
        if called is not None:
            command, level = called
            _listen(level)
            with _flushed():
                command()
    except KeyboardInterrupt:
        print("paretune: stopped; the same command goes on from the last evaluation point", file=sys.stderr)
        return 130
    except Exception as error:
        log.debug("details", exc_info=True)
        told = " ".join(str(error).split())
        if not told or not isinstance(error, ValueError | TypeError | OSError | ImportError | RuntimeError):
            told = f"{type(error).__name__}: {told}"  # the text alone says little, as of a KeyError
        if "can't allocate memory" in told or "out of memory" in told:
            told = "there is not enough memory; lower --img-size, --batch-size or --limit"
        print(f"paretune: error: {told}", file=sys.stderr)
        return 2
    return 0


def _listen(level: Level | None) -> None:
    """Let through what the package logs from ``level`` on; None is errors, and what a user wants to know anyway."""
    logging.getLogger("paretune").setLevel(level.upper() if level else logging.NOTSET)
    for name in TOLD + LAUNCHED * ("MASTER_ADDR" in os.environ):
        logging.getLogger(name).setLevel(level.upper() if level else logging.INFO)


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Write out what is printed inside; what a full disk or a closed pipe does not take is dropped, not tried again."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise

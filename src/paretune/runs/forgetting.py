"""The order in which the files of a run count."""

from pathlib import Path

from paretune.runs import disk
from paretune.runs.examples import EXAMPLES
from paretune.runs.rows import BEST, CHECKPOINT

# Beside config.json. What counts the rows stands before the rows: removed in this order, or written in the opposite one, a
# process that is killed leaves a run that goes on or starts over, and never one that lacks rows.
FILES = ("DONE", "sinks.json", CHECKPOINT, BEST, "points.jsonl", "log.jsonl", EXAMPLES)


def forget(path: Path) -> None:
    """Remove all but the configuration of the run in ``path``."""
    for name in FILES:
        (path / name).unlink(missing_ok=True)
        disk.sync(path)

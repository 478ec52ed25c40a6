"""How far a run is, and what it takes."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column


@dataclass(frozen=True)
class Status:
    """One finished training step.

    Args:
        step: optimizer steps done.
        total: optimizer steps of the run.
        epsilon: strength of the training attack at this step.
        loss: mean loss of the batch.
        accuracy: accuracy on the batch as trained on (attacked if epsilon > 0).
        clean: clean accuracy on the select split, at evaluation points.
        robust: robust accuracy on the select split, at evaluation points.
    """

    step: int
    total: int
    epsilon: float
    loss: float
    accuracy: float
    clean: float | None = None
    robust: float | None = None

    def __str__(self) -> str:
        text = f"eps {255 * self.epsilon:.2f}/255  loss {self.loss:.3f}"
        if self.clean is not None:
            text += f"  clean {self.clean:.3f}"
        if self.robust is not None:
            text += f"  robust {self.robust:.3f}"
        return text


@contextlib.contextmanager
def progress_bar(
    progress: bool | Callable[[Status], None], name: str, total: int
) -> Iterator[Callable[[Status], None]]:
    """What to call after each step: nothing, the user's function, or a bar with the time left on the terminal."""
    if not progress:
        yield lambda _status: None
    elif callable(progress):
        yield progress
    else:
        with bars() as shown:
            task = shown.add_task(name, total=total, note="")
            measured = ""

            def show(status: Status) -> None:
                nonlocal measured
                if status.clean is not None:
                    measured = str(status).partition("  clean")[2]
                note = str(status).partition("  clean")[0] + (f"  clean{measured}" if measured else "")
                shown.update(task, completed=status.step, note=note)

            yield show


def bars(*, enabled: bool = True) -> Progress:
    """A rich display of bars with elapsed time and time left, on standard error; nothing unless ``enabled``.

    Where the terminal is narrow, the note is cut, and nothing else.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=Console(stderr=True),
        expand=True,
        disable=not enabled,
    )


def peak_memory_bytes() -> int:
    """Largest memory of this process so far: on the GPU if there is one in use, else resident."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated() > 0:
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

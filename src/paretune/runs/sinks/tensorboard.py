"""TensorBoard: event files beside the run, for ``tensorboard --logdir RUNS``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from paretune.runs.sinks.base import Receiver, Sink, SinkRun, StepRows


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Sink):
    """Scalars in event files, which hold them in single precision.

    Args:
        directory: the events of run NAME go to ``directory/NAME``; None writes them to ``RUN/tensorboard``.
    """

    PACKAGE: ClassVar[str] = "tensorboard"
    INSTALL: ClassVar[str] = 'pip install "paretune[tensorboard]"'
    directory: str | None = None

    def open(self, run: SinkRun) -> Receiver:
        """Write a new event file; what an older one holds of steps that come again is void."""
        from torch.utils.tensorboard import SummaryWriter

        path = run.path / "tensorboard" if self.directory is None else Path(self.directory) / run.name
        # purge_step is TensorBoard's own mark for a restart: readers discard earlier events from that step on.
        writer = SummaryWriter(str(path), purge_step=run.sent + 1 if path.exists() else None)
        if run.sent == 0:
            text = json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False)
            writer.add_text("config", f"```json\n{text}\n```")
        return _Events(writer)


class _Events:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def send(self, steps: Sequence[StepRows]) -> None:
        for rows in steps:
            for name, value in rows.values().items():
                self.writer.add_scalar(name, value, rows.step)
        self.writer.flush()

    def close(self, *, done: bool) -> None:
        self.writer.close()

"""trackio: local dashboards in the manner of W&B, for ``trackio show``."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from paretune.runs.sinks.base import Receiver, Sink, SinkRun, StepRows


@dataclass(frozen=True, kw_only=True)
class Trackio(Sink):
    """The history of a trackio run, kept where trackio keeps its data (TRACKIO_DIR).

    Args:
        project: of the run.
        space_id: "user/space" to show it on the hub; None stays on this machine.
    """

    PACKAGE: ClassVar[str] = "trackio"
    INSTALL: ClassVar[str] = "pip install trackio"
    project: str = "paretune"
    space_id: str | None = None

    def open(self, run: SinkRun) -> Receiver:
        """Go on with the run of this name and key, or begin it."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            opened = trackio.init(
                project=self.project,
                name=f"{run.name}-{run.key[:8]}",
                group=str(run.config["task"]),
                space_id=self.space_id,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return _TrackioRun(opened)


class _TrackioRun:
    def __init__(self, run: Any) -> None:
        self.run = run

    def send(self, steps: Sequence[StepRows]) -> None:
        for rows in steps:
            self.run.log(rows.values(), step=rows.step)

    def close(self, *, done: bool) -> None:
        import trackio

        current = trackio.context_vars.current_run.get() is self.run
        with contextlib.redirect_stdout(io.StringIO()):
            (trackio.finish if current else self.run.finish)()

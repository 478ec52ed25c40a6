"""Weights & Biases: one W&B run for each run, online or offline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from paretune.runs.sinks.base import Receiver, Sink, SinkRun, StepRows


@dataclass(frozen=True, kw_only=True)
class WandB(Sink):
    """The history of a W&B run. An offline run lies in ``RUN/wandb`` until ``wandb sync`` uploads it.

    Args:
        project: of the run.
        entity: user or team; None takes W&B's own setting.
        mode: online or offline; None takes W&B's own setting (WANDB_MODE).
    """

    PACKAGE: ClassVar[str] = "wandb"
    INSTALL: ClassVar[str] = 'pip install "paretune[wandb]"'
    project: str = "paretune"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None

    def open(self, run: SinkRun) -> Receiver:
        """Go on with the W&B run whose id is the key of the run, or begin it."""
        import wandb

        opened = wandb.init(
            entity=self.entity,
            project=self.project,
            dir=str(run.path),
            id=run.key,
            name=run.name,
            group=str(run.config["task"]),
            config=dict(run.config),
            mode=self.mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        return _WandBRun(opened)


class _WandBRun:
    def __init__(self, run: Any) -> None:
        self.run = run

    def send(self, steps: Sequence[StepRows]) -> None:
        for rows in steps:
            if rows.step >= self.run.step:  # W&B takes a step once; a resumed run knows where it was
                self.run.log(rows.values(), step=rows.step, commit=True)

    def close(self, *, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)

"""Sinks: TensorBoard, MLflow, W&B and trackio receive the rows of a run, if asked to.

:data:`SINKS` lists them. Any other object with an ``open(run)`` like theirs can stand beside them.
"""

from paretune._values import parse_many, told
from paretune.runs.sinks.base import Receiver, Sink, SinkRun, StepRows, forwarding
from paretune.runs.sinks.mlflow import MLflow
from paretune.runs.sinks.tensorboard import TensorBoard
from paretune.runs.sinks.trackio import Trackio
from paretune.runs.sinks.wandb import WandB

#: The dashboards by the names that the command line reads.
SINKS: dict[str, type[Sink]] = {
    "TensorBoard": TensorBoard,
    "MLflow": MLflow,
    "WandB": WandB,
    "Trackio": Trackio,
}


def read_sinks(text: str | None) -> tuple[Sink, ...]:
    """Sinks from ``"tensorboard, MLflow(experiment='digits')"``; None and the empty text name none.

    Raises:
        ValueError: the text names something else.
        ImportError: a package is not installed; the message has the line that installs it.
    """
    with told("sinks", text):
        return tuple(parse_many(text, SINKS)) if text else ()


__all__ = [
    "SINKS",
    "MLflow",
    "Receiver",
    "Sink",
    "SinkRun",
    "StepRows",
    "TensorBoard",
    "Trackio",
    "WandB",
    "forwarding",
    "read_sinks",
]

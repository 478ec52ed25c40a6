"""Training on several data sets at once, by the one loop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from paretune.backbones.backbone import Backbone
from paretune.data.images import ImageData, as_data
from paretune.runs.store import Run, load_runs
from paretune.training.loop import train
from paretune.training.objectives import Objective
from paretune.training.tasks import Tasks


def train_tasks(
    model: Backbone,
    tasks: Mapping[str, ImageData | Any],
    objective: Objective,
    *,
    out: str | Path,
    weights: Mapping[str, float] | Literal["size"] | None = None,
    batch_sizes: Mapping[str, int] | None = None,
    **options: Any,
) -> dict[str, Run]:
    """Train the adapted ``model`` in place on several tasks at once, which share its adapter and have a head each.

    A step learns a batch of every task; its loss is Σ w · loss of the task. Everything else holds for all tasks alike: the
    objective, the schedules, the attacks. Each task has a run directory ``out/NAME``, with the points that were measured on
    its own splits and an adapter for a backbone with its classes alone; what is there of costs is of the whole training.
    ``out`` has the log, the checkpoint and an adapter with the heads of all, of which :func:`view` gives the model of one.

    A task that is short begins its next epoch when it ends; an epoch of the training is one of the task with the most steps
    in it. Where batch norms adapt, each batch is normalised by itself, and the running statistics are of all tasks in turn.
    With ``keep``, a point is as good as the mean over the tasks.

    Args:
        model: from :func:`~paretune.adapt`, with as many logits as the tasks have classes together.
        tasks: the data of each task by its name, which its rows have; the order is that of the blocks of the head. The data
            is what :func:`~paretune.train` takes.
        objective: as for :func:`~paretune.train`.
        out: the directory of all runs.
        weights: w of each task, above 0. None is 1 / tasks each; ``"size"`` is the share of its train split in all of them.
        batch_sizes: images a step of each task; ``batch_size`` of each when None.
        **options: of :func:`~paretune.train`, by their names.

    Returns:
        The run of each task.

    Raises:
        ValueError: as :func:`~paretune.train`; or names, weights or batch sizes are not one for each task, images of tasks
            have other sizes, one task learns what another is measured on, the head cannot be divided, ``precision`` is
            ``"auto"``, or a launcher has started several processes.
    """
    data = {name: as_data(source, model.image_size) for name, source in tasks.items()}
    train(model, Tasks(data, weights, batch_sizes), objective, out=out, **options)
    return {name: load_runs(Path(out) / name)[0] for name in data}

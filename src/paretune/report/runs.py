"""What a report calls a run, and what it says of its configuration."""

import os

from paretune.runs.fields import flat
from paretune.runs.store import Run

# What other columns tell, and what says nothing to a reader.
_TOLD = (
    *("schema", "task", "seed", "strategy", "strategy_config", "strategy_fields", "weights", "data"),
    "augmentation_fields",
)


def run_names(runs: list[Run]) -> list[str]:
    """Where each run is, below the directory that all share; the name of the directory for a single one."""
    paths = [run.path.absolute() for run in runs]
    if len(paths) == 1:
        return [paths[0].name]
    common = os.path.commonpath(paths)
    return [path.relative_to(common).as_posix() for path in paths]


def run_settings(runs: list[Run]) -> list[str]:
    """The strategy of each run, and in which settings it differs from other runs of its task.

    ``LoRA(rank=8), optimizer.lr=0.001`` where learning rates differ.
    """
    told = [
        {name: str(value) for name, value in flat(run.config).items() if name.partition(".")[0] not in _TOLD}
        for run in runs
    ]
    values: dict[tuple[str, str], set[str]] = {}  # of each task and setting
    for run, settings in zip(runs, told, strict=True):
        for name, value in settings.items():
            values.setdefault((str(run.config["task"]), name), set()).add(value)
    texts = []
    for run, settings in zip(runs, told, strict=True):
        task = str(run.config["task"])
        differing = [f"{name}={value}" for name, value in settings.items() if len(values[task, name]) > 1]
        texts.append(", ".join([str(run.config["strategy_config"]), *differing]))
    return texts

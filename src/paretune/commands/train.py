"""``paretune train``: one strategy, one run directory."""

from dataclasses import dataclass, fields
from pathlib import Path

from paretune.commands._judging import print_confirmations
from paretune.commands._printing import cell, print_findings, print_table
from paretune.sweeps.config import RunConfig, SearchConfig


@dataclass(frozen=True, kw_only=True)
class Train(RunConfig, SearchConfig):
    """Train one strategy on one task; the run directory holds its points and its adapter.

    Args:
        out: the run directory.
        resume: go on if it was stopped; false starts it over.
        sinks: dashboards that receive the rows too, separated by commas: tensorboard, mlflow, wandb, trackio, with options
            as in "MLflow(experiment='digits')".
    """

    out: str = "paretune-run"
    resume: bool = True
    sinks: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise ValueError("out is empty; name a directory")

    def __call__(self) -> None:
        """Train and print the points."""
        from accelerate import PartialState

        from paretune.runs.sinks import read_sinks
        from paretune.sweeps.searching import with_rates

        sinks = read_sinks(self.sinks)
        if self.lr == "auto" and PartialState().num_processes > 1:
            raise ValueError(
                "lr='auto' tries rates in processes of its own; search in one process, and give --lr what it finds"
            )
        task = RunConfig(**{field.name: getattr(self, field.name) for field in fields(RunConfig)})
        (config,) = with_rates([task], self, self.out, resume=self.resume)
        runs = config.run(self.out, resume=self.resume, sinks=sinks)
        if not PartialState().is_main_process:
            return
        for run in runs:
            columns = ["step", "epoch", "attack", "clean", "robust"]
            named = [name for name in map(str, run.points) if name.startswith(("clean_in_", "robust_in_"))]
            pooled = [name for name in ("clean_elsewhere", "robust_elsewhere") if name in run.points]
            columns += named if len(named) <= 6 else pooled
            if config.sources:
                print(f"\n{run.config['task']}")
            rows = run.points[columns].itertuples(index=False)
            print_table(columns, [[cell(value) for value in row] for row in rows])
        print_confirmations(runs)
        print_findings(runs)
        for run in runs:
            of_task = f" of {run.config['task']}" if config.sources else ""
            print(f"\nadapter{of_task}: {(run.path / 'adapter').resolve()}")
        if config.sources:
            print(f"\nadapter of all: {(Path(self.out) / 'adapter').resolve()}")

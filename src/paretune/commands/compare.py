"""``paretune compare``: every strategy on one task, the table, the report."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from paretune.commands._judging import Judging, print_condition
from paretune.commands._printing import print_findings
from paretune.sweeps.config import CompareConfig


@dataclass(frozen=True, kw_only=True)
class Compare(Judging, CompareConfig):
    """Train every strategy on one task and report which has the best frontier.

    Args:
        out: directory of the runs and the report.
        workers: processes; null takes one a core, or one in all with a GPU.
        resume: go on with stopped runs; false starts them over.
        sinks: dashboards that receive the rows too, separated by commas: tensorboard, mlflow, wandb, trackio, with options
            as in "MLflow(experiment='digits')".
    """

    out: str = "paretune-runs"
    workers: int | None = None
    resume: bool = True
    sinks: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise ValueError("out is empty; name a directory")

    def __call__(self) -> None:
        """Sweep, table, report."""
        from paretune.frontiers.comparing import compare
        from paretune.report import write_report
        from paretune.runs.lock import alone
        from paretune.runs.naming import threat_text
        from paretune.runs.sinks import read_sinks
        from paretune.sweeps.grid import run_all

        sinks = read_sinks(self.sinks)
        tell = partial(print, flush=True)
        runs = run_all(
            self.runs(), self.out, workers=self.workers, resume=self.resume, sinks=sinks, tell=tell
        )
        judged = self.within(runs)
        for condition in compare(judged, **self.options).conditions:
            threat = threat_text(condition.threat, condition.epsilon)
            print_condition(
                condition, f"{condition.task}, {threat}, PGD with {self.eval_steps} steps, {self.backbone}"
            )
        for run in runs:
            print_findings(run)
        with alone(Path(self.out), patience=60):
            page = write_report(judged, Path(self.out) / "report.html", **self.options)
        print(f"\nreport: {page.resolve()}")

"""``paretune compare``: every strategy on one task, the table, the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from paretune.commands._printing import print_findings, print_table
from paretune.config import CompareConfig


@dataclass(frozen=True, kw_only=True)
class Compare(CompareConfig):
    """Train every strategy on one task and report which has the best frontier.

    Args:
        out: directory of the runs and the report.
        workers: processes; null takes one a core, or one in all with a GPU.
        resume: go on with stopped runs; false starts them over.
    """

    HELP: ClassVar[str] = "train every strategy on one task and report which has the best frontier"
    out: str = "paretune-runs"
    workers: int | None = None
    resume: bool = True

    def __call__(self) -> None:
        """Sweep, table, report."""
        from paretune.report import write_report
        from paretune.stats import compare
        from paretune.sweep import sweep
        from paretune.verdict import threat_text

        runs = sweep(self.runs(), self.out, workers=self.workers, resume=self.resume)
        for condition in compare(runs).conditions:
            steps = f"PGD with {self.eval_steps} steps"
            print(
                f"\n{condition.task}, {threat_text(condition.threat, condition.epsilon)}, {steps}, {self.backbone}"
            )
            print_table(
                [
                    "strategy",
                    "area",
                    "95 % interval",
                    "per seed",
                    "best clean",
                    "best robust",
                    "trainable",
                ],
                [
                    [
                        each.strategy,
                        f"{each.area:.3f}",
                        f"{each.low:.3f} to {each.high:.3f}",
                        " ".join(f"{area:.3f}" for area in each.per_seed),
                        f"{each.best_clean:.3f}",
                        f"{each.best_robust:.3f}",
                        f"{each.trainable_parameters:,}",
                    ]
                    for each in condition.areas
                ],
            )
            print(condition.verdict)
            for note in condition.notes:
                print(f"note: {note}")
        for run in runs:
            print_findings(run)
        print(f"\nreport: {write_report(runs, Path(self.out) / 'report.html').resolve()}")

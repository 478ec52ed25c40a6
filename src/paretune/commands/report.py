"""``paretune report``: the page of finished runs, and what it says."""

from dataclasses import dataclass
from pathlib import Path

from paretune.commands._judging import Judging, print_condition


@dataclass(frozen=True)
class Report(Judging):
    """Write the report of finished runs: one HTML file, and beside it the figure as SVG, PNG and PDF and the areas as CSV.

    Args:
        runs: a run directory, or a directory of them.
        task: only this one; all when null.
        out: the HTML file; report.html in that directory when null.
    """

    runs: str
    task: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and (not self.out or Path(self.out).is_dir()):
            what = "is a directory" if self.out else "is empty"
            raise ValueError(f"out={self.out!r} {what}; name the HTML file")

    def __call__(self) -> None:
        """Judge, write, say where."""
        from paretune.frontiers.comparing import compare, of_task
        from paretune.report import write_report
        from paretune.runs.naming import condition_names
        from paretune.runs.store import load_runs

        judged = self.within(of_task(load_runs(self.runs), self.task))
        conditions = compare(judged, **self.options).conditions
        names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in conditions])
        for name, condition in zip(names, conditions, strict=True):
            print_condition(condition, name)
        out = Path(self.out) if self.out is not None else Path(self.runs) / "report.html"
        print(f"\nreport: {write_report(judged, out, **self.options).resolve()}")

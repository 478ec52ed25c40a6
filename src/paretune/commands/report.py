"""``paretune report``: the page of finished runs, and what it says."""

from dataclasses import dataclass
from pathlib import Path

from paretune.commands._judging import Judging, print_condition, print_confirmations
from paretune.commands._selecting import Selecting


@dataclass(frozen=True)
class Report(Judging, Selecting):
    """Write the report of finished runs: one HTML file, and beside it the figure as SVG, PNG and PDF and the areas as CSV.

    Args:
        runs: run directories, or directories of them, or URLs of either, such as s3://bucket/runs.
        task: only this one; all when null.
        title: of the page and the picture.
        out: the HTML file, or its URL; report.html in the first directory when null.
        tables: also write the areas and pairs beside it for papers, as tables.tex (LaTeX with booktabs) and tables.md.
    """

    runs: list[str]
    task: str | None = None
    title: str | None = None
    out: str | None = None
    tables: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and (not self.out or Path(self.out).is_dir()):
            what = "is a directory" if self.out else "is empty"
            raise ValueError(f"out={self.out!r} {what}; name the HTML file")

    def __call__(self) -> None:
        """Judge, write, say where."""
        from paretune.frontiers.comparing import compare, of_task
        from paretune.report import write_report, write_tables
        from paretune.runs.naming import condition_names
        from paretune.runs.storage import below, written
        from paretune.runs.store import as_runs

        judged = self.within(of_task(self.select(as_runs(self.runs)), self.task))
        comparison = compare(judged, **self.options)
        conditions = comparison.conditions
        names = condition_names([(c.task, c.threat, c.epsilon, c.attack) for c in conditions])
        for name, condition in zip(names, conditions, strict=True):
            print_condition(condition, name)
        print_confirmations(judged, self.start)
        place = below(self.runs[0], "report.html") if self.out is None else below(self.out)
        with written(place) as page:
            write_report(judged, page, title=self.title, **self.options)
            tables = write_tables(comparison, page.parent) if self.tables else ()
        print(f"\nreport: {place}")
        for path in tables:
            print(f"tables: {place.removesuffix(page.name)}{path.name}")

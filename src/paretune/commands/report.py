"""``paretune report``: the page of finished runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class Report:
    """Write the report of finished runs: one HTML file, and beside it the figure as SVG and PNG and the areas as CSV.

    Args:
        runs: a run directory, or a directory of them.
        out: the HTML file; report.html in that directory when null.
    """

    HELP: ClassVar[str] = "write the HTML report, SVG, PNG and CSV of finished runs"
    runs: str
    out: str | None = None

    def __call__(self) -> None:
        """Write and say where."""
        from paretune.report import write_report

        out = Path(self.out) if self.out else Path(self.runs) / "report.html"
        print(f"report: {write_report(self.runs, out).resolve()}")

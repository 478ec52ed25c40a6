"""Tables and findings, as the command line prints them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.results import Run


def print_findings(run: "Run") -> None:
    """What training noticed, a line each."""
    from paretune._rows import read_json

    for finding in read_json(run.path / "DONE").get("findings", ()):
        print(f"{run.path.name}, step {finding['step']}: {finding['finding']}")


def cell(value: Any) -> str:
    """Text of one cell; four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width; do not squeeze the columns
    console.print(table)

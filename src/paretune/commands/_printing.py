"""Tables and findings, as the command line prints them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.runs.store import Run

LONGEST = 1000  # letters of a text
MOST = 100  # entries of a list


def print_findings(runs: "Sequence[Run]") -> None:
    """What training noticed, a line each; of several tasks that were learnt at once it is said once."""
    from paretune.runs.rows import read_findings, training_of

    for path, run in {training_of(run.path): run for run in runs}.items():
        for finding in read_findings(run.path):
            print(f"{path.name}, step {finding['step']}: {finding['finding']}")


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


def shortened(content: Any, depth: int = 8) -> Any:
    """``content`` of a file that somebody else wrote, short enough to print: the beginnings of texts and lists."""
    if isinstance(content, str) and len(content) > LONGEST:
        return f"{content[:LONGEST]}… ({len(content):,} letters)"
    if isinstance(content, dict | list) and content and not depth:
        return "…"
    if isinstance(content, list):
        more = [f"… ({len(content):,} entries)"] if len(content) > MOST else []
        return [shortened(item, depth - 1) for item in content[:MOST]] + more
    if isinstance(content, dict):
        some = list(content.items())[:MOST]
        short = {shortened(key): shortened(value, depth - 1) for key, value in some}
        return short | ({"…": f"{len(content):,} entries"} if len(content) > MOST else {})
    return content

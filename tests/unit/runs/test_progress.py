"""What the bars look like."""

import io

import pytest
from rich.console import Console

from paretune.runs.progress import bars


@pytest.mark.parametrize("width", [72, 80, 120])
def test_a_long_note_is_cut_and_the_times_stay(width: int) -> None:
    shown = bars()
    task = shown.add_task("evaluate", total=2000, note="")
    shown.update(
        task, completed=73.4, note="PGD(Linf(0.00784313725490197), steps=20, restarts=5, momentum=0.75)"
    )
    text = io.StringIO()
    Console(file=text, width=width).print(shown.get_renderable())
    (line,) = text.getvalue().splitlines()
    assert len(line) <= width
    assert line.startswith("evaluate ")
    assert "  73/2000 0:00:00 left -:--:-- PGD(" in line
    assert line.rstrip().endswith("…")

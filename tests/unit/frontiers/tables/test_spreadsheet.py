"""No CSV that is written runs in a spreadsheet, and all of them say what they were given."""

import csv
import re
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

import paretune as pt
from paretune.frontiers.tables.spreadsheet import csv_text, harmless, original
from tests.synthetic import Strategy, write_runs

NAMES = (
    '=HYPERLINK("http://example.org","x")',
    "+cmd|' /C calc'!A0",
    "-2+3+cmd|x",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "\uff1dSUM(A1)",  # full width, which East Asian spreadsheets run too
    "\uff0b1+cmd|x",
    "\uff0d1+cmd|x",
    "\uff20SUM(A1)",
    "'=already",
    "plain, with a comma",
    "'quoted'",
)


def cells(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [*csv.reader(file)]


def runs_as_a_formula(cell: str) -> bool:
    return (
        cell[:1] in tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20") and re.fullmatch(r"[-+0-9.e ]+", cell) is None
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_harmless_comes_back(name: str) -> None:
    assert not runs_as_a_formula(harmless(name))
    assert original([harmless(name), "A"]) == [name, "A"]


def test_numbers_stay_numbers() -> None:
    table = pd.DataFrame(
        {"name": ["-1", "+2", "-"], "value": [-1.5, float("nan"), 2.0], "list": ["-0.1 0.2", "1", ""]}
    )
    assert csv_text(table).splitlines() == ["name,value,list", "-1,-1.5,-0.1 0.2", "+2,,1", "'-,2.0,"]


def test_a_column_that_holds_formulas_was_not_made_harmless() -> None:
    """In somebody's table an apostrophe is part of the name."""
    assert original(["'=1", "=1"]) == ["'=1", "=1"]


def test_the_areas_of_an_analysis_are_harmless_and_read_back(tmp_path: Path) -> None:
    frame = pd.DataFrame({"strategy": [*NAMES], "task": "@task", "clean": 0.9, "robust": 0.4})
    analysis = pt.analyze(frame, task="task")
    page = pt.report.write_analysis(analysis, tmp_path / "out")
    rows = cells(tmp_path / "out" / "areas.csv")
    assert len(rows) == 1 + len(NAMES)
    assert not any(runs_as_a_formula(cell) for row in rows for cell in row)
    (link,) = re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', page.read_text(encoding="utf-8"))
    assert [*csv.reader(unquote(link).splitlines(keepends=True))] == rows
    back = pt.analyze(_with_accuracies(tmp_path / "out" / "areas.csv"), group="group", task="task")
    assert {each.strategy for each in back.areas} == {*NAMES}
    assert {each.task for each in back.areas} == {"@task"}


def _with_accuracies(path: Path) -> Path:
    """The file with two columns more, as a spreadsheet would add them."""
    head, *rows = cells(path)
    made = path.with_name("more.csv")
    with open(made, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[*head, "clean", "robust"], *([*row, "0.9", "0.4"] for row in rows)])
    return made


def test_the_areas_of_a_report_are_harmless_and_read_back(tmp_path: Path) -> None:
    strategies = [Strategy(name, f"{name}()", 0.01 * place, 10) for place, name in enumerate(NAMES[:5])]
    write_runs(tmp_path / "runs", strategies, (0,), points=2, examples=60, task="=task()")
    pt.write_report(tmp_path / "runs", tmp_path / "report.html")
    rows = cells(tmp_path / "areas.csv")
    assert len(rows) == 6
    assert not any(runs_as_a_formula(cell) for row in rows for cell in row)
    back = pt.analyze(
        tmp_path / "areas.csv", group="strategy", task="task", clean="best_clean", robust="best_robust"
    )
    assert {each.strategy for each in back.areas} == {*NAMES[:5]}
    assert {each.task for each in back.areas} == {"=task()"}

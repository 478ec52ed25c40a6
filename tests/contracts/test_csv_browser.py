"""What the buttons of a page save is harmless in a spreadsheet."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import paretune as pt
from paretune.frontiers.tables.spreadsheet import original
from tests.contracts.test_report_browser import Opened, browser
from tests.unit.frontiers.tables.test_spreadsheet import NAMES, runs_as_a_formula

__all__ = ["browser"]  # a fixture
pytestmark = pytest.mark.browser


def test_the_numbers_behind_a_picture_are_saved_without_formulas(browser: Any, tmp_path: Path) -> None:
    names = [name for name in NAMES if not name[0].isspace()]
    frame = pd.DataFrame({"strategy": names, "clean": 0.9, "robust": 0.4, "seed": "-1"})
    pt.report.write_analysis(pt.analyze(frame, seed="seed"), tmp_path / "out")
    opened = Opened(browser, tmp_path / "out" / "report.html")
    behind = opened.page.locator("#frontier-0 ~ .behind")
    behind.locator("summary").press("Enter")
    with opened.page.expect_download() as saved:
        behind.locator("button").click()
    with open(saved.value.path(), newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert not any(runs_as_a_formula(cell) for row in rows for cell in row)
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    assert {*original(columns["strategy"])} == {*names}
    assert {*columns["seed"]} == {"-1"}

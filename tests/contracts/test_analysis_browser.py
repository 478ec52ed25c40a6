"""The page of an analysis in a real browser without a network: tens of groups, several tasks, hostile names."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import paretune as pt
from tests.contracts.test_report_browser import ENDING, HOSTILE, LONG, Opened, browser

__all__ = ["browser"]  # a fixture
pytestmark = pytest.mark.browser


def table(groups: list[str], tasks: list[str], seeds: int) -> pd.DataFrame:
    """Curves of eight points; later groups are better."""
    rng = np.random.default_rng(0)
    progress = np.linspace(0.1, 1, 8)
    rows = []
    for task in tasks:
        for number, group in enumerate(groups):
            for seed in range(seeds):
                robust = 0.1 + 0.3 * np.sqrt(progress) + 0.01 * number + 0.02 * rng.standard_normal()
                clean = 0.95 - 0.2 * progress**2 + 0.005 * rng.standard_normal(8)
                rows.append(
                    pd.DataFrame(
                        {"strategy": group, "task": task, "seed": seed, "clean": clean, "robust": robust}
                    )
                )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small: three groups, three seeds; many: 30 groups, 5 tasks; hostile: names that try to run or to overflow."""
    root = tmp_path_factory.mktemp("analyses")
    made = {
        "small": (["A", "B", "C"], ["digits"], 3),
        "many": ([f"method {number:02d}" for number in range(30)], list("vwxyz"), 1),
        "hostile": ([HOSTILE, ENDING, LONG, "${title}`'\"\\", "=1+1"], [ENDING, HOSTILE], 3),
    }
    for name, (groups, tasks, seeds) in made.items():
        analysis = pt.analyze(table(groups, tasks, seeds), task="task", seed="seed")
        pt.report.write_analysis(analysis, root / name, title=HOSTILE if name == "hostile" else None)
    return root


@pytest.mark.slow
@pytest.mark.some(2)
@pytest.mark.parametrize("name", ["small", "many", "hostile"])
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_it_fits_the_screen_and_nothing_fails(
    browser: Any, pages: Path, name: str, width: int, scheme: str
) -> None:
    opened = Opened(browser, pages / name / "report.html", width=width, scheme=scheme)
    opened.page.evaluate("document.querySelectorAll('details.fold').forEach(fold => { fold.open = true; })")
    opened.page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))"
    )
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.said == []
    assert opened.asked == []
    assert (pages / name / "report.html").stat().st_size < 1_500_000
    opened.context.close()


def test_every_group_is_in_the_pictures_and_the_table(browser: Any, pages: Path) -> None:
    opened = Opened(browser, pages / "small" / "report.html")
    assert opened.marks("stairs").count() == 9  # three groups of three seeds
    assert {*opened.page.locator("tbody th span").all_inner_texts()} >= {"A", "B", "C"}
    marks = opened.marks("chosen")
    rows = table(["A", "B", "C"], ["digits"], 3)
    fronts = [
        pt.frontiers.frontier(own[["clean", "robust"]].to_numpy())
        for _, own in rows.groupby(["strategy", "seed"])
    ]
    assert marks.count() == sum(map(len, fronts))
    marks.last.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5000)
    assert [*tooltip.locator("td.key").all_inner_texts()] == ["Group", "Seed", "Row", "Clean", "Robust"]
    assert "C has the largest area" in opened.page.locator(".verdict").inner_text()
    opened.context.close()


def test_of_many_groups_the_best_stand_out_and_any_can_be_seen_alone(browser: Any, pages: Path) -> None:
    opened = Opened(browser, pages / "many" / "report.html")
    page = opened.page
    assert page.locator(".many figure").count() == 5
    assert page.locator("details.fold[open]").count() == 0
    page.locator("#main a").first.click()  # the link of a task opens its section
    page.wait_for_function("document.querySelector('#task-0 details.fold').open")
    page.locator("#frontier-0 svg").wait_for()
    assert opened.marks("stairs").count() == 7  # of the seven best
    section = page.locator("#task-0")
    section.locator("summary", has_text="other groups").click()
    section.locator(".pick", has_text="method 00").click()
    opened.settle()
    assert opened.faint() == opened.marks("chosen").count()  # those of the best
    opened.context.close()


def test_hostile_names_stay_text(browser: Any, pages: Path) -> None:
    opened = Opened(browser, pages / "hostile" / "report.html")
    page = opened.page
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3
    assert page.locator("h1").inner_text() == HOSTILE
    assert HOSTILE in page.locator(".pick span").all_inner_texts()
    assert ENDING in page.locator("#task-0 h2").inner_text() + page.locator("#task-1 h2").inner_text()
    opened.marks("chosen").last.hover(force=True)
    opened.settle()
    assert page.locator("#vg-tooltip-element img").count() == 0
    assert opened.said == []
    opened.context.close()

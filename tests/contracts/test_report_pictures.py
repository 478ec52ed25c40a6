"""Pictures and classes in a real browser: they load, fit the screen, and scroll where they are wider."""

from pathlib import Path
from typing import Any

import pytest

from paretune.report import report_html
from tests.contracts.test_report_browser import ENDING, HOSTILE, LONG, Opened, browser  # noqa: F401  # a fixture
from tests.synthetic import ATTACK, STRATEGIES, Strategy, write_runs
from tests.unit.report.test_pictures import keep

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks and two attacks; classes and a strategy with names that try to run or to overflow."""
    root = tmp_path_factory.mktemp("pictures")
    attacks = ((ATTACK, "Linf", 4 / 255, 1.0), ("PGD(L2(0.5))", "L2", 0.5, 0.8))
    strategies = (STRATEGIES[0], Strategy(LONG, f"{LONG}()", 0.0, 1000))
    for task in ("digits", ENDING.replace("/", "")):
        runs = write_runs(root / "runs" / str(len(task)), strategies, points=4, task=task, attacks=attacks)
        for run in runs.iterdir():
            keep(run, (HOSTILE, "a-long-name-without-any-place-to-break-it", "owl"), step=80)
    (root / "page.html").write_text(report_html(root / "runs"), encoding="utf-8")
    return root / "page.html"


@pytest.mark.parametrize("width", [390, 1440])
def test_pictures_load_and_fit(browser: Any, page_of_pictures: Path, width: int) -> None:  # noqa: F811
    opened = Opened(browser, page_of_pictures, width)
    page = opened.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    opened.open_all()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.locator(".pictures img")
    assert images.count() == 2 * 2 * 7
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth == 6)")
    assert page.evaluate("[...document.images].every((image) => image.alt)")
    assert page.evaluate("getComputedStyle(document.images[0]).imageRendering") == "pixelated"
    for region in page.locator(".grids .scroll").all():
        box = region.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert opened.said == []
    assert opened.asked == []
    opened.context.close()

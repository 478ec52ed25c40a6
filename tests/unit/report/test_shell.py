"""Any analysis fits the page: plain text is escaped, plots are data, nothing is loaded."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from paretune.report.drawing import styles
from paretune.report.shell import assemble, csv_link
from paretune.report.specs.areas import forest_spec
from paretune.report.specs.frontier import ON_PAGE
from tests.unit.report.reading import Page

HOSTILE = "</script><img src=x onerror=alert(2)>\"'&${title}\u2028"


@dataclass(frozen=True)
class Given:
    """An area from a table without repeats: it has no interval."""

    strategy: str
    area: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()
    per_seed: tuple[float, ...] = ()


@pytest.fixture
def page(tmp_path: Path) -> Page:
    areas = [Given(HOSTILE, 0.5), Given("B", 0.4, 0.3, 0.5, (0, 1), (0.35, 0.45))]
    plots = {"forest": forest_spec(areas, styles([HOSTILE, "B"]), ON_PAGE)}
    body = '<p id="own">$summary</p><div class="chart" id="forest"></div>' + csv_link(
        "a b.csv", "x\n1,é\n", HOSTILE
    )
    path = tmp_path / "page.html"
    path.write_text(
        assemble(title=HOSTILE, summary=f"{HOSTILE} $body", body=body, plots=plots), encoding="utf-8"
    )
    return Page(path)


def test_title_and_summary_are_text_and_the_body_is_html(page: Page) -> None:
    assert page.text.count(HOSTILE) == 4  # title, heading, summary, label of the link
    assert "$summary" in page.text
    assert [a["id"] for a in page.tags("p") if "id" in a] == ["own"]
    assert not page.tags("img")
    assert len(page.scripts) == 3


def test_names_in_plots_are_data(page: Page) -> None:
    assert page.plots["forest"]["datasets"]["areas"][0]["strategy"] == HOSTILE
    assert not {*"<>&\u2028"} & {*page.scripts[0]}


def test_an_area_without_an_interval_has_a_point_and_no_bar(page: Page) -> None:
    rows = page.plots["forest"]["datasets"]["areas"]
    assert [row["low"] for row in rows] == [None, 0.3]
    bar = next(layer for layer in page.plots["forest"]["layer"] if layer["mark"]["type"] == "rule")
    assert bar["transform"] == [{"filter": "isValid(datum.low) && isValid(datum.high)"}]
    assert [row["seed"] for row in page.plots["forest"]["datasets"]["seeds"]] == [0, 1]


def test_a_csv_link_carries_the_whole_file(page: Page) -> None:
    (link,) = page.tags("a")[1:]
    assert link["download"] == "a b.csv"
    assert link["href"] is not None
    assert unquote(link["href"]).partition(",")[2] == "x\n1,é\n"

"""The page in a real browser without a network: nothing fails, everything can be read, pointed at and pressed."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from paretune.frontiers.comparing import compare
from paretune.report import page as page_module
from paretune.report import write_report
from paretune.report.drawing import as_points
from paretune.runs.store import load_runs
from tests.synthetic import STRATEGIES, Strategy, write_run, write_runs

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

HOSTILE = "<script>alert(1)</script>"
ENDING = "</script><img src=x onerror=alert(2)>"
LONG = "Adapter(placement='both', reduction=32, nonlinearity='gelu_new', initialiser='a-rather-long-word-that-must-break')"


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("PARETUNE_REQUIRE_BROWSER") == "1":
        pytest.fail("PARETUNE_REQUIRE_BROWSER=1, but no Chromium is on PATH")
    pytest.skip("no Chromium on PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain: four strategies, two seeds; several: two tasks at two epsilons, which is enough to fold them;
    hostile: two conditions with names that try to run or to overflow;
    crowd: thirteen strategies, twelve of them nearly equal and one without any robustness."""
    root = tmp_path_factory.mktemp("reports")
    write_runs(root / "plain-runs")
    weak_and_strong = [(f"PGD(Linf({radius}))", "Linf", radius, 1 - 20 * radius) for radius in (0.01, 0.02)]
    for task in ("birds", "cars"):
        options = {"points": 5, "examples": 80, "task": task, "attacks": weak_and_strong}
        write_runs(root / "several-runs" / task, STRATEGIES[:3], **options)
    attacks = ((f"PGD({HOSTILE})", "Linf", 4 / 255, 1.0), ("PGD(L2(0.5))", "L2", 0.5, 0.8))
    for number, name in enumerate((HOSTILE, ENDING, LONG, "${title}`'\"\\")):
        strategy = Strategy(name, f"{name}()", 0.05 * number, 10 ** (number + 2))
        write_run(root / "hostile-runs" / str(number), strategy, points=4, task=ENDING, attacks=attacks)
    near = [Strategy(f"Close({n})", f"Close({n})", 0.004 * n, 10**n) for n in range(12)]
    near.append(Strategy("Chance", "Chance()", -0.5, 7))
    write_runs(root / "crowd-runs", near, points=5, examples=80)
    with pytest.MonkeyPatch.context() as patch:
        for picture in ("frontier_png", "frontier_pdf"):  # slow, and not looked at here
            patch.setattr(page_module, picture, lambda *_, **__: b"")
        for name in ("plain", "several", "hostile", "crowd"):
            write_report(root / f"{name}-runs", root / f"{name}.html")
    return root


class Opened:
    """A page, what its console said, what it asked for, and whether a dialog opened."""

    def __init__(self, browser: Any, file: Path, width: int = 1200, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context.route(re.compile("^(?!file:)"), self._refuse)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.goto(file.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready === 'true'", timeout=30_000)

    def _refuse(self, route: Any) -> None:
        self.asked.append(route.request.url)
        route.abort()

    def _dismiss(self, dialog: Any) -> None:
        self.said.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def marks(self, name: str, plot: str = "frontier-0") -> Any:
        return self.page.locator(f"#{plot} .{name}_marks path")

    def faint(self, name: str = "chosen", plot: str = "frontier-0") -> int:
        """How many marks are drawn faintly."""
        opacities = self.marks(name, plot).evaluate_all("marks => marks.map(m => +m.getAttribute('opacity'))")
        return sum(opacity < 0.2 for opacity in opacities)

    def open_all(self) -> None:
        """Unfold every section and wait for its pictures."""
        self.page.locator("details.fold").evaluate_all(
            "folds => folds.forEach(fold => { fold.open = true; })"
        )
        self.page.wait_for_function(
            "[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))",
            timeout=60_000,
        )

    def settle(self) -> None:
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )


@pytest.fixture
def opened(browser: Any, reports: Path) -> Iterator[Opened]:
    page = Opened(browser, reports / "plain.html")
    yield page
    page.context.close()


def test_everything_is_drawn_and_nothing_fails(opened: Opened, reports: Path) -> None:
    assert opened.said == []
    assert opened.asked == []
    points = as_points(load_runs(reports / "plain-runs"))
    assert opened.marks("chosen").count() == points["chosen"].sum()
    assert opened.marks("stairs").count() == 8  # one for each seed
    for plot in ("frontier-0", "forest-0", "matrix-0", "cost-0", "time-0", "budget-0"):
        picture = opened.page.locator(f"#{plot} svg")
        assert picture.bounding_box()["height"] > 150
        chart = opened.page.locator(f"#{plot}")
        assert chart.get_attribute("role") == "graphics-document"
        assert "LoRA" in chart.get_attribute("aria-label")


def test_hovering_shows_the_point(opened: Opened, reports: Path) -> None:
    points = as_points(load_runs(reports / "plain-runs"))
    mark = opened.marks("chosen").last
    mark.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5000)
    shown = dict(zip(*[iter(tooltip.locator("td").all_inner_texts())] * 2, strict=True))
    row = points[
        (points["label"] == shown["Strategy"])
        & (points["seed"] == int(shown["Seed"]))
        & (points["step"] == int(shown["Step"].replace(",", "")))
    ].iloc[0]
    for title in ("Clean", "Robust"):  # halves are rounded up there, and to even numbers here
        assert float(shown[title].rstrip("%")) == pytest.approx(100 * row[title.lower()], abs=0.051)
    opened.page.mouse.move(1, 1)
    opened.page.locator("#vg-tooltip-element:not(.visible)").wait_for(state="hidden", timeout=5000)


def test_a_strategy_is_isolated_by_name_by_mark_and_by_keyboard(opened: Opened) -> None:
    total = opened.marks("chosen").count()
    pick = opened.page.locator(".pick", has_text="BitFit")
    pick.click()
    opened.settle()
    others = opened.faint()
    assert 0 < others < total
    assert pick.get_attribute("aria-pressed") == "true"
    assert opened.page.locator(".pick[aria-pressed=true]").count() == 1
    opened.page.keyboard.press("Escape")
    opened.settle()
    assert opened.faint() == 0
    pick.focus()
    opened.page.keyboard.press("Enter")
    opened.settle()
    assert opened.faint() == others
    opened.page.keyboard.press("Enter")
    opened.settle()
    assert opened.faint() == 0
    assert pick.get_attribute("aria-pressed") == "false"
    opened.marks("chosen").last.click(force=True)
    opened.settle()
    assert 0 < opened.faint() < total
    assert opened.page.locator(".pick[aria-pressed=true]").count() == 1
    opened.page.locator("#frontier-0 svg").click(position={"x": 90, "y": 390})  # an empty corner
    opened.settle()
    assert opened.faint() == 0
    assert opened.page.locator(".pick[aria-pressed=true]").count() == 0


def test_the_whole_range_can_be_shown(opened: Opened) -> None:
    def labels() -> set[str]:
        return {*opened.page.locator("#frontier-0 .role-axis-label text").all_text_contents()}

    before, visited = labels(), opened.marks("visited").count()
    assert not {"0%", "100%"} <= before
    opened.page.locator(".zoom").click()
    opened.settle()
    assert {"0%", "100%"} <= labels()
    assert opened.marks("visited").count() > visited
    opened.page.locator(".zoom").click()
    opened.settle()
    assert labels() == before


@pytest.mark.some
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1440])
@pytest.mark.parametrize("name", ["plain", "several", "hostile", "crowd"])
def test_the_page_fits_the_screen(browser: Any, reports: Path, name: str, width: int, scheme: str) -> None:
    opened = Opened(browser, reports / f"{name}.html", width, scheme)
    opened.open_all()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in opened.page.locator(".chart svg").all():
        box = plot.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] > 0.75 * min(width, 420) or "overview" in plot.locator("..").get_attribute("id")
    for number in range(opened.page.locator(".condition").count()):
        frame = opened.page.locator(f"#forest-{number} path.background").first.bounding_box()
        assert frame["width"] > 0.9 * opened.page.locator(f"#forest-{number}").bounding_box()["width"]
    assert opened.said == []
    opened.context.close()


def contrast(page: Any, selector: str, attribute: str) -> float:
    """The contrast of a colour with the card behind it, by the definition of WCAG 2."""
    script = """([selector, attribute]) => {
      const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = (c) => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
      const luminance = (text) => { const [r, g, b] = rgb(text).map(light); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const element = document.querySelector(selector);
      const pair = [getComputedStyle(element)[attribute], getComputedStyle(document.querySelector(".card")).backgroundColor];
      const [low, high] = pair.map(luminance).sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    }"""
    return float(page.evaluate(script, [selector, attribute]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_ground(browser: Any, reports: Path, scheme: str) -> None:
    opened = Opened(browser, reports / "plain.html", scheme=scheme)
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    for selector in (
        "body",
        ".small",
        "thead th",
        "a.skip",
        "summary",
        ".behind summary",
        ".badge",
        "a.save",
    ):
        assert contrast(opened.page, selector, "color") >= 4.5, selector
    for selector in (".role-axis-label text", "#forest-0 .mark-text.role-mark text"):
        assert contrast(opened.page, selector, "fill") >= 4.5, selector
    for number in range(8):
        for variable, least in (
            (f"--text-{number}", 4.5),
            (f"--colour-{number}", 3.0 if scheme == "dark" else 2.0),
        ):
            opened.page.evaluate("name => { document.body.style.outlineColor = `var(${name})`; }", variable)
            assert contrast(opened.page, "body", "outlineColor") >= least, variable
    opened.page.emulate_media(media="print", color_scheme=scheme)
    assert contrast(opened.page, "body", "color") > 12
    assert (
        opened.page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    opened.context.close()


def test_hostile_names_stay_text(browser: Any, reports: Path) -> None:
    opened = Opened(browser, reports / "hostile.html")
    page = opened.page
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3
    assert [*page.locator(".pick span").all_inner_texts()].count(HOSTILE) == 3  # overview, two conditions
    assert ENDING in page.locator("h2").nth(1).inner_text()
    for summary in page.locator(".behind summary").all():
        summary.click()
    table = page.locator("#frontier-0 ~ .behind table")
    table.wait_for(timeout=5000)
    assert HOSTILE in table.locator("tbody th").all_inner_texts()
    for mark in opened.marks("chosen").all():
        mark.hover(force=True)
        opened.settle()
    page.locator(".pick", has_text=ENDING).first.click()
    opened.settle()
    assert 0 < opened.faint() < opened.marks("chosen").count()
    assert page.locator("#vg-tooltip-element img").count() == 0
    assert opened.said == []
    assert opened.asked == []
    opened.context.close()


@pytest.fixture
def several(browser: Any, reports: Path) -> Iterator[Opened]:
    page = Opened(browser, reports / "several.html")
    yield page
    page.context.close()


def test_links_of_the_overview_unfold_the_sections(several: Opened) -> None:
    section = several.page.locator("#condition-3")
    assert section.locator("svg.marks").count() == 0
    several.page.locator("a[href='#condition-3']").last.click()
    several.page.locator("#budget-3 svg.marks").wait_for(timeout=20_000)
    assert several.page.url.endswith("#condition-3")
    assert -1 < section.bounding_box()["y"] < 900
    assert section.locator("svg.marks").count() == 6
    assert several.page.locator("#condition-2 svg.marks").count() == 0
    assert several.said == []


def test_the_overview_shows_every_condition_and_what_holds_across_tasks(several: Opened) -> None:
    page = several.page
    assert page.locator(".many .chart svg.marks").count() == 4
    assert page.locator("details.fold[open]").count() == 0
    assert [*page.locator("section h3").all_inner_texts()][:2] == [
        "Across 2 tasks L∞ ≤ 0.01",
        "Across 2 tasks L∞ ≤ 0.02",
    ]
    page.locator(".pick", has_text="BitFit").first.click()
    several.settle()
    for number in range(4):
        stairs = several.marks("stairs", f"overview-{number}")
        assert (stairs.count(), several.faint("stairs", f"overview-{number}")) == (6, 4)
    page.locator("#condition-0 summary").first.press("Enter")  # drawn with the strategy isolated already
    page.locator("#budget-0 svg.marks").wait_for(timeout=20_000)
    several.settle()
    assert several.faint("stairs") == 4


def test_accuracy_over_epsilon_is_drawn_for_each_task(several: Opened) -> None:
    several.open_all()
    for number in range(2):
        assert several.marks("lines", f"epsilon-{number}").count() == 3
        assert several.marks("marks", f"epsilon-{number}").count() == 9  # clean and two epsilons
    assert several.said == []


def test_a_strategy_is_isolated_in_every_picture(opened: Opened) -> None:
    places = {
        ("stairs", "frontier-0"): 8,
        ("areas", "forest-0"): 4,
        ("cells", "matrix-0"): 12,
        ("costs", "cost-0"): 4,
        ("costs", "time-0"): 4,
        ("lines", "budget-0"): 4,
    }
    opened.marks("areas", "forest-0").first.click(force=True)
    opened.settle()
    for (name, plot), count in places.items():
        assert opened.marks(name, plot).count() == count
        # Of the matrix, one row and one column of four stay.
        assert opened.faint(name, plot) == (6 if name == "cells" else count * 3 // 4), plot
    opened.page.keyboard.press("Escape")
    opened.settle()
    assert sum(opened.faint(*place) for place in places) == 0


def test_faint_marks_do_not_hide_the_isolated_ones_from_the_pointer(opened: Opened) -> None:
    opened.page.locator(".pick", has_text="BitFit").click()
    opened.settle()
    events = opened.marks("chosen").evaluate_all(
        "marks => marks.map(m => [m.getAttribute('opacity') < 0.1, getComputedStyle(m).pointerEvents])"
    )
    assert {(faint, "none" if faint else "auto") for faint in (True, False)} == {
        (faint, "none" if pointer == "none" else "auto") for faint, pointer in events
    }


def test_the_matrix_tells_a_pair(opened: Opened, reports: Path) -> None:
    (condition,) = compare(reports / "plain-runs").conditions
    opened.marks("targets", "matrix-0").first.hover()
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5000)
    shown = dict(zip(*[iter(tooltip.locator("td").all_inner_texts())] * 2, strict=True))
    pair = next(
        d for d in condition.differences if (d.strategy_a, d.strategy_b) == (shown["Row"], shown["Column"])
    )
    assert shown["Difference of areas"].replace("−", "-") == f"{pair.difference:+.4f}"
    assert shown["Row ahead"] == f"{pair.ahead:.0%}"


def test_numbers_stand_behind_the_picture_and_can_be_saved(opened: Opened, reports: Path) -> None:
    points = as_points(load_runs(reports / "plain-runs"))
    behind = opened.page.locator("#frontier-0 ~ .behind")
    behind.locator("summary").press("Enter")
    behind.locator("tbody tr").last.wait_for(timeout=5000)
    assert behind.locator("tbody tr").count() == len(points)
    with opened.page.expect_download() as saved:
        behind.locator("button").click()
    table = pd.read_csv(saved.value.path())
    assert sorted(table["robust"]) == pytest.approx(sorted(points["robust"]), abs=1e-4)
    assert {*table["config"]} == {strategy.config for strategy in STRATEGIES}
    with opened.page.expect_download() as saved:
        opened.page.locator("a.save").click()
    assert saved.value.suggested_filename == "areas.csv"
    areas = pd.read_csv(saved.value.path())
    assert [*areas["area"]] == [each.area for each in compare(reports / "plain-runs").areas]


def test_paper_shows_what_is_folded(several: Opened, tmp_path: Path) -> None:
    page = several.page
    page.pdf(path=tmp_path / "page.pdf")
    assert several.said == []
    assert page.locator("details.fold[open]").count() == 0  # again
    page.emulate_media(media="print")
    assert all(not button.is_visible() for button in page.locator(".zoom, .save, .behind").all())
    page.emulate_media(media="screen")
    page.locator("details.fold").evaluate_all("folds => folds.forEach(fold => { fold.open = true; })")
    assert page.locator(".chart:not(:has(svg))").count() == 0  # drawn for the paper


def test_the_page_can_be_used_from_the_keyboard(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator("a.skip").bounding_box()["x"] >= 0
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"pick", "zoom", "SUMMARY"} <= {*reached}
    page.locator(".fold > summary").focus()
    page.keyboard.press("Enter")
    assert not page.locator("#frontier-0").is_visible()


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    """Where the visible elements are painted, in pixels; marks without their rim."""
    script = """elements => elements.filter(e => e.getAttribute('opacity') !== '0').map(e => {
      const { left, right, top, bottom } = e.getBoundingClientRect();
      return { left, right, top, bottom };
    })"""
    return [*page.locator(selector).evaluate_all(script)]


def overlap(a: dict[str, float], b: dict[str, float]) -> bool:
    across = a["left"] < b["right"] - 1 and b["left"] < a["right"] - 1
    return across and a["top"] < b["bottom"] - 1 and b["top"] < a["bottom"] - 1


@pytest.mark.some(3)
@pytest.mark.parametrize("width", [700, 761, 900, 1120, 1440])
@pytest.mark.parametrize("name", ["plain", "crowd"])
def test_no_name_is_painted_on_a_mark_or_another_name(
    browser: Any, reports: Path, name: str, width: int
) -> None:
    opened = Opened(browser, reports / f"{name}.html", width)
    for plot, kinds in (
        ("frontier-0", ("chosen", "visited", "origin")),
        ("cost-0", ("costs",)),
        ("time-0", ("costs",)),
    ):
        names = boxes(opened.page, f"#{plot} .mark-text.role-mark text")
        texts = [*{(each["left"], each["top"]): each for each in names}.values()]  # without halos
        marks = [box for kind in kinds for box in boxes(opened.page, f"#{plot} .{kind}_marks path")]
        assert marks
        assert texts or (name, width) != ("plain", 1440)
        for i, text in enumerate(texts):
            assert not any(overlap(text, mark) for mark in marks), plot
            assert not any(overlap(text, other) for other in texts[:i]), plot
    opened.context.close()


def test_legends_and_tables_have_the_order_of_the_areas(browser: Any, reports: Path) -> None:
    opened = Opened(browser, reports / "crowd.html")
    (condition,) = compare(reports / "crowd-runs").conditions
    ranked = [each.strategy for each in condition.areas]
    section = opened.page.locator("#condition-0")
    assert section.locator(".pick span").all_inner_texts() == ranked
    assert section.locator(".pick small").all_inner_texts() == [
        f"{each.area:.3f} ({each.low:.3f} to {each.high:.3f})" for each in condition.areas
    ]
    named = section.locator("h3 ~ .scroll").first.locator("tbody th span").all_inner_texts()
    assert [text.removesuffix("\u00a0★") for text in named] == ranked
    opened.context.close()


def test_tables_scroll_by_themselves_on_a_phone(browser: Any, reports: Path) -> None:
    opened = Opened(browser, reports / "crowd.html", 390)
    page = opened.page
    for summary in page.locator("details > summary").all():
        if summary.locator("..").get_attribute("open") is None:
            summary.click()
    page.locator("#frontier-0 ~ .behind table").wait_for(timeout=5000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    areas = page.locator(".scroll").first
    assert areas.evaluate("scroll => scroll.scrollWidth > scroll.clientWidth")
    for table in page.locator("table:visible").all():
        assert table.locator("xpath=..").evaluate("parent => getComputedStyle(parent).overflowX") == "auto"
    opened.context.close()


def test_where_areas_start_is_drawn_where_it_is_in_view(opened: Opened) -> None:
    assert "outside this view" in opened.page.locator("#condition-0 figcaption").first.inner_text()
    assert opened.marks("origin").count() == 0
    opened.page.locator(".zoom").click()
    opened.settle()
    assert opened.marks("origin").count() == 1


def test_the_course_of_training_is_shown_of_one_strategy(opened: Opened) -> None:
    assert opened.marks("course").count() == 0
    opened.page.locator(".pick", has_text="BitFit").click()
    opened.settle()
    assert opened.marks("course").count() == 2  # seeds

"""The page holds the numbers of the comparison, is one offline file, and runs nothing that a name says."""

import dataclasses
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from paretune.report import page as page_module
from paretune.report import write_report
from paretune.report.drawing import styles
from paretune.report.tables import duration, pair_table
from paretune.results import load_points, load_runs
from paretune.stats import compare
from tests.synthetic import STRATEGIES, Strategy, write_run

HOSTILE = "<script>alert(1)</script>"
ENDING = "</script><img src=x onerror=alert(2)>\"'&${title}\u2028"


class Page(HTMLParser):
    """Elements, attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def plots(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])["plots"]


@pytest.fixture(scope="session")
def page(report: Path) -> Page:
    return Page(report)


def test_four_files_are_written(report: Path) -> None:
    assert sorted(file.name for file in report.parent.iterdir()) == [
        "areas.csv",
        "page.html",
        "page.png",
        "page.svg",
    ]
    assert report.stat().st_size < 1_500_000


def test_the_table_beside_the_page_holds_the_areas(report: Path, runs: Path) -> None:
    table = pd.read_csv(report.with_name("areas.csv"))
    areas = compare(runs, reference=(0.1, 0.0)).areas
    assert len(table) == len(areas) == 12
    for (_, row), estimate in zip(table.iterrows(), areas, strict=True):
        assert row["strategy"] == estimate.strategy
        assert (row["area"], row["low"]) == pytest.approx((estimate.area, estimate.low))
        assert [float(value) for value in row["per_seed"].split()] == pytest.approx(estimate.per_seed)
        assert row["seeds"] == "0 1"


def test_the_page_holds_the_same_numbers(page: Page, runs: Path) -> None:
    comparison = compare(runs, reference=(0.1, 0.0))
    text = re.sub(r"\s+", " ", page.text)
    for condition in comparison.conditions:
        sentence, _, covers = condition.verdict.partition(". ")
        assert f"{sentence}. {covers}" in text
        assert all(change in text for change in condition.recommendation.would_change)
        for estimate in condition.areas:
            assert f"{estimate.low:.3f} – {estimate.high:.3f}" in text
        for difference in condition.differences:
            assert f"{difference.difference:+.3f}".replace("-", "−") in text
    assert "400 report images · 200 select images" in text
    assert "point (0.1, 0)" in text
    assert "paretune 0.1.0, torch 2.9.0" in text
    assert "4 strategies · 8 runs · 192 points" in text
    assert "PGD(Linf(4/255), steps=20)" in text


def test_each_section_shows_its_own_points(page: Page, runs: Path) -> None:
    points = load_points(runs)
    for number, condition in enumerate(compare(runs).conditions):
        expected = points[points["attack"] == condition.attack]
        shown = pd.DataFrame(page.plots[f"frontier-{number}"]["datasets"]["points"])
        assert sorted(shown["robust"]) == pytest.approx(sorted(expected["robust"]), abs=1e-5)
        areas = pd.DataFrame(page.plots[f"forest-{number}"]["datasets"]["areas"])
        assert [*areas["strategy"]] == [estimate.strategy for estimate in condition.areas]


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    links = [attributes["href"] for attributes in page.tags("a")]
    assert len(links) == 4
    assert all(link and link.removeprefix("#") in ids for link in links)
    labelled = [
        attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes
    ]
    assert {*labelled} <= {*ids}


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert not page.tags("link")
    assert not any("src" in attributes for _, attributes in page.elements)
    policy = next(a["content"] for a in page.tags("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_specifications_compile_and_describe_themselves(page: Page) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    assert len(page.plots) == 9
    for name, plot in page.plots.items():
        vl_convert.vegalite_to_vega({**plot, "width": 500})
        assert "LoRA" in plot["description"], name
    frontier = page.plots["frontier-0"]
    assert len(frontier["datasets"]["points"]) == 64
    assert {*frontier["datasets"]["points"][0]} == {
        "strategy", "seed", "step", "run", "clean", "robust", "chosen", "inside",
    }  # fmt: skip


def test_the_legend_is_made_of_buttons(page: Page) -> None:
    picks = [a for a in page.tags("button") if a["class"] == "pick"]
    assert len(picks) == 12
    assert all(a["aria-pressed"] == "false" for a in picks)
    assert {a["data-strategy"] for a in picks} == {strategy.name for strategy in STRATEGIES}


def test_hostile_names_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "frontier_png", lambda *_, **__: b"")
    attacks = ((f"PGD({HOSTILE})", HOSTILE, 4 / 255, 1.0),)
    options: dict[str, Any] = {
        "points": 3,
        "examples": 60,
        "task": ENDING,
        "attacks": attacks,
        "finish": False,
    }
    write_run(tmp_path / "runs" / "<b>run", Strategy(HOSTILE, f"A({ENDING})", 0.0, 5), **options)
    write_run(tmp_path / "runs" / "other", Strategy(ENDING, "B()", 0.1, 6), **options)
    page = Page(write_report(tmp_path / "runs", tmp_path / "page.html", title=f"{HOSTILE} $data"))
    assert len(page.scripts) == 3
    assert not page.tags("img")
    assert not page.tags("b")
    assert page.text.count(HOSTILE) >= 7
    assert ENDING in page.text
    assert "<b>run" in page.text
    assert f"{HOSTILE} $data" in page.text
    assert {a["data-strategy"] for a in page.tags("button") if a["class"] == "pick"} == {HOSTILE, ENDING}
    assert {row["strategy"] for row in page.plots["frontier-0"]["datasets"]["points"]} == {HOSTILE, ENDING}
    assert not {*"<>&\u2028"} & {*page.scripts[0]}


def test_the_same_runs_give_the_same_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "frontier_png", lambda *_, **__: b"")
    run = load_runs(write_run(tmp_path / "run", STRATEGIES[0], points=2, finish=False))
    first, second = (write_report(run, tmp_path / name / "r.html").read_bytes() for name in "ab")
    assert first == second
    page = Page(tmp_path / "a" / "r.html")
    assert "LoRA has an area of" in page.text
    assert "Use" not in page.text
    assert "1 of 1 runs are not finished: run." in page.text
    assert "1 strategy · 1 run · 2 points" in page.text
    assert [*page.plots] == ["frontier-0", "forest-0"]


def test_a_tie_of_all_is_not_called_a_recommendation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "frontier_png", lambda *_, **__: b"")
    twins = [dataclasses.replace(STRATEGIES[0], name=name) for name in ("LoRA", "BitFit")]
    for number, twin in enumerate(twins):
        write_run(tmp_path / twin.name, twin, seed=number, points=2)
    write_report(tmp_path, tmp_path / "report.html", margin=0.0)
    text = Page(tmp_path / "report.html").text
    assert compare(tmp_path, margin=0.0).conditions[0].certainty == "cannot tell"
    assert "Cannot tell; cheapest:" in text


def test_many_pairs_are_folded_and_none_is_lost(runs: Path) -> None:
    condition = compare(runs).conditions[0]
    (difference, *_) = condition.differences
    many = [dataclasses.replace(difference, strategy_a=a, strategy_b=b) for a in "xyz" for b in "pqrs"]
    best = dataclasses.replace(condition.areas[0], strategy="x")
    folded = pair_table(dataclasses.replace(condition, areas=(best,), differences=tuple(many)))
    assert folded.count('<tr><th scope="row">') == 12
    assert "<summary>The other 8 pairs</summary>" in folded
    assert "<details>" not in pair_table(condition)


def test_a_report_needs_its_extra_and_some_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory"):
        write_report(tmp_path)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ImportError, match=r'pip install "paretune\[report\]"'):
        write_report(tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(24.4, "24 s"), (192, "3.2 min"), (18_360, "5.1 h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_colours_on_the_page_are_those_of_the_pictures() -> None:
    style = page_module._text("page.css").lower()
    for look in styles("abcdefg").values():
        assert f"--colour-{look.number}: {look.colour.lower()};" in style
        assert f"--text-{look.number}: {look.text.lower()};" in style
        assert style.count(f"--colour-{look.number}:") == 2  # light and dark

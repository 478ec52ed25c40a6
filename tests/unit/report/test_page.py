"""The page holds the numbers of the comparison, is one offline file, and runs nothing that a name says."""

import dataclasses
import re
import sys
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest

from paretune.frontiers.across import across_tasks
from paretune.frontiers.comparing import compare
from paretune.report import page as page_module
from paretune.report import report_html, write_report
from paretune.report.drawing import styles
from paretune.report.overview import across_html, by_rank
from paretune.report.shell import text_of
from paretune.report.tables import duration, pair_table
from paretune.runs.store import load_points, load_runs
from tests.synthetic import STRATEGIES, Strategy, write_run, write_runs
from tests.unit.report.reading import Page

HOSTILE = "<script>alert(1)</script>"
ENDING = "</script><img src=x onerror=alert(2)>\"'&${title}\u2028"


@pytest.fixture(scope="session")
def page(report: Path) -> Page:
    return Page(report)


def test_the_page_three_pictures_and_three_tables_are_written(report: Path) -> None:
    names = sorted(file.name for file in report.parent.iterdir())
    page = ["page.html", "page.pdf", "page.png", "page.svg"]
    assert names == ["areas.csv", *page, "pairs.csv", "points.csv"]
    assert report.stat().st_size < 1_500_000
    assert report.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


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
            assert f"{estimate.p_best:.3f}" in text or estimate.p_best < 0.001
        for difference in condition.differences:
            if difference.strategy_a == condition.best.strategy:
                assert f"{difference.difference:+.3f}".replace("-", "−") in text
                shares = (difference.ahead, difference.equivalent, difference.behind)
                assert "".join(f"{share:.0%}" for share in shares) in text
        *first, last = condition.confidence_set
        among = f"{', '.join(first)} or {last}" if first else last
        assert f"With 95% confidence, the largest true area is that of {among}." in text
    assert "400 test images (report split) · 200 images to choose checkpoints (select split)" in text
    assert "Areas start at clean 10%, robust 0% (" in text
    assert "paretune 0.1.0, torch 2.9.0" in text
    assert "4 strategies · 8 runs · 192 points" in text
    assert "PGD(Linf(4/255), steps=20)" in text


def test_each_section_shows_its_own_points(page: Page, runs: Path) -> None:
    points = load_points(runs)
    for number, condition in enumerate(compare(runs).conditions):
        expected = points[points["attack"] == condition.attack]
        shown = pd.DataFrame(page.plots[f"frontier-{number}"]["datasets"]["points"])
        assert sorted(shown["robust"]) == pytest.approx(sorted(expected["robust"]), abs=1e-4)
        areas = pd.DataFrame(page.plots[f"forest-{number}"]["datasets"]["areas"])
        assert [*areas["strategy"]] == [estimate.strategy for estimate in condition.areas]


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    links = [attributes["href"] for attributes in page.tags("a") if "download" not in attributes]
    assert len(links) == 7  # to the results, and two for each condition
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
    kinds = ("overview", "frontier", "forest", "matrix", "cost", "time", "budget")
    assert {*page.plots} == {f"{kind}-{number}" for kind in kinds for number in range(3)}
    for name, plot in page.plots.items():
        vl_convert.vegalite_to_vega({**plot, "width": 500})
        assert "LoRA" in plot["description"], name
        assert {"name": "isolated", "value": ""} in plot["params"], name
    frontier = page.plots["frontier-0"]
    assert len(frontier["datasets"]["points"]) == 64
    assert {*frontier["datasets"]["points"][0]} == {
        "strategy", "seed", "step", "run", "name", "config", "clean", "robust", "chosen", "inside",
    }  # fmt: skip


def test_every_picture_has_its_numbers_behind_it(page: Page) -> None:
    """All but the small frontiers, whose numbers stand behind the large ones."""
    for name, plot in page.plots.items():
        if name.startswith("overview"):
            continue
        table = plot["usermeta"]["table"]
        rows = plot["datasets"][table["data"]]
        assert {field for field, _, _ in table["columns"]} <= {*rows[0]}, name
        for _, _, form in table["columns"]:
            assert f'"{form}":' in page.scripts[2], form  # page.js knows it


def test_the_legend_is_made_of_buttons(page: Page) -> None:
    picks = [a for a in page.tags("button") if a["class"] == "pick"]
    assert len(picks) == 16  # four in the overview and in each of three sections
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
    assert "1 of 1 runs is not finished: run." in page.text
    assert "Not finished. 1 of 1 run has not ended" in page.text
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


def test_a_leader_of_unfinished_runs_is_not_recommended(tmp_path: Path) -> None:
    for strategy, points in zip(STRATEGIES[:3], (4, 2, 1), strict=True):
        write_run(tmp_path / strategy.name, strategy, points=points, finish=strategy.name == "LoRA")
    (tmp_path / "report.html").write_text(report_html(tmp_path), encoding="utf-8")
    text = Page(tmp_path / "report.html").text
    assert "Not finished. 2 of 3 runs have not ended" in text
    assert "So far:" in text
    assert "Use " not in text


def test_many_conditions_are_folded_to_their_headings(tmp_path: Path) -> None:
    for task in "abcd":
        for strategy in STRATEGIES[:2]:
            write_run(tmp_path / task / strategy.name, strategy, points=3, examples=60, task=task)
    (tmp_path / "report.html").write_text(report_html(tmp_path), encoding="utf-8")
    page = Page(tmp_path / "report.html")
    folds = [a for a in page.tags("details") if a.get("class") == "fold"]
    assert len(folds) == 4
    assert not any("open" in a for a in folds)
    assert "Robustness and accuracy on 4 tasks" in page.text
    assert "Across 4 tasks" in page.text


def test_a_section_starts_open_where_there_are_few(page: Page) -> None:
    assert all("open" in a for a in page.tags("details") if a.get("class") == "fold")


def test_pairs_with_the_largest_area_stand_in_a_table(runs: Path) -> None:
    condition = compare(runs).conditions[0]
    assert pair_table(condition).count('<tr><th scope="row">') == len(condition.areas) - 1


def test_the_areas_can_be_saved_from_the_page(page: Page, report: Path) -> None:
    (link,) = (a for a in page.tags("a") if "download" in a)
    assert link["href"] is not None
    assert unquote(link["href"].partition(",")[2]) == report.with_name("areas.csv").read_text(
        encoding="utf-8"
    )


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
    style = text_of("page.css").lower()
    for look in styles("abcdefgh").values():
        assert f"--colour-{look.number}: {look.colour.lower()};" in style
        assert f"--text-{look.number}: {look.text.lower()};" in style
        assert style.count(f"--colour-{look.number}:") == 2  # light and dark


@pytest.mark.thorough
def test_twelve_tasks_of_eight_strategies_fit_into_one_page(tmp_path: Path) -> None:
    strategies = [Strategy(f"Strategy{n}", f"Strategy{n}(rank=8)", 0.01 * n, 10**n) for n in range(8)]
    for number in range(12):
        write_runs(tmp_path / f"{number}", strategies, points=12, examples=200, task=f"task-{number}")
    assert len(report_html(tmp_path, resamples=200).encode()) < 1_500_000


def test_floors_and_groups_are_named(tmp_path: Path) -> None:
    for strategy in STRATEGIES[:2]:
        write_run(tmp_path / strategy.name, strategy, points=3, examples=80, examples_select=40)
    groups = {"digits": ([i // 4 for i in range(80)], [i // 4 for i in range(40)])}
    (tmp_path / "r.html").write_text(report_html(tmp_path, min_clean=0.6, groups=groups), encoding="utf-8")
    text = Page(tmp_path / "r.html").text
    assert "resampled by 20 groups" in text
    assert "clean at least 60%" in text
    assert "area above clean 0.6" in text


def test_what_holds_across_tasks_is_told_with_its_numbers(tmp_path: Path) -> None:
    for task in ("birds", "cars"):
        write_runs(tmp_path / task, STRATEGIES[:3], points=3, examples=80, task=task)
    (across,) = across_tasks(compare(tmp_path))
    html = across_html(across, styles(across.ranked))
    assert escape(across.verdict) in html
    for name, area, rank in zip(across.ranked, across.mean_areas, across.mean_ranks, strict=True):
        assert f"<span>{name}</span></th><td><strong>{area:.3f}</strong></td><td>{rank:.2f}</td>" in html
    assert html.count("<tr>") == 1 + 3 + 1 + 3  # two heads, three strategies, three pairs


def test_legends_follow_the_ranking_over_tasks_and_then_the_mean_place(tmp_path: Path) -> None:
    for task, strategies in (("birds", STRATEGIES), ("cars", STRATEGIES[:3])):
        write_runs(tmp_path / task, strategies, points=3, examples=80, task=task)
    comparison = compare(tmp_path)
    (across,) = across_tasks(comparison)
    assert by_rank(comparison.conditions, (across,)) == [*across.ranked, "FullFineTune"]
    places = {
        name: sum(
            [each.strategy for each in c.areas].index(name) / len(c.areas) for c in comparison.conditions
        )
        for name in across.ranked
    }
    assert by_rank(comparison.conditions, ()) == [
        *sorted(places, key=lambda n: (places[n], n)),
        "FullFineTune",
    ]

"""A page of many runs shows what one can look at, says how many it leaves out, and has the rest beside it."""

import re
from pathlib import Path

import pandas as pd
import pytest

from paretune.frontiers.comparing import compare
from paretune.report import page as page_module
from paretune.report import report_html, summary, write_report
from paretune.report.drawing import as_points
from paretune.report.figures import split
from paretune.report.summary import CELLS, STRATEGIES, first_strategies, shown
from paretune.runs.store import load_runs
from tests.synthetic import Strategy, write_run
from tests.unit.report.reading import Page

SMALL = {"points": 3, "examples": 60, "examples_select": 40}


def written(root: Path, strategies: int, tasks: int, seeds: int) -> Path:
    for task in range(tasks):
        for number in range(strategies):
            near = Strategy("LoRA", f"LoRA(rank={number + 1})", 0.03 * (number % 7), 100 * (number + 1))
            for seed in range(seeds):
                path = root / f"{task}-{number}-{seed}"
                write_run(path, near, 100 * task + seed, task=f"task{task:02}", **SMALL)
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of about 100 runs: many tasks, or many strategies."""
    root = tmp_path_factory.mktemp("many")
    return {
        "tasks": written(root / "tasks", 7, 20, 1),
        "strategies": written(root / "strategies", 50, 2, 1),
    }


@pytest.fixture(scope="module")
def pages(many: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        for picture, nothing in (("frontier_svg", ""), ("frontier_png", b""), ("frontier_pdf", b"")):
            patch.setattr(page_module, picture, lambda *_, nothing=nothing, **__: nothing)
        return {name: write_report(runs, root / name / "page.html") for name, runs in many.items()}


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("shape", ["tasks", "strategies"])
def test_a_page_of_many_runs_is_small_and_says_what_it_leaves_out(pages: dict[str, Path], shape: str) -> None:
    page = Page(pages[shape])
    text = " ".join(page.text.split())
    assert pages[shape].stat().st_size < 2_500_000
    told = {
        "tasks": "3 of 20 conditions have no section",
        "strategies": f"Sections show the {STRATEGIES} strategies with the largest areas, of up to 50",
    }[shape]
    assert "Not all is on this page" in text
    assert told in text


def test_all_of_it_is_in_tables_beside_the_page(pages: dict[str, Path], many: dict[str, Path]) -> None:
    beside = pages["strategies"].parent
    comparison = compare(many["strategies"])
    pairs = pd.read_csv(beside / "pairs.csv")
    assert len(pd.read_csv(beside / "areas.csv")) == len(comparison.areas) == 100
    assert pairs["difference"].tolist() == pytest.approx([d.difference for d in comparison.differences])
    assert len(pairs) == 2 * 50 * 49 // 2
    points = pd.read_csv(beside / "points.csv")
    assert len(points) == 300
    assert points["config.strategy_config"].nunique() == 50


def test_every_condition_is_in_the_overview_and_those_in_doubt_have_sections(
    pages: dict[str, Path], many: dict[str, Path]
) -> None:
    page, conditions = Page(pages["tasks"]), compare(many["tasks"]).conditions
    sections = {name for tag in page.tags("section") if (name := str(tag.get("id"))).startswith("condition-")}
    assert len(sections) == CELLS // 7
    left_out = [c for number, c in enumerate(conditions) if f"condition-{number}" not in sections]
    kept = [c for number, c in enumerate(conditions) if f"condition-{number}" in sections]
    doubt = ("cannot tell", "tie", "equivalent", "clear")
    assert max(doubt.index(c.certainty) for c in kept) <= min(doubt.index(c.certainty) for c in left_out)
    assert all(re.search(rf"{condition.task}, L∞ ≤ 4/255", page.text) for condition in conditions)
    links = {str(tag["href"])[1:] for tag in page.tags("a") if str(tag.get("href")).startswith("#condition-")}
    assert links == sections


def test_sentences_are_about_all_strategies(pages: dict[str, Path], many: dict[str, Path]) -> None:
    text = " ".join(Page(pages["strategies"]).text.split())
    for condition in compare(many["strategies"]).conditions:
        assert condition.sentence in text
        assert f"… and {50 - STRATEGIES} strategies with smaller areas." in text


def test_what_the_first_strategies_are_told_is_what_they_are_told_among_all(many: dict[str, Path]) -> None:
    for condition in compare(many["strategies"]).conditions:
        few = first_strategies(condition, 10)
        assert [area.strategy for area in few.areas] == [area.strategy for area in condition.areas[:10]]
        for name in ("told", "behind", "tested", "direct"):
            whole = getattr(condition.decision, name)[:10, :10]
            assert (getattr(few.decision, name) == whole).all()
        assert len(few.differences) == 45


def test_of_many_seeds_the_first_are_drawn_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = load_runs(written(tmp_path, 2, 1, 26))
    comparison, rows = compare(runs), [rows for _, rows in split(as_points(runs))]
    assert shown(comparison.conditions, rows).whole
    monkeypatch.setattr(summary, "SEEDS", 5)
    monkeypatch.setattr(summary, "CELLS", 8)
    chosen = shown(comparison.conditions, rows)
    told = "Points and staircases are drawn of the first 20 seeds of a strategy, of up to 26."
    assert chosen.left_out == (told,)
    assert sorted({*chosen.rows[0]["seed"]}) == [*range(20)]
    (condition,) = chosen.conditions
    assert condition == comparison.conditions[0]
    page = report_html(runs)
    assert told in page
    assert f"{2 * 6 * 3} of {2 * 26 * 3} points are left out of the picture" in page
    least, most = (of(condition.best.per_seed) for of in (min, max))
    assert f"{least:.3f} – {most:.3f} (26 seeds)" in page


def test_small_reports_show_all(many: dict[str, Path]) -> None:
    runs = [run for run in load_runs(many["tasks"]) if run.config["task"] < "task04"]
    comparison, rows = compare(runs), [rows for _, rows in split(as_points(runs))]
    chosen = shown(comparison.conditions, rows)
    assert chosen.whole
    assert chosen.conditions == comparison.conditions
    assert all(a is b for a, b in zip(chosen.rows, rows, strict=True))
    assert "Not all is on this page" not in report_html(runs)


def test_a_report_of_fewer_runs_in_the_same_place_leaves_no_table_of_the_others(tmp_path: Path) -> None:
    runs = load_runs(written(tmp_path / "runs", 3, 1, 2))
    for count in (6, 2):
        write_report(runs[:count], tmp_path / "report.html")
        points = pd.read_csv(tmp_path / "points.csv")
        assert len(points) == sum(len(run.points) for run in runs[:count])
        pairs = pd.read_csv(tmp_path / "pairs.csv")
        assert len(pairs) == (3 if count == 6 else 0)

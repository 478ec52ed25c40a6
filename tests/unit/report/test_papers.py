"""Tables for papers: the numbers of the report in LaTeX and Markdown, whatever the names."""

import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from paretune.commands.cli import main
from paretune.frontiers.comparing import compare
from paretune.frontiers.tables.analysis import analyze
from paretune.frontiers.verdict import Comparison
from paretune.report.analysis_tables import behind_numbers, group_numbers
from paretune.report.drawing import as_points, styles
from paretune.report.overview import over_tasks
from paretune.report.papers import write_tables
from paretune.report.tables import (
    Numbers,
    area_numbers,
    area_table,
    pair_numbers,
    pair_table,
    rank_numbers,
    rank_pair_numbers,
)
from paretune.report.typeset import latex_text
from paretune.runs.store import load_runs
from tests.synthetic import ATTACK, STRATEGIES, Strategy, write_run, write_runs

NASTY = [
    r"50% of A&B_C #1 {x} $y$ ~z^2 \end{tabular}",
    "[1ex] first",
    "* star",
    "a | b `code` <b>bold</b> ![x](y) [l](u)",
    "\\\\ two \"quoted\" 'single' -- --- dashes,, twice",
    "two\nlines\tand\x00more",
    "größer ∞ ≤ 1",
    "&amp; ~~gone~~ **b** __i__",
]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two attacks, names that no format takes as they are, and strategies with different numbers of seeds."""
    root = tmp_path_factory.mktemp("runs")
    attacks = ((ATTACK, "Linf", 4 / 255, 1.0), ("PGD(L2(0.5), steps=20)", "L2", 0.5, 0.9))
    options = {
        "points": 2,
        "examples": 60,
        "examples_select": 40,
        "attacks": attacks,
        "task": "cats & dogs_1",
    }
    for number, name in enumerate(NASTY):
        write_run(root / f"{number}", Strategy(name, name, 0.01 * number, 1000 + number), 7, **options)
    write_run(root / "other", Strategy(NASTY[0], NASTY[0], 0, 1000), 9, **options)
    return compare(load_runs(root), resamples=100)


def cells_of(table: str) -> list[list[str]]:
    """The cells of a LaTeX table, its head first."""
    (columns,) = re.findall(r"\\begin\{tabular\}\{@\{\}(l?r*)@\{\}\}", table)
    body = table.partition(r"\toprule")[2].partition(r"\bottomrule")[0].replace(r"\midrule", "")
    rows = []
    for line in filter(None, map(str.strip, body.splitlines())):
        line = line.removesuffix(r" \addlinespace[2pt]")
        assert line.endswith(r" \\")
        assert line[0] not in "[*"
        cells = [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))]
        assert len(cells) == len(columns)
        for place, cell in enumerate(cells):
            if several := re.fullmatch(r"\\shortstack\[[lr]\]\{(.*)\\\\(.*)\}", cell):
                cells[place] = " ".join(several.groups())
            elif several := re.fullmatch(
                r"\\parbox\[t\]\{[\d.]+em\}\{\\ragged(?:right|left) (.*)\\strut\}", cell
            ):
                cells[place] = several[1]
        rows.append(cells)
    return rows


@pytest.fixture(scope="module")
def written(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    tex, markdown = write_tables(comparison, tmp_path_factory.mktemp("out") / "deeper")
    assert (tex.name, markdown.name) == ("tables.tex", "tables.md")
    return tex.read_text("utf-8"), markdown.read_text("utf-8")


def plain(name: str) -> str:
    return " ".join(name.replace("\x00", " ").split())


def numbers_of(comparison: Comparison) -> list[Numbers]:
    """All tables in their order."""
    return [
        *(make(each) for each in comparison.conditions for make in (area_numbers, pair_numbers)),
        *(make(each) for each in over_tasks(comparison) for make in (rank_numbers, rank_pair_numbers)),
    ]


def test_markdown_shows_the_very_cells(comparison: Comparison, written: tuple[str, str]) -> None:
    html = MarkdownIt("commonmark").enable("table").enable("strikethrough").render(written[1])
    assert html.count("<table>") == 4
    rows = [
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", html, flags=re.S)
    ]
    assert rows == [[*map(plain, row)] for each in numbers_of(comparison) for row in (each.head, *each.rows)]


def test_latex_shows_the_very_cells(comparison: Comparison, written: tuple[str, str]) -> None:
    """Tables that are continued side by side hold the columns of the whole one, and nothing is left unescaped."""
    text = written[0]
    for numbers in numbers_of(comparison):
        columns: list[list[str]] = []
        while len(columns) < len(numbers.head):
            table, _, text = text.partition(r"\end{table}")
            more = [[*cells] for cells in zip(*cells_of(table), strict=True)]
            columns += more[bool(columns) :]
        whole = zip(numbers.head, *numbers.rows, strict=True)
        assert columns == [[latex_text(cell) for cell in column] for column in whole]
    assert r"\begin" not in text
    for character in "%#_":
        assert not re.search(rf"(?<!\\){character}", written[0].partition("\n\n")[2])
    assert written[0].replace(r"\{", "").count("{") == written[0].replace(r"\}", "").count("}")


def test_what_holds_over_tasks_follows(tmp_path: Path) -> None:
    for task in ("digits", "größe_1"):
        write_runs(tmp_path / task, STRATEGIES[:2], points=2, examples=60, examples_select=40, task=task)
    comparison = compare(load_runs(tmp_path), resamples=100)
    tex, markdown = (path.read_text("utf-8") for path in write_tables(comparison, tmp_path))
    captions = [line for line in markdown.splitlines() if line and line[0] != "|"]
    assert [re.sub(r"\. .*", "", line).replace("\\", "") for line in captions] == [
        "Areas under the frontiers: digits, L∞ ≤ 4/255",
        "Paired differences to the largest area: digits, L∞ ≤ 4/255",
        "Areas under the frontiers: größe_1, L∞ ≤ 4/255",
        "Paired differences to the largest area: größe_1, L∞ ≤ 4/255",
        "Mean areas and ranks: 2 tasks, L∞ ≤ 4/255",
        "Pairs over the tasks: 2 tasks, L∞ ≤ 4/255",
    ]
    assert (
        "Attack PGD(Linf(4/255), steps=20). Tasks: digits, größe_1. Areas from (0, 0)."
        in markdown.replace("\\", "")
    )
    (across,) = over_tasks(comparison)
    for row in rank_numbers(across).rows:
        assert f"| {' | '.join(row)} |".replace("_", r"\_") in markdown
    assert r"Mean areas and ranks: 2 tasks, L$\infty$ $\leq$ 4/255" in tex


def test_an_analysis_has_the_same_tables(tmp_path: Path) -> None:
    rows = [
        {"group": group, "set": task, "run": run, "clean": 0.9 - k / 9, "robust": k / 9 + gain + run / 99}
        for task, gain in (("a&b", 0.0), ("c", 0.1))
        for group in ("x_1", "y")
        for run in range(3)
        for k in range(3)
    ]
    for task in ("set", None):
        table = pd.DataFrame(rows) if task else pd.DataFrame(rows[:18])
        analysis = analyze(table, group="group", task=task, seed="run", min_clean=0.1)
        write_tables(analysis, tmp_path)
        markdown = (tmp_path / "tables.md").read_text("utf-8").replace("\\", "")
        for ranking in analysis.tasks:
            title = f"Areas under the frontiers: {ranking.task}" if task else "Areas under the frontiers"
            assert f"{title}. Areas from (0, 0) above clean 0.1. {ranking.covers}" in markdown
            for numbers in (group_numbers(ranking), behind_numbers(ranking)):
                for row in numbers.rows:
                    assert f"| {' | '.join(row)} |" in markdown
        assert ("Mean areas and ranks: 2 tasks. Tasks: a&b, c." in markdown) is bool(task)
        assert (r"frontiers: a\&b" in (tmp_path / "tables.tex").read_text("utf-8")) is bool(task)


def test_latex_compiles_and_fits_the_page(tmp_path: Path, written: tuple[str, str]) -> None:
    """Nasty names, more tables than LaTeX can hold back, and one with more columns, rows and text than a page."""
    if (latex := shutil.which("pdflatex")) is None:
        reason = "pdflatex is not installed: apt-get install texlive-latex-base texlive-latex-recommended"
        pytest.fail(reason) if os.environ.get("PARETUNE_REQUIRE_LATEX") == "1" else pytest.skip(reason)
    long = [f"Combination(LoRA(rank={n}), BitFit(), {'NormTune(), ' * (n % 4)})" for n in range(40)]
    many = [(name, f"task {task}", name) for task in range(3) for name in long]
    many += [(name, f"task {task}", name) for task in range(3, 30) for name in long[:2]]
    rows = [
        (group, task, seed, 0.9 - k / 10, k / 10 + len(name) / 900 + seed / 99)
        for group, task, name in many
        for seed in range(9)
        for k in range(2)
    ]
    table = pd.DataFrame(rows, columns=["strategy", "task", "seed", "clean", "robust"])
    write_tables(analyze(table, task="task", seed="seed"), tmp_path / "many")
    (tmp_path / "nasty.tex").write_text(written[0], "utf-8")
    text = (
        r"\documentclass{article}\usepackage{booktabs}\usepackage[T1]{fontenc}\begin{document}"
        r"\input{nasty}\clearpage\input{many/tables}\end{document}"
    )
    (tmp_path / "all.tex").write_text(text, "utf-8")
    command = [latex, "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    log = (tmp_path / "all.log").read_text("latin-1")
    assert ended.returncode == 0, log[-2000:]
    for complaint in ("Overfull", "too large", "Missing character", "undefined"):
        assert complaint not in log


def test_captions_say_attack_examples_and_seeds(written: tuple[str, str]) -> None:
    captions = [
        re.sub(r"\\(.)", r"\1", line) for line in written[1].splitlines() if line and line[0] not in "|"
    ]
    assert len(captions) == 4
    said = (
        "checkpoints chosen on 40 examples, measured on n = 60; 1 to 2 training seeds of each strategy (7, 9), 2 points per "
        "run. Areas from (0, 0). Intervals at 95% cover the sampling of examples and the choice of checkpoints, not the "
        "luck of training."
    )
    assert (
        captions[0]
        == f"Areas under the frontiers: cats & dogs_1, L2 ≤ 0.5. Attack PGD(L2(0.5), steps=20); {said}"
    )
    name = "Paired differences to the largest area"
    assert captions[3] == f"{name}: cats & dogs_1, L∞ ≤ 4/255. Attack PGD(Linf(4/255), steps=20); {said}"


def test_the_page_shows_the_same_cells(comparison: Comparison) -> None:
    for condition in comparison.conditions:
        looks = styles([each.strategy for each in condition.areas])
        for numbers, html in (
            (area_numbers(condition), area_table(condition, looks)),
            (pair_numbers(condition), pair_table(condition)),
        ):
            bare = re.sub(
                r"<svg.*?</svg>|<span>|</span>|</?strong>|&nbsp;★", "", html.partition("<tbody>")[2]
            )
            shown = [
                [
                    unescape(re.sub("<[^>]*>", "", cell))
                    for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
                ]
                for row in re.findall(r"<tr>(.*?)</tr>", bare, re.S)
            ]
            assert shown == [[*row] for row in numbers.rows]


def test_report_writes_them_beside_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paretune.report.write_report", lambda _runs, path, **_: path)
    runs = write_runs(tmp_path / "runs", STRATEGIES[:1], points=2, examples=60, examples_select=40)
    assert main(["report", "--tables", str(runs), "--out", str(tmp_path / "page.html")]) == 0
    assert f"tables: {tmp_path / 'tables.tex'}" in capsys.readouterr().out
    assert "Areas under" in (tmp_path / "tables.md").read_text("utf-8")
    assert "Paired" not in (tmp_path / "tables.md").read_text("utf-8")  # there is one strategy
    assert main(["report", str(runs), "--tables", "false", "--out", str(tmp_path / "b/page.html")]) == 0
    assert not (tmp_path / "b").exists()
    assert main(["report", str(runs), "--tables", "maybe"]) == 2


def test_the_title_is_that_of_the_picture_too(tmp_path: Path) -> None:
    from paretune.report.figures import frontier_svg

    runs = load_runs(
        write_runs(tmp_path, STRATEGIES[:1], seeds=(0,), points=2, examples=60, examples_select=40)
    )
    assert "Ours, 2026" in frontier_svg(runs, title="Ours, 2026")
    assert "Ours" not in frontier_svg(runs)
    assert len(as_points(runs))

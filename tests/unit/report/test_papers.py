"""Tables for papers: the numbers of the report in LaTeX and Markdown, whatever the names."""

import re
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from paretune.commands.cli import main
from paretune.frontiers.comparing import compare
from paretune.frontiers.verdict import Comparison
from paretune.report.drawing import as_points, styles
from paretune.report.papers import latex_text, markdown_text, write_tables
from paretune.report.tables import area_numbers, area_table, pair_numbers, pair_table
from paretune.runs.store import load_runs
from tests.synthetic import ATTACK, STRATEGIES, Strategy, There, write_run, write_runs

NASTY = [
    r"50% of A&B_C #1 {x} $y$ ~z^2 \end{tabular}",
    "[1ex] first",
    "* star",
    "a | b `code` <b>bold</b> ![x](y) [l](u)",
    "\\\\ two \"quoted\" 'single' -- --- dashes",
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


@pytest.fixture(scope="module")
def written(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    tex, markdown = write_tables(comparison, tmp_path_factory.mktemp("out") / "deeper")
    assert (tex.name, markdown.name) == ("tables.tex", "tables.md")
    return tex.read_text("utf-8"), markdown.read_text("utf-8")


def plain(name: str) -> str:
    return " ".join(name.replace("\x00", " ").split())


def expected(comparison: Comparison) -> list[list[str]]:
    """The cells of all rows, head included."""
    rows = []
    for condition in comparison.conditions:
        for numbers in (area_numbers(condition), pair_numbers(condition)):
            rows += [[plain(cell) for cell in row] for row in (numbers.head, *numbers.rows)]
    return rows


def test_markdown_shows_the_very_cells(comparison: Comparison, written: tuple[str, str]) -> None:
    html = MarkdownIt("commonmark").enable("table").enable("strikethrough").render(written[1])
    assert html.count("<table>") == 4
    rows = [
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", html, flags=re.S)
    ]
    assert rows == expected(comparison)


def test_latex_is_whole(comparison: Comparison, written: tuple[str, str]) -> None:
    """Each environment ends, each row has as many cells as there are columns, and nothing is left unescaped."""
    text = written[0]
    assert [*re.findall(r"\\(?:begin|end)\{(\w+)\}", text)] == ["table", "tabular", "tabular", "table"] * 4
    assert re.findall(r"\\(\w+rule)", text) == ["toprule", "midrule", "bottomrule"] * 4
    rows = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, flags=re.S):
        lines = [line.strip() for line in body.splitlines() if line.strip() and "rule" not in line]
        for line in lines:
            assert line.endswith(r" \\")
            assert line[0] not in "[*"
            cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
            assert len(cells) == len(columns)
            rows.append([cell.strip() for cell in cells])
        assert set(columns[1:]) == {"r"}
    assert rows == [[latex_text(cell) for cell in row] for row in expected(comparison)]
    for character in "%#_":
        assert not re.search(rf"(?<!\\){character}", text.partition("\n")[2])
    assert text.replace(r"\{", "").count("{") == text.replace(r"\}", "").count("}")


def test_latex_text_is_escaped() -> None:
    assert latex_text(NASTY[0]).endswith(
        r"\textasciitilde{}z\textasciicircum{}2 \textbackslash{}end\{tabular\}"
    )
    assert latex_text("50% A&B_C #1 $y$") == r"50\% A\&B\_C \#1 \$y\$"
    assert latex_text("[1ex] *") == "{[}1ex{]} {*}"
    assert latex_text("'a' --- b") == r"\textquotesingle{}a\textquotesingle{} -{}-{}- b"
    assert latex_text("−1 – 2 < 3 ≤ ∞ größer") == r"$-$1 -- 2 $<$ 3 $\leq$ $\infty$ größer"
    assert markdown_text("a|b\n*c*") == r"a\|b \*c\*"


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


def test_volumes_have_tables_of_their_own(tmp_path: Path) -> None:
    there = {"fog 1": There(0.8, "Corruption('fog', severity=1)")}
    write_runs(tmp_path, STRATEGIES[:2], seeds=(0,), points=2, elsewhere=there)
    tex, markdown = (
        path.read_text("utf-8") for path in write_tables(compare(tmp_path, resamples=100), tmp_path)
    )
    for text in (tex, markdown):
        assert text.count("Volumes: ") == 1
        assert text.count("Paired differences to the largest volume: ") == 1
        assert "400 shifted ones" in text

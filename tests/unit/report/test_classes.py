"""Classes in a report: the numbers of the chosen checkpoints, worst first."""

import re
from pathlib import Path

import numpy as np
import pytest

from paretune.frontiers.classes import by_class
from paretune.frontiers.comparing import compare
from paretune.report import report_html
from paretune.runs.examples import Examples
from paretune.runs.store import load_runs
from tests.synthetic import ATTACK, STRATEGIES, write_run, write_runs
from tests.unit.report.reading import Page

LABELS = np.arange(400) % 4 % 3  # 200, 100 and 100
NAMES = ("cat", "<i>dog</i>", "owl")


def page(runs: Path, tmp_path: Path, **options: object) -> Page:
    (tmp_path / "page.html").write_text(report_html(runs, **options), encoding="utf-8")
    return Page(tmp_path / "page.html")


def with_labels(runs: Path, labels: np.ndarray = LABELS, names: tuple[str, ...] = NAMES) -> Path:
    for run in load_runs(runs):
        Examples("report-400", names, labels).write(run.path)
    return runs


def rows_of(read: Page, name: str) -> list[str]:
    """The rows of a table as text, the cells one after another."""
    table = read.source.split(f"<caption>{name}</caption>")[1].split("</table>")[0]
    cells = [re.sub(r"<[^>]+>", " ", row) for row in table.split("<tr>")[2:]]
    return [" ".join(row.split()) for row in cells]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return with_labels(write_runs(tmp_path / "runs", STRATEGIES[:2]))


def test_numbers_are_those_of_the_checkpoints_with_the_best_robust_accuracy_on_select(
    runs: Path, tmp_path: Path
) -> None:
    read = page(runs, tmp_path)
    summary = rows_of(read, "Plain and balanced accuracy")
    best = {estimate.strategy: estimate.best_robust for estimate in compare(runs).areas}
    for row, name in zip(summary, best, strict=True):
        bits = []
        for run in load_runs(runs):
            if run.config["strategy"] == name:
                chosen = run.points.loc[run.points["robust_select"].idxmax()]
                bits.append(run.bits(chosen)["report/robust"])
        found = by_class(LABELS, np.stack(bits))
        assert found.plain[0] == pytest.approx(best[name])
        assert row.startswith(name)
        assert f"{found.balanced[0]:.1%} {100 * found.balanced[1]:.1f} – {found.balanced[2]:.1%}" in row
        assert f"{found.plain[0]:.1%} {100 * found.plain[1]:.1f} – {found.plain[2]:.1%}" in row
        table = rows_of(read, f"{name}: accuracy of each class")
        assert len(table) == 3
        names = ["cat", "&lt;i&gt;dog&lt;/i&gt;", "owl"]
        for line, place in zip(table, found.worst_first, strict=True):
            ends = f"{100 * found.low[place]:.1f} – {found.high[place]:.1%}"
            assert line.startswith(
                f"{names[place]} {[200, 100, 100][place]} {found.accuracy[place]:.1%} {ends}"
            )
    assert not read.tags("i")


def test_of_many_classes_the_worst_and_the_best_are_shown(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", STRATEGIES[:1])
    read = page(with_labels(runs, np.arange(400) % 25, tuple(f"c{n}" for n in range(25))), tmp_path)
    table = rows_of(read, "LoRA: accuracy of each class")
    assert len(table) == 10 + 1 + 3
    assert table[10].startswith("12 between")
    robust = [float(row.split()[2].rstrip("%")) for row in table[:10] + table[11:]]
    assert robust == sorted(robust)
    assert "the 10 worst and the 3 best of 25" in read.text
    twenty = with_labels(runs, np.arange(400) % 20, tuple(f"c{n}" for n in range(20)))
    assert len(rows_of(page(twenty, tmp_path), "LoRA: accuracy of each class")) == 20


def test_groups_and_level_count_here_too(runs: Path, tmp_path: Path) -> None:
    groups = {"digits": (np.arange(400) // 8, np.arange(200) // 2)}

    def widths(**options: object) -> list[float]:
        row = rows_of(page(runs, tmp_path, **options), "Plain and balanced accuracy")[0]
        return [float(high) - float(low) for low, high in re.findall(r"([\d.]+) – ([\d.]+)%", row)]

    plain = widths()
    assert all(wide > 1.3 * narrow for wide, narrow in zip(widths(groups=groups), plain, strict=True))
    assert all(narrow < wide for narrow, wide in zip(widths(level=0.5), plain, strict=True))


def test_each_condition_has_its_own_numbers(tmp_path: Path) -> None:
    attacks = ((ATTACK, "Linf", 4 / 255, 1.0), ("PGD(L2(0.5))", "L2", 0.5, 0.5))
    runs = with_labels(write_runs(tmp_path / "runs", STRATEGIES[:2], attacks=attacks))
    read = page(runs, tmp_path)
    section = read.source.split('<h2 id="classes">')[1]
    assert section.count("<caption>Plain and balanced accuracy</caption>") == 2
    assert "<summary>digits, L2 ≤ 0.5</summary>" in section
    assert "<summary>digits, L∞ ≤ 4/255</summary>" in section


def test_runs_without_labels_say_so_and_labels_of_one_run_serve_all(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", STRATEGIES[:2])
    text = page(runs, tmp_path).text
    assert "The labels of the images were not kept" in text
    write_run(tmp_path / "runs/new", STRATEGIES[2], finish=False)
    Examples("report-400", NAMES, LABELS).write(tmp_path / "runs/new")
    read = page(runs, tmp_path)
    assert "The labels of the images were not kept" not in read.text
    assert len(rows_of(read, "Plain and balanced accuracy")) == 3

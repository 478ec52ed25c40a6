"""The page of the inheritance protocol holds its numbers, is one offline file, and runs nothing that a name says."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paretune.frontiers.inheritance import Study
from paretune.frontiers.inherited import inherited
from paretune.report import write_inheritance
from paretune.report.specs.frontier import ON_PAGE, ON_WHITE
from paretune.report.specs.inheritance import change_spec
from tests.unit.report.reading import Page

HOSTILE = "<script>alert(1)</script> + EWC"
TASKS = ("fog 3", "sketch", "=1+1")


def study(*, held_out: bool = True, robust: bool = True) -> Study:
    rng = np.random.default_rng(0)

    def answer(accuracy: str, after: float):  # type: ignore[no-untyped-def]
        before = {name: rng.random(80) < 0.7 for name in (*TASKS, "pretraining")}
        rows = {
            method: {
                task: {
                    seed: {name: bits & (rng.random(80) < after - lost) for name, bits in before.items()}
                    for seed in (0, 1)
                }
                for task in TASKS
            }
            for method, lost in (("LoRA", 0.0), (HOSTILE, 0.4))
        }
        return inherited(before, rows, accuracy=accuracy, pretraining="pretraining", resamples=200)

    attack = "PGD(Linf(2/255), steps=10)"
    return Study(
        answer("clean", 0.95),
        answer("robust", 0.7) if robust else None,
        attack,
        held_out,
        "tiny",
        ("A note.",),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    result = study()
    return result, write_inheritance(result, tmp_path_factory.mktemp("page") / "deep")


def test_three_files_are_written(written: tuple[Study, Path]) -> None:
    result, path = written
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "inheritance.csv",
        "matrix.csv",
        "report.html",
    ]
    table = pd.read_csv(path.with_name("inheritance.csv"))
    assert table["mri"].tolist() == pytest.approx(
        [each.mri.estimate for answer in result.accuracies for each in answer.methods]
    )
    cells = pd.read_csv(path.with_name("matrix.csv"))
    assert len(cells) == 2 * 2 * 3 * 4
    assert "'=1+1" in {*cells["fine_tuned_on"]}


def test_the_page_holds_the_numbers(written: tuple[Study, Path]) -> None:
    result, path = written
    text = re.sub(r"\s+", " ", unescape(Page(path).text))
    for answer in result.accuracies:
        assert answer.covers in text
        for each in answer.methods:
            for interval in (each.mri, each.gain, each.drop, *each.ri.values()):
                assert interval is not None
                assert f"{interval.estimate:+.3f}".replace("-", "−") in text
        for accuracy in answer.before.values():
            assert f"{accuracy:.1%}" in text
    assert "A note." in text
    assert result.protocol in text
    assert result.attack in text


def test_names_are_shown_and_not_run(written: tuple[Study, Path]) -> None:
    page = Page(written[1])
    assert "<script>alert(1)</script>" not in page.source
    assert HOSTILE in page.text
    assert not [
        src for tag, attributes in page.elements if (src := attributes.get("src") or "").startswith("http")
    ]


def test_what_was_learnt_is_said_to_be(tmp_path: Path) -> None:
    said = "on images that were learnt"
    for held_out in (True, False):
        path = write_inheritance(study(held_out=held_out, robust=False), tmp_path / str(held_out))
        text = re.sub(r"\s+", " ", Page(path).text)
        assert (said in text) is not held_out
        assert "Robust accuracy" not in text


def test_the_matrix_has_every_change_and_its_words_say_what_it_shows() -> None:
    answer = study().clean
    method = answer.methods[0]
    for theme in (ON_PAGE, ON_WHITE):
        spec = change_spec(answer, method, 0.5, theme)
        rows = spec["datasets"]["cells"]
        assert len(rows) == 12
        for row in rows:
            after = method.after[row["fine_tuned_on"]][row["measured_on"]]
            assert row["change"] == pytest.approx(after - answer.before[row["measured_on"]], abs=1e-4)
            assert row["itself"] is (row["fine_tuned_on"] == row["measured_on"])
        assert {row["column"] for row in rows} == {"1", "2", "3", "P"}
        assert method.method in spec["description"]
        assert f"mRI {method.mri.estimate:+.3f}" in spec["description"]

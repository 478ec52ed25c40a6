"""Tables as people write them: names, numbers, percentages, and errors that name the cell."""

import sys
from pathlib import Path

import pandas as pd
import pytest

import paretune as pt
from paretune.frontiers.tables.columns import Table
from tests.unit.frontiers.tables.test_analysis import table, written


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_files_and_frames_say_the_same(tmp_path: Path, suffix: str) -> None:
    frame = table({"A": 0.0, "B": 0.05}, seeds=3)
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    from_file, from_frame = (pt.analyze(each, seed="seed").to_frame() for each in (path, frame))
    pd.testing.assert_frame_equal(from_file, from_frame)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table({"A": 0.0}).to_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "paretune\[parquet\]"'):
        pt.analyze(tmp_path / "t.parquet")


def test_names_are_text_and_nothing_is_guessed(tmp_path: Path) -> None:
    text = (
        "﻿strategy ; clean; robust\nNA;0.5;0.5\n01;0.6;0.5\n1;0.7;0.5\n=1+1;0.8;0.5\n\n"
        '"two\nlines";0.9;0.5\nTRUE;0.4;0.5\n\n'
    )
    groups = [each.strategy for each in pt.analyze(written(tmp_path, text)).areas]
    assert groups == ["two\nlines", "=1+1", "1", "01", "NA", "TRUE"]
    assert Table.read(tmp_path / "t.csv").rows.tolist() == [2, 3, 4, 5, 7, 9]


def test_columns_may_have_any_name() -> None:
    frame = pd.DataFrame([["A", 0.9, 0.1], ["B", 0.8, 0.2]])
    assert [each.strategy for each in pt.analyze(frame, group="0", clean="1", robust="2").areas] == ["B", "A"]


def test_numbers_as_names_look_as_in_the_table() -> None:
    frame = pd.DataFrame({"strategy": [8.0, 0.5, 8.0], "clean": 0.5, "robust": 0.5})
    assert {each.strategy for each in pt.analyze(frame).areas} == {"8", "0.5"}


def test_percentages_are_refused_until_they_are_named(tmp_path: Path) -> None:
    frame = table({"A": 0.0, "B": 0.05})
    hundred = frame.assign(clean=100 * frame["clean"], robust=100 * frame["robust"])
    with pytest.raises(
        ValueError, match=r"row 0: column 'clean' .* got 92.8\. These look like percentages: .*--percent"
    ):
        pt.analyze(hundred)
    assert pt.analyze(hundred, percent=True).to_frame()["area"].tolist() == pytest.approx(
        pt.analyze(frame).to_frame()["area"].tolist()
    )
    with pytest.raises(ValueError, match="these are fractions"):
        pt.analyze(frame, percent=True)


HEAD = "strategy,clean,robust\nA,0.9,0.1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "B,0.8,oops\n", r"line 3: column 'robust' must hold finite numbers; got 'oops'"),
        (HEAD + "\nB,,0.2\n", r"line 4: column 'clean' .* got an empty cell"),
        (HEAD + "B,nan,0.2\n", r"line 3: column 'clean' .* got 'nan'"),
        (HEAD + "B,0.5,inf\n", r"line 3: column 'robust' .* got 'inf'"),
        (HEAD + "B,93%,0.2\n", r"line 3: .* got '93%', which needs no sign"),
        (HEAD + 'B,"0,93",0.2\n', r"line 3: .* got '0,93', which needs a decimal point"),
        (HEAD + "B,=1/2,0.2\n", r"line 3: .* got '=1/2'"),
        (HEAD + "B,-0.1,0.2\n", r"line 3: column 'clean' must hold accuracies from 0 to 1; got -0.1"),
        (HEAD + "B,250,0.2\n", r"line 3: column 'clean' must hold accuracies from 0 to 1; got 250$"),
        (HEAD + ",0.5,0.2\n", r"line 3: column 'strategy' is empty"),
        ('strategy,clean,robust\n"A\nB",0.9,0.1\nC,x,0.1\n', r"line 4: column 'clean'"),
        (HEAD + "B,0.5,0.2,0.3\n", "is not a table"),
        ("strategy,clean,robust\n", "has no rows"),
        ("", "is empty; its first line must name the columns"),
        ("strategy,clean,robust,clean\nA,0.5,0.5,0.5\n", "has 2 columns 'clean'; rename all but one"),
        ("strategy,Clean,robust\nA,0.5,0.5\n", "no column 'clean' .clean.; did you mean 'Clean'"),
        ("strategy,clean,robust_acc\nA,0.5,0.5\n", "no column 'robust' .robust.; did you mean 'robust_acc'"),
        (
            "strategy,clean,robust,epsilon\nA,0.5,0.5,4\nA,0.5,0.5,8\n",
            "line 3: column 'epsilon' is '8', but '4' before",
        ),
    ],
)
def test_errors_name_the_cell_and_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pt.analyze(written(tmp_path, text))


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    frame = table({"A": 0.0})
    for options, message in (
        ({"clean": "robust"}, "clean and robust are both column 'robust'"),
        ({"group": "clean"}, "clean and group are both column 'clean'"),
        ({"group": ""}, "group must name a column"),
        ({"select": ("clean",)}, "select must be two columns"),
        ({"level": 95}, "level must lie in"),
        ({"margin": -1}, "margin must lie in"),
        ({"reference": (10, 0)}, "reference must be two accuracies"),
        ({"min_clean": 80}, "min_clean must be an accuracy"),
    ):
        with pytest.raises(ValueError, match=message):
            pt.analyze(frame, **options)
    with pytest.raises(ValueError, match="the table has no rows"):
        pt.analyze(frame.iloc[:0])
    with pytest.raises(ValueError, match=r"row 1: column 'strategy' is empty"):
        pt.analyze(frame.assign(strategy=["A", None, "A", "A", "A", "A"]))
    with pytest.raises(ValueError, match=r"row 0: column 'clean' must hold finite numbers; got 'True'"):
        pt.analyze(frame.assign(clean=True))
    with pytest.raises(ValueError, match="is a directory; `paretune report"):
        pt.analyze(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        pt.analyze(tmp_path / "none.csv")
    for name, message in (
        ("t.xlsx", "must end with .csv, .tsv or .parquet"),
        ("t.parquet", "is not a Parquet file"),
    ):
        with pytest.raises(ValueError, match=message):
            pt.analyze(written(tmp_path, "x", name))
    (tmp_path / "latin.csv").write_bytes("strategy,clean,robust\né,0.5,0.5\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        pt.analyze(tmp_path / "latin.csv")


def test_mixed_attacks_are_refused_unless_they_are_tasks() -> None:
    frame = table({"A": 0.0, "B": 0.0})
    frame["attack"] = ["PGD", "AutoAttack"] * 6
    with pytest.raises(
        ValueError, match=r"row 1: column 'attack' is 'AutoAttack', but 'PGD' before; .* Name it in task="
    ):
        pt.analyze(frame)
    assert len(pt.analyze(frame, task="attack").tasks) == 2


def test_swapped_columns_and_empty_fronts_are_noted() -> None:
    frame = table({"A": 0.0, "B": 0.0})
    notes = pt.analyze(frame, clean="robust", robust="clean").tasks[0].notes
    assert any("swapped" in note for note in notes)
    notes = pt.analyze(frame, min_robust=0.9).tasks[0].notes
    assert any("No point of A and B is above the reference (0, 0.9)" in note for note in notes)

"""Runs for a leaderboard: what travels, what stays behind, and what is seen of changes on the way."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import paretune as pt
from paretune import attacks
from paretune.runs.digests import file_digest, file_digests
from paretune.runs.rows import read_json
from paretune.runs.store import as_runs, load_points, load_runs
from paretune.runs.submission import SUBMISSION, Submission, write_submission
from paretune.runs.verifying import problems, submission_problems
from tests import tiny
from tests.synthetic import STRATEGIES, write_run

WHO = {"by": "Ada", "machine": "one H100"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    tiny.run(root / "sweep/full", steps=4, eval_every=4, confirm=attacks.APGD(pt.Linf(4 / 255), steps=2))
    return root


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """Two runs one below the other directory, in a directory of their own."""
    for name in ("a", "deep/b"):
        write_run(tmp_path / "runs" / name, STRATEGIES[0], len(name), points=2)
    write_submission(load_runs(tmp_path / "runs"), tmp_path / "out", **WHO)
    return tmp_path / "out"


def test_numbers_and_correctness_travel_and_nothing_else(trained: Path, tmp_path: Path) -> None:
    run, out = trained / "sweep/full", tmp_path / "out"
    write_submission(load_runs(trained), out, **WHO)
    (copy,) = load_runs(out)
    assert {path.name for path in copy.path.iterdir()} == {
        *("config.json", "points.jsonl", "bits", "confirmed", "DONE")
    }
    for name in file_digests(copy.path):
        assert (copy.path / name).read_bytes() == (run / name).read_bytes()
    assert problems(copy) == []
    assert submission_problems([out]) == {}
    assert copy.done
    assert copy.examples() is None
    assert [each.step for each in copy.confirmed()] == [4]
    pd.testing.assert_frame_equal(
        load_points(out).drop(columns="path"), load_points(trained).drop(columns="path")
    )
    done = read_json(copy.path / "DONE")
    assert done["left_out"] == ["adapter", "examples.safetensors", "log.jsonl"]
    weights = "adapter/adapter_model.safetensors"
    assert done["files"][weights] == file_digest(run / weights)  # of what stayed behind
    told = Submission.read(out)
    assert (told.by, told.machine, [*told.files]) == ("Ada", "one H100", ["full/DONE"])


def test_weights_that_are_put_back_must_be_those_that_were_measured(trained: Path, tmp_path: Path) -> None:
    write_submission(load_runs(trained), tmp_path / "out", **WHO)
    copy = tmp_path / "out/full"
    shutil.copytree(trained / "sweep/full/adapter", copy / "adapter")
    assert problems(*load_runs(copy)) == []
    weights = copy / "adapter/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert [line.partition(" ")[0] for line in problems(*load_runs(copy))] == [str(weights)]


def test_an_export_of_an_export_is_the_same(trained: Path, tmp_path: Path) -> None:
    for source, out in ((trained, "once"), (tmp_path / "once", "twice")):
        write_submission(load_runs(source), tmp_path / out, **WHO)
    for file in (path for path in (tmp_path / "once").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "twice" / file.relative_to(tmp_path / "once")).read_bytes()


def test_runs_of_before_get_the_digests_of_what_is_exported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", STRATEGIES[0], points=2)
    done = read_json(run / "DONE")
    (run / "DONE").write_text(json.dumps({key: done[key] for key in ("points", "run", "schema")}))
    write_submission(load_runs(run), tmp_path / "out", **WHO)
    assert read_json(tmp_path / "out/run/DONE")["files"] == done["files"]


def test_what_says_how_runs_belong_together_travels(tmp_path: Path) -> None:
    for name in ("race/one", "race/both/left"):
        write_run(tmp_path / "all" / name, STRATEGIES[0], len(name), points=2)
    write_run(tmp_path / "all/other", STRATEGIES[1], points=2)
    (tmp_path / "all/race/race.json").write_text("{}")
    (tmp_path / "all/race/both/tasks.json").write_text("{}")
    (tmp_path / "race.json").write_text("of others")
    write_submission(load_runs(tmp_path / "all"), tmp_path / "out", **WHO)
    assert {*Submission.read(tmp_path / "out").files} == {
        *("other/DONE", "race/one/DONE", "race/both/left/DONE", "race/race.json", "race/both/tasks.json")
    }
    (tmp_path / "out/race/race.json").write_text("{ }")
    ((directory, (line,)),) = submission_problems([tmp_path]).items()
    assert (directory, line.partition(" ")[0]) == (
        str(tmp_path / "out"),
        f"{tmp_path / 'out/race/race.json'}",
    )


def test_runs_that_were_taken_away_added_or_exchanged_are_named(submitted: Path) -> None:
    runs = submitted.parent / "runs"

    def told() -> list[str]:
        return submission_problems([submitted]).get(str(submitted), [])

    assert told() == []
    shutil.move(submitted / "a", submitted.parent / "gone")
    assert told() == [f"{submitted / 'a/DONE'} is missing"]
    shutil.move(submitted.parent / "gone", submitted / "a")
    write_run(submitted / "added", STRATEGIES[1], points=2)
    assert told() == [f"{submitted / 'added'} is not a run of submission.json"]
    shutil.rmtree(submitted / "added")
    write_run(runs / "other", STRATEGIES[2], points=2)
    write_submission(load_runs(runs / "other"), submitted.parent / "another", **WHO)
    shutil.rmtree(submitted / "a")
    shutil.copytree(submitted.parent / "another/other", submitted / "a")
    assert problems(*load_runs(submitted / "a")) == []  # alone it is what it says
    assert told() == [f"{submitted / 'a/DONE'} is not the file that was written: its SHA-256 is another"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "by": "", "machine": "m", "date": "d", "files": {"a": "b"}}',
    ],
)
def test_a_damaged_statement_is_named(submitted: Path, content: str) -> None:
    (submitted / SUBMISSION).write_text(content)
    ((_, (line,)),) = submission_problems([submitted]).items()
    assert str(submitted / SUBMISSION) in line


def test_unfinished_runs_and_full_directories_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/half", STRATEGIES[0], points=2, finish=False)
    with pytest.raises(ValueError, match=r"half is not finished; .*--where"):
        write_submission(load_runs(tmp_path / "runs"), tmp_path / "out", **WHO)
    assert not (tmp_path / "out").exists()
    run = write_run(tmp_path / "runs/whole", STRATEGIES[1], points=2)
    for out in (run, run / "DONE"):
        with pytest.raises(FileExistsError, match="holds something; name a new directory"):
            write_submission(load_runs(run), out, **WHO)


def test_runs_of_several_places_keep_their_names(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / name, STRATEGIES[0], seed, points=2)
        for seed, name in enumerate(("x/run", "y/run"))
    ]
    write_submission(as_runs(paths), tmp_path / "out", **WHO)
    assert {*Submission.read(tmp_path / "out").files} == {"x/run/DONE", "y/run/DONE"}

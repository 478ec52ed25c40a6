"""``paretune runs verify``: what is well passes, and each thing that is not is named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paretune.commands.cli import main
from tests.synthetic import STRATEGIES, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / str(seed), STRATEGIES[0], seed)
    return tmp_path / "runs"


def verified(runs: Path, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["runs", "verify", str(runs), *options])
    told, complained = capfd.readouterr()
    return code, told, complained


def test_what_is_well_passes(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, told, _ = verified(runs, capfd)
    assert code == 0
    assert told.startswith("2 runs, ")
    code, told, _ = verified(runs, capfd, "--json")
    assert code == 0
    assert json.loads(told)["problems"] == {}


def changed(file: Path, key: str, value: object) -> None:
    """A file of bits with other bits, and the notes that it had."""
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        notes = opened.metadata()
    tensors = load_file(file)
    tensors[key] = np.asarray(value(tensors[key]), dtype=np.uint8)  # type: ignore[operator]
    save_file(tensors, file, notes)


def test_bits_that_contradict_their_row_are_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = sorted((runs / "1" / "bits").iterdir())[0]
    changed(file, "report/clean", np.zeros_like)
    code, told, complained = verified(runs, capfd)
    assert code == 2
    assert f"{runs / '1'}: " in told
    assert "report/clean gives 0.000000" in told
    assert "1 runs are not what they say" in complained


def test_a_robust_bit_without_its_clean_one_is_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = sorted((runs / "0" / "bits").iterdir())[-1]
    key = next(name for name in load_file(file) if name.startswith("select/robust"))
    # As many as before, of other examples: the mean stays.
    changed(file, key, lambda packed: np.packbits(np.unpackbits(packed)[::-1]))
    code, told, _ = verified(runs, capfd)
    assert code == 2
    assert "robust implies clean" in told


def test_bits_that_are_gone_and_runs_that_cannot_be_read_are_named(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(runs / "0" / "bits")
    (runs / "1" / "config.json").write_text("{")
    code, told, complained = verified(runs, capfd)
    assert code == 2
    assert str(runs / "0") in told
    assert str(runs / "1") in told
    assert "2 runs are not what they say" in complained


def test_two_splits_of_a_task_are_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "other", STRATEGIES[1], 0, examples=77)
    code, told, complained = verified(runs, capfd)
    assert code == 2
    assert "digits: 2 splits, which cannot be compared" in told
    assert f"  report report-77, select select-200: {runs / 'other'}\n" in told
    assert "0 runs are not what they say, and 1 tasks have several splits" in complained


def test_a_file_that_was_changed_after_the_run_is_named(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = runs / "0" / "points.jsonl"
    file.write_text(file.read_text().replace('"train_seconds": 3.0', '"train_seconds": 2.0'))
    code, told, complained = verified(runs, capfd)
    assert code == 2
    assert f"{runs / '0'}: {file} is not the file that was written" in told
    assert "1 runs are not what they say, and 0 tasks" in complained


def test_rows_that_were_removed_are_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = runs / "0" / "points.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    code, told, _ = verified(runs, capfd)
    assert code == 2
    assert f"{runs / '0'}: {file} has 7 rows, but DONE says that there are 8" in told


def test_a_copy_of_a_run_is_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "0", runs / "again")
    code, told, _ = verified(runs, capfd)
    assert code == 2
    assert f"{runs / 'again'}: a copy of {runs / '0'}; remove one of them\n" in told


def test_other_versions_and_runs_without_digests_are_told_and_are_no_error(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_run(runs / "half", STRATEGIES[1], finish=False)
    run = write_run(runs / "old", STRATEGIES[2])
    done = json.loads((run / "DONE").read_text())
    (run / "DONE").write_text(json.dumps({key: done[key] for key in ("points", "run", "schema")}))
    rows = [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]
    rows[0]["versions"]["torch"] = "2.10.0"
    (run / "points.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, told, _ = verified(runs, capfd)
    assert code == 0
    lines = told.splitlines()
    assert "torch 2.10.0, 2.9.0 (not the same for all points)" in lines
    assert "paretune 0.1.0" in lines
    assert "1 not finished, so without digests of their files" in lines
    assert "1 finished by a paretune that wrote no digests of their files" in lines
    code, told, _ = verified(runs, capfd, "--json")
    assert [*json.loads(told)["unproven"].values()] == [[str(runs / "half")], [str(run)]]


def test_the_whole_adapter_of_several_tasks_is_read_too(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (runs / "tasks.json").write_text("{}")
    (runs / "adapter").mkdir()
    code, told, _ = verified(runs, capfd)
    assert code == 2
    for name in ("0", "1"):
        assert f"{runs / name}: {runs / 'adapter'} is not an adapter of paretune" in told


def test_a_submission_is_written_and_verified_by_commands(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "leaderboard/mine"
    arguments = [sys.executable, "-m", "paretune", "runs"]
    who = ["--by", "Ada", "--machine", "one H100"]
    written = subprocess.run(
        [*arguments, "export", str(runs), "--where", "seed=1", "--out", str(out), *who],
        capture_output=True,
        text=True,
        check=True,
    )
    assert written.stdout.startswith("8 points of 1 runs, ")
    assert written.stdout.endswith(f": {out}\n")
    assert verified(out.parent, capfd)[0] == 0
    (out / "1/DONE").unlink()
    code, told, complained = verified(out.parent, capfd)
    assert code == 2
    assert f"{out}: {out / '1/DONE'} is missing\n" in told
    assert "0 runs are not what they say, 1 submissions neither" in complained


def test_nothing_wrong_is_exported(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = sorted((runs / "1" / "bits").iterdir())[0]
    changed(file, "report/clean", np.zeros_like)
    options = ["--out", str(tmp_path / "out"), "--by", "Ada", "--machine", "one H100"]
    assert main(["runs", "export", str(runs), *options]) == 2
    complained = capfd.readouterr().err
    assert str(file) in complained
    assert complained.endswith("Nothing was exported\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "new", "--by", "Ada"], "give by and machine"),
        (["--out", "new", "--by", "Ada", "--machine", ""], "give by and machine"),
        (["--out", "points.csv", "--by", "Ada", "--machine", "one H100"], "must be a new directory"),
        (["--out", "new"], "or for a leaderboard a new directory, with by and machine"),
    ],
)
def test_half_an_answer_is_refused(
    runs: Path, capfd: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["runs", "export", str(runs), *options]) == 2
    assert message in capfd.readouterr().err

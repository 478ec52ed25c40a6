"""A finished run knows its files: whatever changes in one of them afterwards is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import paretune as pt
from paretune import attacks
from paretune.runs.digests import changed_since_done, file_digests, sealed, states_digests
from paretune.runs.rows import read_json
from paretune.runs.store import RunWriter, load_runs
from paretune.runs.verifying import problems
from tests import tiny
from tests.unit.runs.test_store import CONFIG, point


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of file that a finished one has."""
    out = tmp_path_factory.mktemp("runs") / "run"
    tiny.run(out, steps=4, eval_every=4, confirm=attacks.APGD(pt.Linf(4 / 255), steps=2))
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file())


def complaints(run: Path) -> str:
    """What reading or verifying it says; empty of a run that is well."""
    try:
        (read,) = load_runs(run)
    except (ValueError, OSError) as error:
        return str(error)
    return "\n".join(problems(read))


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_every_file_has_a_digest_somewhere(run: Path) -> None:
    done = read_json(run / "DONE")
    elsewhere = {"DONE": "sha256", "log.jsonl": "log", "examples.safetensors": "examples"}
    names = {file.relative_to(run).as_posix() for file in files(run)}
    assert names == {*done["files"], *elsewhere}
    assert {*elsewhere.values()} <= {*done}
    assert {name.partition("/")[0] for name in done["files"]} == {
        *("adapter", "bits", "config.json", "confirmed", "points.jsonl")
    }
    assert complaints(run) == ""


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_flipped_bit_in_any_file_names_the_file(run: Path, share: float) -> None:
    for file in files(run):
        whole = file.read_bytes()
        flip(file, round(share * (len(whole) - 1)))
        assert str(file) in complaints(run), file
        file.write_bytes(whole)
    assert complaints(run) == ""


def test_a_file_that_is_gone_is_named(run: Path) -> None:
    for file in files(run):
        if file.name == "DONE":
            continue  # the run is unfinished without it, and verify says that
        kept = file.read_bytes()
        file.unlink()
        assert str(file) in complaints(run), file
        file.write_bytes(kept)
    shutil.rmtree(run / "adapter")
    assert f"{run / 'adapter/paretune.json'} is missing" in complaints(run)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("clean", lambda value: value + 1e-9),  # less than the bits can tell
        ("trainable_parameters", lambda value: value - 1),
        ("train_seconds", lambda value: value / 2),
        ("precision", lambda _: "bf16"),
        ("versions", lambda value: value | {"torch": "1.0"}),
    ],
)
def test_an_edited_number_of_a_row_is_seen(run: Path, field: str, change: Callable[[object], object]) -> None:
    file = run / "points.jsonl"
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row | {field: change(row[field])}) + "\n")
    assert f"{file} is not the file that was written" in complaints(run)


def test_bits_exchanged_for_others_of_the_same_mean_are_seen(tmp_path: Path) -> None:
    """Other examples right, as many as before: the row and its bits agree."""
    writer = RunWriter(tmp_path / "run", CONFIG)
    row, bits = point(10)
    writer.append(row, bits)
    writer.finish({})
    other = {name: right[::-1].copy() for name, right in bits.items()}
    assert any((other[name] != bits[name]).any() for name in bits)
    assert all(other[name].mean() == bits[name].mean() for name in bits)
    again = RunWriter(tmp_path / "again", CONFIG)
    again.append(row, other)
    (file,) = (tmp_path / "run/bits").iterdir()
    shutil.copyfile(tmp_path / "again/bits" / file.name, file)
    (read,) = load_runs(tmp_path / "run")
    assert (read.bits(read.points.iloc[0])["report/clean"] == other["report/clean"]).all()
    assert problems(read) == [f"{file} is not the file that was written: its SHA-256 is another"]


@pytest.mark.parametrize(
    "change",
    [
        lambda done: done | {"findings": []},
        lambda done: done | {"kept_step": 3},
        lambda done: done | {"left_out": ["adapter"]},
        lambda done: {key: value for key, value in done.items() if key != "files"},
        lambda done: {key: value for key, value in done.items() if key != "sha256"},
        lambda done: done | {"files": 3},
    ],
)
def test_an_edited_statement_is_seen(run: Path, change: Callable[[dict[str, object]], object]) -> None:
    done = read_json(run / "DONE") | {"findings": [{"step": 1, "finding": "it failed"}]}
    (run / "DONE").write_text(json.dumps(sealed(done)))
    assert complaints(run) == ""
    (run / "DONE").write_text(json.dumps(change(done)))
    assert f"{run / 'DONE'} is not what was written" in complaints(run)


def test_a_run_of_before_has_none_and_stays_readable(run: Path) -> None:
    old = {key: value for key, value in read_json(run / "DONE").items() if key not in ("files", "sha256")}
    (run / "DONE").write_text(json.dumps(old))
    assert not states_digests(old)
    assert complaints(run) == ""
    row, bits = point(10)
    writer = RunWriter(run.parent / "old", CONFIG)
    writer.append(row, bits)
    writer.finish({})
    done = read_json(writer.path / "DONE")
    (writer.path / "DONE").write_text(json.dumps({k: done[k] for k in ("points", "run", "schema")}))
    RunWriter(run.parent / "old", CONFIG).append(*point(20))
    assert read_json(writer.path / "DONE")["files"] == file_digests(writer.path)


def test_a_finished_run_whose_files_were_changed_takes_no_more_points(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", CONFIG)
    writer.append(*point(10))
    writer.finish({})
    before = (tmp_path / "run/DONE").read_bytes()
    (file,) = (tmp_path / "run/bits").iterdir()
    flip(file, -1)
    with pytest.raises(
        ValueError, match=r"step-000010\.safetensors is not the file that was written.*resume=False"
    ):
        RunWriter(tmp_path / "run", CONFIG).append(*point(20))
    assert (tmp_path / "run/DONE").read_bytes() == before
    assert [path.name for path in (tmp_path / "run/bits").iterdir()] == [file.name]


def test_files_outside_of_the_run_are_not_read(run: Path) -> None:
    (run.parent / "secret").write_text("")
    done = read_json(run / "DONE")
    (run / "DONE").write_text(json.dumps(sealed(done | {"files": {"../secret": "0"}})))
    assert changed_since_done(run) == [f"{run / '../secret'} lies outside of {run}"]


def test_pipes_are_no_files(run: Path) -> None:
    (run / "adapter/README.md").unlink()
    os.mkfifo(run / "adapter/README.md")
    assert "is no file, but a directory, a pipe or a device" in complaints(run)


def test_digests_do_not_depend_on_what_others_write_later(run: Path) -> None:
    before = file_digests(run)
    (run / "tensorboard").mkdir()
    for name in ("tensorboard/events", "sinks.json", ".lock", "bits/.step.1.tmp"):
        (run / name).write_text("later")
    assert file_digests(run) == before

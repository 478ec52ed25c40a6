"""Labels and pictures of a run: what was written is read, by whoever comes, and nothing else."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from paretune.runs.examples import EXAMPLES, Examples, Pictures
from paretune.runs.rows import load_packed, pack
from paretune.runs.store import RunWriter, load_runs
from tests.unit.runs.test_store import CONFIG, point

PICTURES = Pictures(
    step=20,
    attack="PGD(Linf(0.01))",
    places=np.array([0, 2]),
    clean=np.linspace(0, 1, 96, dtype=np.float32).reshape(2, 3, 4, 4),
    attacked=np.linspace(1, 0, 96, dtype=np.float32).reshape(2, 3, 4, 4),
    predicted=np.array([[0, 1], [1, 1]]),
    confidence=np.array([[0.5, 0.6], [0.7, 0.8]], dtype=np.float32),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two points, the labels of their examples, and pictures of the second; finished."""
    writer = RunWriter(tmp_path / "run", CONFIG)
    for step in (10, 20):
        row, bits = point(step)
        kept = Examples(str(row["report_id"]), ("häns", "\u2028<b>"), np.arange(int(row["examples"])) % 2)
        writer.keep(replace(kept, pictures=PICTURES if step == 20 else None))
        writer.append(row, bits)
    writer.finish({})
    return tmp_path / "run"


def test_what_was_kept_is_read(run: Path) -> None:
    kept = load_runs(run)[0].examples()
    assert kept is not None
    assert kept.pictures is not None
    assert kept.classes == ("häns", "\u2028<b>")
    assert kept.labels.dtype == np.int64
    for name, value in vars(PICTURES).items():
        assert np.array_equal(getattr(kept.pictures, name), value), name
    assert load_file(run / EXAMPLES).keys() == {
        "labels",
        "places",
        "clean",
        "attacked",
        "predicted",
        "confidence",
    }


def test_the_same_contents_are_the_same_bytes(run: Path) -> None:
    before = (run / EXAMPLES).read_bytes()
    kept = load_runs(run)[0].examples()
    assert kept is not None
    kept.write(run)
    assert (run / EXAMPLES).read_bytes() == before


def test_a_packed_file_holds_numbers_of_several_kinds(tmp_path: Path) -> None:
    tensors = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "b": np.array([0.1], dtype=np.float32),
        "c": np.arange(3, dtype=np.uint8),
        "d": np.zeros((0, 4), dtype=np.float32),
    }
    (tmp_path / "file").write_bytes(pack(tensors, {"said": "ä"}))
    read, notes = load_packed(tmp_path / "file")
    assert notes == {"said": "ä"}
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert np.array_equal(read[name], value)


def test_a_run_that_kept_nothing_says_so(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", CONFIG)
    writer.append(*point(10))
    writer.finish({})
    assert load_runs(tmp_path / "run")[0].examples() is None
    assert "examples" not in json.loads((tmp_path / "run/DONE").read_text())


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, pipe])
def test_a_damaged_file_is_named(run: Path, damage: Callable[[Path], None]) -> None:
    damage(run / EXAMPLES)
    with pytest.raises(
        ValueError, match=r"examples\.safetensors is (damaged|missing|no file).*restore it from a copy"
    ):
        load_runs(run)[0].examples()


def test_a_flipped_bit_anywhere_is_seen(run: Path) -> None:
    whole = (run / EXAMPLES).read_bytes()
    (run / "DONE").unlink()  # which has the digest besides
    for place in range(0, len(whole), 7):
        for bit in (1, 32):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            (run / EXAMPLES).write_bytes(damaged)
            with pytest.raises(ValueError, match=r"examples\.safetensors"):
                load_runs(run)[0].examples()


def test_the_file_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    kept = load_runs(run)[0].examples()
    assert kept is not None
    replace(kept, labels=1 - kept.labels).write(run)
    with pytest.raises(ValueError, match="not those that were written"):
        load_runs(run)[0].examples()
    (run / "DONE").unlink()
    for other in (replace(kept, report_id="another"), replace(kept, labels=kept.labels[1:])):
        other.write(run)
        with pytest.raises(ValueError, match=f"{EXAMPLES} is about other examples than the rows"):
            load_runs(run)[0].examples()


def test_pictures_of_a_point_that_was_forgotten_are_not_shown(run: Path) -> None:
    RunWriter(run, CONFIG).truncate_after(10)
    kept = load_runs(run)[0].examples()
    assert kept is not None
    assert kept.pictures is None
    assert len(kept.labels)


def test_a_run_that_is_started_over_forgets_them(run: Path) -> None:
    RunWriter(run, CONFIG, resume=False)
    assert not (run / EXAMPLES).exists()


def test_a_finished_run_that_gets_another_row_still_names_its_file(run: Path) -> None:
    row, bits = point(20)
    RunWriter(run, CONFIG).append({**row, "attack": "another"}, bits)
    kept = load_runs(run)[0].examples()
    assert kept is not None
    assert json.loads((run / "DONE").read_text())["examples"] == kept.digest

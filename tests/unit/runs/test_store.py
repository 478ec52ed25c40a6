"""Runs survive being killed, copied, resumed and damaged, or say what is wrong with them."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.runs import store
from paretune.runs.rows import ROW_FIELDS, run_key
from paretune.runs.store import RunWriter, load_points, load_runs
from tests.synthetic import ATTACK, STRATEGIES, write_run, write_runs

CONFIG = {"task": "t", "strategy": "LoRA", "strategy_config": "LoRA(rank=2)", "seed": 3, "lr": {"head": 0.1}}
Bits = dict[str, Any]


def point(step: int, attack: str = "A", key: str = "robust-0", seed: int = 0) -> tuple[dict[str, Any], Bits]:
    """A row and the bits it follows from; 13 and 9 examples, so that packing pads."""
    rng = np.random.default_rng([seed, step])
    clean, clean_select = rng.random(13) < 0.8, rng.random(9) < 0.8
    rng = np.random.default_rng([seed, step, *attack.encode()])
    robust, robust_select = clean & (rng.random(13) < 0.5), clean_select & (rng.random(9) < 0.5)
    row = {
        "step": step,
        "epoch": step / 10,
        "attack": attack,
        "threat": "Linf",
        "epsilon": 4 / 255,
        "clean": clean.mean(),
        "robust": robust.mean(),
        "clean_select": clean_select.mean(),
        "robust_select": robust_select.mean(),
        "examples": 13,
        "examples_select": 9,
        "report_id": "r",
        "select_id": "s",
        "bits_key": key,
        "trainable_parameters": 10,
        "train_seconds": 1.0,
        "cpu_seconds": 1,
        "peak_memory_bytes": 5,
        "precision": "float32",
        "versions": {"torch": "2"},
    }
    bits = {"report/clean": clean, "select/clean": clean_select}
    return row, bits | {f"report/{key}": robust, f"select/{key}": robust_select}


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> RunWriter:
    writer = RunWriter(tmp_path / "run", CONFIG)
    for step in (10, 20, 30):
        writer.append(*point(step))
    return writer


def test_what_is_written_is_read(run: RunWriter) -> None:
    run.finish({"note": "ok"})
    (read,) = load_runs(run.path)
    header = (run.path / "bits/step-000010.safetensors").read_bytes()[:8]
    assert int.from_bytes(header, "little") % 8 == 0  # the format aligns its data
    assert read.done
    assert read.config == {"schema": 1, **CONFIG}
    assert read.key == run.key == run_key({"schema": 1, **CONFIG})
    assert [*read.points.columns] == [*ROW_FIELDS]
    assert [*read.points["step"]] == [10, 20, 30]
    for _, row in read.points.iterrows():
        expected, bits = point(row["step"])
        assert row["strategy"] == "LoRA"
        assert row["config"] == "LoRA(rank=2)"
        assert row["seed"] == 3
        assert {key: row[key] for key in expected} == expected
        stored = read.bits(row)
        assert np.array_equal(stored["report/clean"], bits["report/clean"])
        assert np.array_equal(stored["report/robust"], bits["report/robust-0"])
        assert np.array_equal(stored["select/clean"], bits["select/clean"])
        assert np.array_equal(stored["select/robust"], bits["select/robust-0"])
    assert json.loads((run.path / "DONE").read_text())["points"] == 3


def test_the_key_is_canonical() -> None:
    assert run_key({"a": 1, "b": [1.5, "é"]}) == run_key({"b": (1.5, "é"), "a": 1})
    assert run_key({"a": 1}) != run_key({"a": 2})
    assert run_key({}) == "44136fa355b3678a"  # the first digits of `printf '{}' | sha256sum`
    with pytest.raises(ValueError, match="JSON"):
        run_key({"a": math.nan})


def test_opening_with_another_configuration_names_the_differences(run: RunWriter) -> None:
    RunWriter(run.path, dict(reversed(CONFIG.items())))
    with pytest.raises(ValueError, match=r"lr\.head: 0\.1 there, 0\.2 here; seed: 3 there, 4 here") as error:
        RunWriter(run.path, CONFIG | {"seed": 4, "lr": {"head": 0.2}})
    assert "task" not in str(error.value)
    with pytest.raises(ValueError, match="extra: nothing there, 1 here"):
        RunWriter(run.path, CONFIG | {"extra": 1})
    with pytest.raises(ValueError, match="lacks strategy_config, seed"):
        RunWriter(run.path / "other", {"task": "t", "strategy": "LoRA"})


def test_repeating_a_point_changes_nothing(run: RunWriter) -> None:
    before = files(run.path)
    row, bits = point(20)
    run.append(row | {"train_seconds": 99.0}, bits)
    RunWriter(run.path, CONFIG).append(row, bits)
    assert files(run.path) == before


def test_attacks_share_a_file_and_can_come_later(run: RunWriter) -> None:
    first, bits_first = point(40, "A", "robust-0")
    second, bits_second = point(40, "B", "robust-1")
    run.append([first, second], bits_first | bits_second)
    late, bits_late = point(10, "B", "robust-1")
    run.append(late, bits_late)
    (read,) = load_runs(run.path)
    assert len(read.points) == 6
    assert len([*(run.path / "bits").iterdir()]) == 4
    for _, row in read.points.iterrows():
        read.bits(row)
    other_model, other_bits = point(10, "C", "robust-2", seed=1)
    with pytest.raises(ValueError, match=r"other bits for report/clean.*not the model"):
        run.append(other_model, other_bits)


def test_truncation_forgets_later_points_and_remaking_them_gives_the_same_files(run: RunWriter) -> None:
    before = files(run.path)
    run.finish({})
    again = RunWriter(run.path, CONFIG)
    assert again.done
    again.truncate_after(10)
    assert not again.done
    assert [*load_points(run.path)["step"]] == [10]
    assert len([*(run.path / "bits").iterdir()]) == 1
    for step in (20, 30):
        again.append(*point(step))
    assert files(run.path) == before
    again.truncate_after(-1)
    assert load_runs(run.path)[0].points.empty


def test_bits_without_a_line_are_replaced(run: RunWriter) -> None:
    """A run killed between bits and line, then resumed without exactness, stores what it computes now."""
    line_lost = (run.path / "points.jsonl").read_bytes().split(b"\n")[:2]
    (run.path / "points.jsonl").write_bytes(b"\n".join(line_lost) + b"\n")
    again = RunWriter(run.path, CONFIG)
    row, bits = point(30, seed=7)
    again.append(row, bits)
    (read,) = load_runs(run.path)
    assert np.array_equal(read.bits(read.points.iloc[2])["report/clean"], bits["report/clean"])


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_ignored_and_then_cut(run: RunWriter, kept: int) -> None:
    path = run.path / "points.jsonl"
    whole = path.read_bytes()
    *_, last = whole.splitlines(keepends=True)
    path.write_bytes(whole.removesuffix(last) + last[:kept])
    assert [*load_points(run.path)["step"]] == [10, 20]
    RunWriter(run.path, CONFIG).append(*point(30))
    assert path.read_bytes() == whole


def test_a_line_torn_while_the_writer_is_open_is_cut_before_the_next(run: RunWriter) -> None:
    with open(run.path / "points.jsonl", "ab") as file:
        file.write(b'{"schema": 1, "ru')
    run.append(*point(40))
    assert [*load_points(run.path)["step"]] == [10, 20, 30, 40]


def test_an_earlier_corrupt_line_is_an_error_with_file_and_line(run: RunWriter) -> None:
    path = run.path / "points.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"points\.jsonl, line 2 is not JSON"):
        load_runs(run.path)
    path.write_text("\n".join([lines[0], lines[0]]) + "\n")
    with pytest.raises(ValueError, match="line 2 repeats the point of line 1"):
        load_runs(run.path)
    path.write_text("\n".join([*lines, "[]"]) + "\n")
    with pytest.raises(ValueError, match="line 4 lacks"):
        load_runs(run.path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("clean", math.nan, "clean must be finite"),
        ("robust", math.inf, "robust must be finite"),
        ("robust", -0.1, "robust must be finite and not negative"),
        ("clean_select", 93.0, r"clean_select is a fraction in \[0, 1\]; got 93"),
        ("robust_select", "0.5", "robust_select must be float"),
        ("clean", None, "clean must be float"),
        ("step", True, "step must be int"),
        ("epsilon", 8, "8/255 and not 8"),
        ("epsilon", 0.0, "fraction of the pixel range"),
        ("schema", 2, "schema 2; this library reads 1"),
        ("run", "0" * 16, "belongs to run 0000"),
    ],
)
def test_a_wrong_value_names_run_and_row(run: RunWriter, field: str, value: Any, message: str) -> None:
    path = run.path / "points.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {field: value})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"{path}, line 2.*{message}"):
        load_points(run.path)
    row, bits = point(40)
    with pytest.raises(ValueError, match=message if field != "run" and field != "schema" else "leave it out"):
        run.append(row | {field: value}, bits)
    assert len((run.path / "points.jsonl").read_text().splitlines()) == 3


def test_a_larger_l2_ball_is_allowed(run: RunWriter) -> None:
    row, bits = point(40)
    run.append(row | {"threat": "L2", "epsilon": 3.0}, bits)
    assert load_points(run.path)["epsilon"].max() == 3.0


def test_rows_and_bits_must_agree(run: RunWriter) -> None:
    row, bits = point(40)
    with pytest.raises(ValueError, match=r"clean is 0\.5, but report/clean has the mean"):
        run.append(row | {"clean": 0.5}, bits)
    with pytest.raises(ValueError, match="lacks 'select/robust-0'"):
        run.append(row, {key: value for key, value in bits.items() if key != "select/robust-0"})
    with pytest.raises(
        ValueError, match=r"boolean vector of examples = 13 > 0 values; got int64, shape \(13,\)"
    ):
        run.append(row, bits | {"report/clean": bits["report/clean"].astype(int)})
    with pytest.raises(ValueError, match="shape"):
        run.append(row, bits | {"report/clean": bits["report/clean"][:12]})
    wrong = ~bits["report/clean"]
    with pytest.raises(ValueError, match="robust implies clean"):
        run.append(row | {"robust": wrong.mean()}, bits | {"report/robust-0": wrong})
    with pytest.raises(ValueError, match="share one step"):
        run.append([row, point(50)[0]], bits)
    del row["precision"]
    with pytest.raises(ValueError, match="new row lacks precision"):
        run.append(row, bits)
    assert not (run.path / "bits/step-000040.safetensors").exists()


def test_damaged_bits_are_found(run: RunWriter) -> None:
    (read,) = load_runs(run.path)
    row = read.points.iloc[0]
    path = run.path / row["bits"]
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"report/clean gives 0\.\d+, but the row of step 10 says"):
        read.bits({**row, "clean": 0.0})
    with pytest.raises(ValueError, match="other examples"):
        read.bits({**row, "report_id": "another"})
    with pytest.raises(ValueError, match="no report/robust-5"):
        read.bits({**row, "bits_key": "robust-5"})
    with pytest.raises(ValueError, match="inside the run directory"):
        read.bits({**row, "bits": "../../secret"})
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError, match="damaged"):
        read.bits(row)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="copy run directories whole"):
        read.bits(row)


def test_runs_are_found_below_a_directory_and_other_files_are_not_mistaken_for_them(tmp_path: Path) -> None:
    write_runs(tmp_path / "a" / "b", STRATEGIES[:2], points=2)
    RunWriter(tmp_path / "just-begun", CONFIG)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"architectures": ["ViT"]}')
    (tmp_path / "config.json").write_text("[]")
    RunWriter(tmp_path / "a/b/0-seed0/adapter", CONFIG | {"seed": 9})  # what lies inside a run is part of it
    found = load_runs(tmp_path)
    names = ["0-seed0", "0-seed1", "1-seed0", "1-seed1", "just-begun"]
    assert [run.path.name for run in found] == names
    points = load_points(tmp_path)
    assert len(points) == 8
    assert {*points["path"]} == {str(run.path) for run in found[:4]}
    assert load_points(tmp_path / "just-begun").empty
    assert len(store.as_runs([found[0], tmp_path / "just-begun"])) == 2


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        load_runs(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no run directory in it"):
        load_runs(tmp_path)


def test_a_copied_run_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, STRATEGIES[0], points=1)
    with pytest.raises(ValueError, match="copies of one run"):
        load_runs(tmp_path)
    (tmp_path / "two/config.json").write_text('{"schema": 2}')
    with pytest.raises(ValueError, match="schema 2; this library reads 1"):
        load_runs(tmp_path)


@pytest.mark.parametrize("works", [0, 1, 2])
def test_a_full_disk_leaves_a_run_that_goes_on(
    run: RunWriter, monkeypatch: pytest.MonkeyPatch, works: int
) -> None:
    """Syncs fail for the bits, for their directory, or for the line: the point is then simply not there."""
    calls = iter(range(100))

    def fsync(_: int) -> None:
        if next(calls) >= works:
            raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="no space"):
        run.append(*point(40))
    monkeypatch.undo()
    assert [*load_points(run.path)["step"]] == [10, 20, 30]
    run.append(*point(40))
    assert [*load_points(run.path)["step"]] == [10, 20, 30, 40]


def test_reading_results_needs_no_torch(tmp_path: Path) -> None:
    write_runs(tmp_path, STRATEGIES[:2], (0,), points=2)
    code = (
        "import sys; from paretune.runs.store import load_points; from paretune.frontiers.comparing import compare; "
        "import paretune.report; "
        f"assert len(load_points({str(tmp_path)!r})) == 4; compare({str(tmp_path)!r}); "
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_synthetic_runs_are_real_runs(tmp_path: Path) -> None:
    (read,) = load_runs(write_run(tmp_path, STRATEGIES[0]))
    assert len(read.points) == 8
    assert {*read.points["attack"]} == {ATTACK}


def test_attacks_of_older_rows_are_those_of_today(run: RunWriter) -> None:
    run.append(*point(40, attack="PGD(Linf(0.01568627450980392), steps=20)"))
    (loaded,) = load_runs(run.path)
    assert loaded.points["attack"].tolist()[-1] == "PGD(Linf(4/255), steps=20)"

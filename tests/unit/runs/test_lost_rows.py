"""A run knows how many rows it has; whoever reads it or goes on with it sees when some are gone."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.commands.cli import main
from paretune.frontiers.comparing import labelled_points
from paretune.report.drawing import as_points
from paretune.runs.digests import file_digests, sealed
from paretune.runs.store import RunWriter, load_points, load_runs
from paretune.watch.progress import Watcher
from paretune.watch.reporting import Reporter
from tests import tiny
from tests.unit.runs.test_store import CONFIG, point
from tests.unit.training.test_loop import same_run

OVER = r"restore it from a copy, or start the run over with resume=False \(--resume false\)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and one that was stopped at step 9, after the checkpoint of step 8; three and two rows."""
    made = tmp_path_factory.mktemp("runs")
    tiny.run(made / "finished")

    def stop(status: Any) -> None:
        if status.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(made / "half", progress=stop)
    return made


@pytest.fixture
def copies(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs, tmp_path / "runs")
    return tmp_path / "runs"


def keep_lines(file: Path, *numbers: int) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[number] for number in numbers))


@pytest.mark.some(3)
@pytest.mark.parametrize("state", ["finished", "half"])
@pytest.mark.parametrize("kept", [(), (0,), (1,), None])
def test_a_file_of_points_cut_at_a_line_end_is_refused_by_everyone(
    copies: Path, state: str, kept: tuple[int, ...] | None
) -> None:
    run = copies / state
    if kept is None:
        (run / "points.jsonl").unlink()
    else:
        keep_lines(run / "points.jsonl", *kept)
    total, upto, file = (
        (3, "", "DONE") if state == "finished" else (2, " up to step 8", "checkpoint.safetensors")
    )
    message = (
        rf"points.jsonl has {len(kept or ())} rows{upto}, but {file} says that there are {total}: .*{OVER}"
    )
    for read in (load_runs, load_points, pt.recommend, lambda path: tiny.run(path / state)):
        with pytest.raises(ValueError, match=message):
            read(copies)
    (seen,) = (each for each in Watcher(copies).look().runs if each.name == state)
    assert seen.state == "damaged"
    assert "rows were lost" in str(seen.problem)
    reporter = Reporter(copies, 1.0, build=lambda runs: str(len(runs)))
    assert reporter.refresh()
    assert reporter.html == b"1"
    assert f"{state} is left out" in str(reporter.problem)
    tiny.run(run, resume=False)
    same_run(run, tiny.run(copies / "anew").path)


def test_points_after_the_checkpoint_may_go(copies: Path) -> None:
    """The run had not counted on them."""
    with (copies / "half/points.jsonl").open("a") as file:
        file.write(
            json.dumps(json.loads((copies / "finished/points.jsonl").read_text().splitlines()[2])) + "\n"
        )
    assert len(load_points(copies / "half")) == 3
    keep_lines(copies / "half/points.jsonl", 0, 1)
    assert len(load_points(copies / "half")) == 2
    assert tiny.run(copies / "half").done
    same_run(copies / "half", copies / "finished")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"points": "3"}', b'{"points": 3, "run": "0"}', b"\xff"]
)
def test_a_torn_or_foreign_statement_is_named(copies: Path, content: bytes) -> None:
    (copies / "finished/DONE").write_bytes(content)
    for read in (load_runs, lambda path: tiny.run(path)):
        with pytest.raises(ValueError, match=rf"finished/DONE .*{OVER}"):
            read(copies / "finished")
    assert Watcher(copies / "finished").look().runs[0].state == "damaged"
    assert tiny.run(copies / "finished", resume=False).done


def test_a_damaged_checkpoint_is_named_to_readers_too(copies: Path) -> None:
    file = copies / "half/checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    for read in (load_runs, lambda path: tiny.run(path)):
        with pytest.raises(ValueError, match=r"is damaged .*delete it to train this run from its start"):
            read(copies / "half")
    file.unlink()
    assert tiny.run(copies / "half").done
    same_run(copies / "half", copies / "finished")


def test_lines_that_are_damaged_repeated_or_out_of_order(copies: Path) -> None:
    file = copies / "finished/points.jsonl"
    whole = file.read_text()
    first, second, third = whole.splitlines(keepends=True)
    file.write_text(first + second[:50] + "\n" + third)
    with pytest.raises(ValueError, match=rf"line 2 is not JSON.*{OVER}"):
        load_runs(copies / "finished")
    file.write_text(first + second + second + third)
    with pytest.raises(ValueError, match="line 3 repeats the point of line 2; remove one of the two lines"):
        load_runs(copies / "finished")
    other = json.dumps(json.loads(second) | {"clean": 0.0, "robust": 0.0}) + "\n"
    file.write_text(first + second + other + third)
    with pytest.raises(ValueError, match=f"line 3 repeats the point of line 2; the file is damaged: {OVER}"):
        load_runs(copies / "finished")
    file.write_text(third + first + second)
    assert [*load_points(copies / "finished")["step"]] == [4, 8, 10]
    tiny.run(copies / "finished", resume=False)
    same_run(copies / "finished", tiny.run(copies / "anew").path)


def test_a_resumed_run_reports_its_last_point_whatever_the_order_of_its_rows(copies: Path) -> None:
    keep_lines(copies / "half/points.jsonl", 1, 0)
    run = tiny.run(copies / "half")
    card = json.loads((copies / "half/adapter/paretune.json").read_text())
    assert [each["clean"] for each in card["notes"]["results"]] == [run.points["clean"].iloc[-1]]


def test_a_point_without_its_bits_is_not_gone_on_from(copies: Path) -> None:
    bits = copies / "half/bits/step-000004.safetensors"
    content = bits.read_bytes()
    for damage in (bits.unlink, lambda: bits.write_bytes(content[:-5]), lambda: bits.write_bytes(b"")):
        damage()
        with pytest.raises((ValueError, FileNotFoundError), match=rf"step-000004.safetensors is .*{OVER}"):
            tiny.run(copies / "half")
    bits.write_bytes(content)
    assert tiny.run(copies / "half").done


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:5],
        lambda lines: lines[:3] + lines[4:],
        lambda lines: [*lines[:3], lines[2], *lines[3:]],
        lambda lines: [*lines[:3], "[]\n", *lines[4:]],
        lambda lines: [*lines[:3], lines[3][:9] + "\n", *lines[4:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
    ],
)
def test_a_log_that_lacks_lines_is_refused_and_one_that_was_removed_begins_anew(
    copies: Path, damage: Callable[[list[str]], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    log = copies / "half/log.jsonl"
    log.write_text("".join(damage(log.read_text().splitlines(keepends=True))))
    with pytest.raises(
        ValueError, match=r"log\.jsonl lacks lines up to step 8, or they are damaged.*or remove it"
    ):
        tiny.run(copies / "half")
    log.unlink()
    assert tiny.run(copies / "half").done
    assert "log.jsonl lacks the steps up to 8: it was removed" in caplog.text
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [9, 10]


def test_points_added_to_a_finished_run_are_counted(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", CONFIG)
    writer.append(*point(10))
    writer.finish({"note": "ok"})
    RunWriter(tmp_path / "run", CONFIG).append(*point(10, "B", "robust-1"))
    done = json.loads((tmp_path / "run/DONE").read_text())
    assert done == sealed(
        {
            "note": "ok",
            "points": 2,
            "run": writer.key,
            "schema": 1,
            "files": file_digests(tmp_path / "run"),
        }
    )
    keep_lines(tmp_path / "run/points.jsonl", 0)
    with pytest.raises(ValueError, match="rows were lost"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    "gone",
    [
        "config.json",
        "points.jsonl",
        "config.json bits",
        "config.json DONE",
        "points.jsonl bits",
        "config.json points.jsonl",
    ],
)
def test_a_half_deleted_run_is_no_missing_run(copies: Path, gone: str) -> None:
    for name in gone.split():
        path = copies / "finished" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"copy run directories whole|rows were lost"):
        load_runs(copies)


def test_a_run_that_starts_over_has_no_adapter_until_it_is_done(copies: Path) -> None:
    def look(status: Any) -> None:
        assert not (copies / "finished/adapter").exists()
        assert not (copies / "finished/DONE").exists()

    tiny.run(copies / "finished", resume=False, progress=look)
    assert (copies / "finished/adapter/paretune.json").exists()


def test_a_run_that_is_started_over_while_it_is_read_is_read_again(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its DONE may be read before that goes, and its points after they have gone."""
    from paretune.runs import store

    original, calls = store.read_rows, []

    def rows(path: Path, key: str) -> Any:
        if not calls:
            (path / "DONE").unlink()
            (path / "points.jsonl").unlink()
        calls.append(path)
        return original(path, key)

    monkeypatch.setattr(store, "read_rows", rows)
    (run,) = load_runs(copies / "finished")
    assert len(calls) == 2
    assert not run.done
    assert run.points.empty


def test_the_command_line_says_it_in_a_line(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_lines(copies / "finished/points.jsonl", 0)
    assert main(["report", str(copies)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "has 1 rows, but DONE says that there are 3" in error


@pytest.mark.some(4)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-1], "has 9 lines, but DONE says that there are 10"),
        (lambda lines: lines[1:], "has 9 lines, but DONE says that there are 10"),
        (lambda lines: [*lines[:3], *lines[4:]], "has 9 lines, but DONE says that there are 10"),
        (lambda lines: [*lines[:9], lines[9][:-1]], "has 9 lines, but DONE says that there are 10"),
        (lambda lines: [*lines, lines[-1]], "has 11 lines, but DONE says that there are 10"),
        (lambda lines: [*lines[:3], lines[2], *lines[4:]], "has the 10 lines that DONE says, but not those"),
        (
            lambda lines: [*lines[:3], lines[3][:9] + "\n", *lines[4:]],
            "has the 10 lines that DONE says, but not",
        ),
        (lambda lines: [], "has 0 lines, but DONE says that there are 10"),
        (None, "has 0 lines, but DONE says that there are 10"),
    ],
)
def test_a_finished_run_knows_its_log(
    copies: Path, damage: Callable[[list[str]], list[str]] | None, message: str
) -> None:
    log = copies / "finished/log.jsonl"
    if damage is None:
        log.unlink()
    else:
        log.write_text("".join(damage(log.read_text().splitlines(keepends=True))))
    for read in (load_runs, load_points, pt.recommend, tiny.run):
        with pytest.raises(ValueError, match=rf"log\.jsonl {message}.*{OVER}"):
            read(copies / "finished")
    (seen,) = (each for each in Watcher(copies).look().runs if each.name == "finished")
    assert seen.state == "damaged"
    tiny.run(copies / "finished", resume=False)
    same_run(copies / "finished", tiny.run(copies / "anew").path)


def test_a_log_that_is_cut_while_somebody_watches_is_seen(copies: Path) -> None:
    watcher = Watcher(copies / "finished")
    assert [watcher.look().runs[0].state for _ in range(2)] == ["done", "done"]
    keep_lines(copies / "finished/log.jsonl", 0, 1)
    assert watcher.look().runs[0].state == "damaged"


def test_the_log_of_a_run_that_went_on_is_counted_as_it_is(copies: Path) -> None:
    """It may begin late, where somebody removed the first part."""
    (copies / "half/log.jsonl").unlink()
    tiny.run(copies / "half")
    assert load_runs(copies / "half")[0].done
    keep_lines(copies / "half/log.jsonl", 0)
    with pytest.raises(ValueError, match="has 1 lines, but DONE says that there are 2"):
        load_runs(copies / "half")


def test_a_log_is_damaged_before_the_first_checkpoint_too(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", CONFIG)
    (tmp_path / "run/log.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"log\.jsonl lacks lines up to step 0, or they are damaged"):
        RunWriter(tmp_path / "run", CONFIG)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    "gone", ["", "paretune.json", "adapter_model.safetensors", "half of the tensors", "a pipe"]
)
def test_a_finished_run_without_its_adapter_is_refused_with_a_way_out(copies: Path, gone: str) -> None:
    adapter = copies / "finished/adapter"
    tensors = adapter / "adapter_model.safetensors"
    if gone == "half of the tensors":
        tensors.write_bytes(tensors.read_bytes()[: tensors.stat().st_size // 2])
    elif gone == "a pipe":
        tensors.unlink()
        os.mkfifo(tensors)
    elif gone:
        (adapter / gone).unlink()
    else:
        shutil.rmtree(adapter)
    with pytest.raises(
        ValueError, match=rf"finished is complete, but its adapter is not: .*{OVER}"
    ) as caught:
        tiny.run(copies / "finished")
    assert "\n" not in str(caught.value)
    tiny.run(copies / "finished", resume=False)
    same_run(copies / "finished", tiny.run(copies / "anew").path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 4), ("task", "other"), ("strategy", "BitFit"), ("config", "BitFit()"), ("step", 5)],
)
def test_a_row_that_contradicts_its_run_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    writer = RunWriter(tmp_path / "run", CONFIG)
    writer.append(*point(1))
    row = json.loads((tmp_path / "run/points.jsonl").read_text())
    (tmp_path / "run/points.jsonl").write_text(json.dumps(row | {field: value}) + "\n")

    for reader in (lambda: load_runs(tmp_path), lambda: RunWriter(tmp_path / "run", CONFIG)):
        with pytest.raises(ValueError, match=rf"line 1 says \w+ = .*but its run makes that .*{OVER}"):
            reader()


def test_accuracies_under_two_threats_do_not_choose_among_each_other(tmp_path: Path) -> None:
    for threat in ("Linf", "L2"):
        row, bits = point(1)
        writer = RunWriter(tmp_path / threat, CONFIG | {"of": threat})
        writer.append(row | {"threat": threat}, bits)
        better = {key: value | True for key, value in bits.items()}
        ones = dict.fromkeys(("clean", "robust", "clean_select", "robust_select"), 1.0)
        if threat == "L2":
            writer.append(row | {"threat": threat, "step": 2} | ones, better)
    points = labelled_points(load_runs(tmp_path))

    assert dict(zip(zip(points["threat"], points["step"], strict=True), points["chosen"], strict=True)) == {
        ("Linf", 1): True,
        ("L2", 1): False,
        ("L2", 2): True,
    }
    assert as_points(load_runs(tmp_path))["chosen"].tolist() == points["chosen"].tolist()

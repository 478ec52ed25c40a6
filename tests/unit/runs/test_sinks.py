"""Sinks receive the rows of the files, each once, and nothing that they do changes a run."""

import importlib.util
import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from paretune.runs.lines import Tail
from paretune.runs.sinks import SINKS, MLflow, SinkRun, StepRows, TensorBoard, Trackio, WandB, read_sinks
from paretune.strategies import BitFit
from paretune.sweeps.config import CompareConfig, Seeds, Strategies
from paretune.sweeps.grid import run_all
from tests import tiny
from tests.unit.training.test_loop import same_run


class Stopped(Exception):
    """What stands for a kill in these tests."""


def interrupt(at: int) -> Any:
    def show(status: Any) -> None:
        if status.step == at:
            raise Stopped

    return show


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def expected(run: Path) -> dict[str, dict[int, float]]:
    """What a dashboard must show: name -> step -> value, from the files alone."""
    shown: dict[str, dict[int, float]] = {}
    for row in rows_of(run, "log.jsonl"):
        for key in ("epsilon", "loss", "accuracy"):
            shown.setdefault(f"train/{key}", {})[row["step"]] = row[key]
    attack = "PGD-Linf-4-255-steps-3"
    for row in rows_of(run, "points.jsonl"):
        values = {"report/clean": row["clean"], "select/clean": row["clean_select"]}
        values |= {f"report/robust/{attack}": row["robust"], f"select/robust/{attack}": row["robust_select"]}
        for key in ("epoch", "train_seconds", "cpu_seconds", "peak_memory_bytes"):
            values[f"cost/{key}"] = row[key]
        for key, value in values.items():
            shown.setdefault(key, {})[row["step"]] = value
    return shown


@dataclass
class Recorder:
    """A sink that remembers everything; ``fails`` names the call that raises."""

    fails: str = ""
    steps: list[StepRows] = field(default_factory=list, repr=False)
    opened: list[SinkRun] = field(default_factory=list, repr=False)
    closed: list[bool] = field(default_factory=list, repr=False)

    def open(self, run: SinkRun) -> "Recorder":
        self.opened.append(run)
        self._maybe("open")
        return self

    def send(self, steps: Sequence[StepRows]) -> None:
        self._maybe("send")
        self.steps.extend(steps)

    def close(self, *, done: bool) -> None:
        self.closed.append(done)
        self._maybe("close")

    def _maybe(self, call: str) -> None:
        if call == self.fails:
            raise ConnectionError(f"no {call} today")


def received(sink: Recorder) -> tuple[list[Any], list[Any]]:
    return [s.log for s in sink.steps], [point for s in sink.steps for point in s.points]


def test_a_sink_receives_exactly_the_rows_of_the_files(tmp_path) -> None:
    sink = Recorder()
    tiny.run(tmp_path / "run", sinks=[sink])
    assert received(sink) == (
        rows_of(tmp_path / "run", "log.jsonl"),
        rows_of(tmp_path / "run", "points.jsonl"),
    )
    assert sink.closed == [True]
    assert sink.opened[0].config["strategy"] == "FullFineTune(bn='adapt')"
    assert sink.opened[0].name == "run"


def test_a_resumed_run_repeats_no_step_and_takes_none_back(tmp_path) -> None:
    sink = Recorder()
    with pytest.raises(Stopped):
        tiny.run(tmp_path / "run", sinks=[sink], progress=interrupt(at=7))
    assert [s.step for s in sink.steps] == [1, 2, 3, 4]  # 5 and 6 are after the last checkpoint
    assert sink.closed == [False]
    tiny.run(tmp_path / "run", sinks=[sink])
    assert received(sink) == (
        rows_of(tmp_path / "run", "log.jsonl"),
        rows_of(tmp_path / "run", "points.jsonl"),
    )
    assert [run.sent for run in sink.opened] == [0, 4]
    tiny.run(tmp_path / "run", sinks=[sink])  # complete: nothing is new
    assert len(sink.steps) == 10


def test_a_sink_that_is_added_late_receives_what_was_before(tmp_path) -> None:
    with pytest.raises(Stopped):
        tiny.run(tmp_path / "run", progress=interrupt(at=7))
    first, second = Recorder(), Recorder(fails="never")
    tiny.run(tmp_path / "run", sinks=[first])
    tiny.run(tmp_path / "run", sinks=[second])
    rows = rows_of(tmp_path / "run", "log.jsonl"), rows_of(tmp_path / "run", "points.jsonl")
    assert received(first) == received(second) == rows


def test_a_run_that_is_started_over_is_sent_again(tmp_path) -> None:
    sink = Recorder()
    tiny.run(tmp_path / "run", sinks=[sink])
    tiny.run(tmp_path / "run", sinks=[sink], resume=False)
    assert [s.step for s in sink.steps] == [*range(1, 11)] * 2


@pytest.mark.parametrize("call", ["open", "send", "close"])
def test_a_sink_that_fails_is_named_once_and_changes_nothing(tmp_path, caplog, call: str) -> None:
    tiny.run(tmp_path / "alone")
    other = Recorder()
    with caplog.at_level(logging.WARNING):
        tiny.run(tmp_path / "run", sinks=[Recorder(fails=call), other])
    same_run(tmp_path / "run", tmp_path / "alone")
    said = [record.message for record in caplog.records if "sink" in record.message]
    assert len(said) == 1
    assert f"no {call} today" in said[0]
    assert f"Recorder(fails='{call}')" in said[0]
    assert [s.step for s in other.steps] == [*range(1, 11)]


def test_what_a_failed_sink_lacks_comes_with_the_next_start(tmp_path) -> None:
    sink = Recorder(fails="send")
    tiny.run(tmp_path / "run", sinks=[sink])
    assert sink.steps == []
    sink.__init__(fails="send")  # the same sink, mended
    sink._maybe = lambda call: None
    tiny.run(tmp_path / "run", sinks=[sink])
    assert received(sink)[0] == rows_of(tmp_path / "run", "log.jsonl")


def test_a_growing_file_is_read_line_by_line(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    assert tail.read() == ([], False)
    path.write_text('{"step": 1}\n{"ste')
    assert tail.read() == ([{"step": 1}], False)
    assert tail.read() == ([], False)
    with open(path, "a") as file:
        file.write('p": 2}\nnot json\n[3]\n{"step": 4}\n')
    assert tail.read() == ([{"step": 2}, {"step": 4}], False)
    path.write_text('{"step": 1}\n')  # cut, as a resumed run does
    assert tail.read() == ([{"step": 1}], True)
    replaced = tmp_path / "new"
    replaced.write_text('{"step": 1}\n{"step": 5}\n')
    replaced.replace(path)
    assert tail.read() == ([{"step": 1}, {"step": 5}], True)
    path.unlink()
    assert tail.read() == ([], True)


def test_sinks_are_named_on_the_command_line(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object())
    found = read_sinks("tensorboard, MLflow(experiment='x')")
    assert found == (TensorBoard(), MLflow(experiment="x"))
    assert repr(TensorBoard(directory="logs")) == "TensorBoard(directory='logs')"


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_whose_package_is_missing_names_the_line_that_installs_it(name: str, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf"{name}\(\) needs \w+: pip install"):
        SINKS[name]()


# With the real packages: what their own readers find is what the files hold. They warn about one another; that is not ours.

foreign = pytest.mark.filterwarnings("ignore")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def require(*packages: str) -> None:
    """Skip where a dashboard is not installed; fail if PARETUNE_REQUIRE_SINKS says that all must be."""
    for package in packages:
        if not installed(package):
            if os.environ.get("PARETUNE_REQUIRE_SINKS") == "1":
                pytest.fail(f"PARETUNE_REQUIRE_SINKS=1, but {package} is not installed")
            pytest.skip(f"{package} is not installed")


def interrupted(out: Path, sink: Any) -> Path:
    """A run that was stopped after its first checkpoint, and went on."""
    with pytest.raises(Stopped):
        tiny.run(out, sinks=[sink], progress=interrupt(at=7))
    tiny.run(out, sinks=[sink])
    return out


def check(found: dict[str, list[tuple[int, float]]], run: Path, kind: type = np.float64) -> None:
    wanted = expected(run)
    assert {*found} == {*wanted}
    for name, values in wanted.items():
        assert found[name] == [(step, float(kind(value))) for step, value in sorted(values.items())], name


def test_tensorboard_shows_the_rows(tmp_path) -> None:
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = interrupted(tmp_path / "run", TensorBoard())
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    check(
        {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]},
        run,
        np.float32,
    )
    assert "config/text_summary" in events.Tags()["tensors"]


def test_tensorboard_drops_what_was_sent_but_not_remembered(tmp_path) -> None:
    """A process may be killed between sending rows and noting that it did."""
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoard(directory=str(tmp_path / "events"))
    tiny.run(tmp_path / "run", sinks=[sink])
    (tmp_path / "run" / "sinks.json").unlink()
    tiny.run(tmp_path / "run", sinks=[sink])
    events = EventAccumulator(str(tmp_path / "events" / "run"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [*range(1, 11)]


@foreign
@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_mlflow_shows_the_rows_and_the_configuration(tmp_path, monkeypatch, store: str) -> None:
    require("mlflow", "sqlalchemy")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/store.db" if store == "sqlite" else f"file://{tmp_path}/store"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = interrupted(tmp_path / "run", MLflow(tracking_uri=uri))
    (run / "sinks.json").unlink()  # forgetting what was sent repeats nothing
    tiny.run(run, sinks=[MLflow(tracking_uri=uri)])
    client = MlflowClient(tracking_uri=uri)
    (one,) = client.search_runs([client.get_experiment_by_name("paretune").experiment_id])
    found = {
        name: [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, name)]
        for name in one.data.metrics
    }
    check(found, run)
    assert one.info.status == "FINISHED"
    assert one.info.run_name == "run"
    assert one.data.params["objective.inner.steps"] == "2"


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, in which W&B keeps an offline run: blocks of 32 KiB, records in fragments."""
    block, at, parts = 1 << 15, 0, b""
    while at + 7 <= len(content):
        if block - (at + 7) % block < 7:  # the file's mark of 7 bytes belongs to the first block
            at += block - (at + 7) % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last fragment
            yield parts
            parts = b""


@foreign
def test_wandb_shows_the_rows(tmp_path, monkeypatch) -> None:
    require("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = interrupted(tmp_path / "run", WandB())
    found: dict[str, list[tuple[int, float]]] = {}
    names = set()
    for file in sorted(
        (run / "wandb").glob("offline-run-*/*.wandb")
    ):  # two: before and after the interruption
        for data in log_records(file.read_bytes()[7:]):  # after W&B's own mark
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                names.add((record.run.run_id, record.run.display_name))
            if record.HasField("history"):
                items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                for name, text in items.items():
                    if not name.startswith("_"):
                        found.setdefault(name, []).append((record.history.step.num, json.loads(text)))
    check(found, run)
    assert len(names) == 1


@foreign
def test_trackio_shows_the_rows(tmp_path, monkeypatch) -> None:
    require("trackio")
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio, trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    run = interrupted(tmp_path / "run", Trackio())
    with sqlite3.connect(tmp_path / "trackio" / "paretune.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    database.close()
    found: dict[str, list[tuple[int, float]]] = {}
    for _, step, text in rows:
        for name, value in json.loads(text).items():
            found.setdefault(name, []).append((step, value))
    check(found, run)
    assert len({name for name, _, _ in rows}) == 1


@pytest.mark.slow
def test_every_run_of_a_sweep_is_sent_from_its_process(tmp_path) -> None:
    require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    config = CompareConfig(
        backbone="timm:test_resnet",
        weights=str(tmp_path / "w.pth"),
        img_size=32,
        limit=120,
        epochs=2,
        points=2,
        eval_steps=2,
        train_steps=1,
        batch_size=16,
        strategies=Strategies((BitFit(),)),
        seeds=Seeds((0,)),
    )
    runs = run_all(config.runs(), tmp_path / "runs", workers=1, progress=False, sinks=[TensorBoard()])
    late = TensorBoard(directory=str(tmp_path / "late"))
    run_all(config.runs(), tmp_path / "runs", workers=1, progress=False, sinks=[late])  # all complete
    for run in runs:
        steps = [row["step"] for row in rows_of(run.path, "log.jsonl")]
        for directory in (run.path / "tensorboard", tmp_path / "late" / run.path.name):
            events = EventAccumulator(str(directory))
            events.Reload()
            assert [event.step for event in events.Scalars("train/loss")] == steps

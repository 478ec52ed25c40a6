"""Several processes train one model: what is measured and saved is the model that all of them have."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import paretune as pt
from paretune.runs.store import load_runs
from paretune.training import plan
from paretune.training.objectives import Natural
from paretune.training.record import Record
from tests import tiny
from tests.unit.training.test_loop import ROOT, same_run


def launch(processes: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def assert_left(directory: Path, rank: int) -> None:
    """A process that :func:`tests.processes.note_threads_at_exit` had no thread to the others any more."""
    threads = (directory / f"threads-{rank}").read_text()
    assert "python" in threads or "pt_main" in threads
    assert "gloo" not in threads


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("together")
    launch(2, str(ROOT / "tests/processes.py"), str(directory))
    return directory


@pytest.mark.slow
def test_processes_have_left_each_other_before_python_ends(together: Path) -> None:
    for rank in (0, 1):
        assert_left(together, rank)


@pytest.mark.slow
def test_all_processes_end_with_the_same_model_and_that_is_saved(together: Path) -> None:
    for name in ("learning", "standing", "phases", "ending"):
        first, second = (torch.load(together / f"{name}-{rank}.pt") for rank in (0, 1))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        model = tiny.backbone(pt.FullFineTune(bn="adapt"))
        pt.remove_adapter(model)
        pt.load_adapter(model, together / name / "adapter")
        saved = model.module.state_dict()
        assert all(torch.equal(first[key], saved[key]) for key in first)


@pytest.mark.slow
def test_a_run_of_two_processes_is_written_once_and_resumes_exactly(together: Path) -> None:
    points = load_runs(together / "learning")[0].points
    assert list(points.step) == [4, 8, 10]
    assert set(points.examples) == {len(tiny.data().report)}
    same_run(together / "learning", together / "stopped")
    same_run(together / "reusing", together / "reusing-stopped")


@pytest.mark.slow
def test_all_processes_begin_the_attack_and_stop_at_one_step(together: Path) -> None:
    phases, ending = (load_runs(together / name)[0] for name in ("phases", "ending"))
    lines = (together / "phases/log.jsonl").read_text().splitlines()
    attacked = [json.loads(line)["step"] for line in lines if json.loads(line)["epsilon"] > 0]
    # The head alone for 9 steps, then two clean epochs of 3 steps each.
    assert attacked == list(range(16, 31))
    assert list(phases.points.step) == [20, 30]
    assert list(ending.points.step) == [4]
    assert ending.done


@pytest.mark.slow
def test_the_bits_of_all_processes_are_about_one_model(together: Path) -> None:
    """One process finds every one of them again, with the adapter that was saved."""
    (run,) = load_runs(together / "learning")
    row = run.points.iloc[-1]
    attack = pt.PGD(pt.Linf(4 / 255), steps=3)
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    pt.remove_adapter(model)
    pt.load_adapter(model, together / "learning/adapter")
    data = tiny.data()
    for name, split in (("report", data.report), ("select", data.select)):
        scores = pt.evaluate(model, split, [attack])
        assert np.array_equal(scores.clean, run.bits(row)[f"{name}/clean"])
        assert np.array_equal(scores.robust[attack], run.bits(row)[f"{name}/robust"])


@pytest.mark.slow
def test_running_means_are_those_of_whole_batches(together: Path, tmp_path: Path) -> None:
    """With weights that stand still, and no attack, whose starts belong to a process, one process sees the same; its
    variances have the spread between the halves too."""
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    before = model.module.state_dict()["1.norm.running_mean"].clone()
    tiny.run(
        tmp_path / "one", model=model, optimizer=pt.training.AdamW(1e-12), objective=pt.training.Natural()
    )
    one, two = model.module.state_dict(), torch.load(together / "standing-0.pt")
    assert not torch.allclose(one["1.norm.running_mean"], before, atol=1e-3)
    assert torch.allclose(one["1.norm.running_mean"], two["1.norm.running_mean"], atol=1e-5)
    assert torch.allclose(one["1.norm.running_var"], two["1.norm.running_var"], atol=1e-3)
    assert one["1.norm.num_batches_tracked"] == two["1.norm.num_batches_tracked"] == 10


@pytest.mark.slow
def test_what_the_main_process_refuses_all_refuse(together: Path) -> None:
    for rank in (0, 1):
        assert "batch_size: 32 there, 16 here" in (together / f"refused-0-{rank}").read_text()
        assert not (together / f"refused-1-{rank}").exists()
        for damaged, message in (
            ("stopped-bits", r"step-000004\.safetensors is missing.*resume=False"),
            ("stopped-log.jsonl", r"log\.jsonl lacks lines up to step 4.*or remove it"),
            ("learning-adapter", r"is complete, but its adapter is not: .*resume=False"),
            ("learning-log.jsonl", r"log\.jsonl has 9 lines, but DONE says that there are 10.*resume=False"),
        ):
            assert re.search(message, (together / f"refused-{damaged}-{rank}").read_text())


def test_a_launcher_that_starts_one_process_only_is_named_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "paretune.training")
    tiny.run(tmp_path / "plain", steps=1)
    assert "plain: process 1 of 1" in caplog.text
    assert "one process alone" not in caplog.text
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # as `accelerate launch --cpu --num_processes 2` does
    tiny.run(tmp_path / "launched", steps=1)
    assert "one process alone, although a launcher is about" in caplog.text
    assert "torchrun --nproc-per-node N" in caplog.text


@pytest.mark.slow
def test_the_command_line_prints_once_and_says_how_many_processes_there_are(tmp_path: Path) -> None:
    short = (
        "--limit 120 --batch-size 16 --epochs 0.3 --points 1 --train-steps 1 --eval-steps 1 --strategy BitFit"
    )
    done = launch(2, "-m", "paretune", "train", *short.split(), "--out", str(tmp_path / "run"))
    assert done.stdout.count("adapter:") == 1
    assert all(f"process {rank} of 2" in done.stderr for rank in (1, 2))


def test_only_the_process_that_writes_reads_all_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: list[str] = []
    digests = plan.tensor_digests
    monkeypatch.setattr(plan, "tensor_digests", lambda state: reading.append("weights") or digests(state))
    made = plan.Plan.of(
        tiny.backbone(pt.LinearProbe()),
        tiny.data(),
        Natural(),
        epochs=None,
        steps=1,
        batch_size=4,
        attacks=[pt.PGD(pt.Linf(4 / 255))],
        balance="none",
        optimizer=None,
        epsilon=None,
        freezing=None,
        stop_on_failure=False,
        eval_every=None,
        points=None,
        seed=0,
    )
    for answer, expected in ((lambda _: None, []), (lambda do: do(), ["weights"])):
        process: Any = SimpleNamespace(on_main=answer)
        Record(tmp_path / "run", made, process, resume=True, sinks=())
        assert reading == expected

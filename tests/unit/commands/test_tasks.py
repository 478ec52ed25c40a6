"""Several data sets on the command line: --data once for each, and a run of them all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import paretune as pt
from paretune.commands.cli import main
from paretune.commands.parser import read
from paretune.runs.store import load_points, load_runs
from tests.unit.commands.test_cli_processes import started
from tests.unit.training.test_processes import launch

PHOTOS = "my photos, 2024"  # a folder may have commas


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and a folder of bright, grey and dark images."""
    place = tmp_path_factory.mktemp("tasks")
    with torch.random.fork_rng():
        torch.save(timm.create_model("test_resnet").state_dict(), place / "w.pth")
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = place / PHOTOS / ("bright", "dark", "grey")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 64, (16, 16, 3), dtype=np.uint8) + np.uint8((190, 0, 95)[number % 3])
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return place


def options(place: Path, *more: str) -> list[str]:
    text = (
        f"--backbone timm:test_resnet --weights {place}/w.pth --img-size 32 --batch-size 16 --epochs 1 --points 2 "
        "--train-steps 1 --eval-steps 1 --limit 60 --data digits --data"
    )
    return [*text.split(), f"photos={place}/{PHOTOS}", *more]


@pytest.fixture(scope="module")
def run(place: Path) -> tuple[Path, str]:
    """A finished run of both, and what was printed."""
    weights = ["--task-weights", "digits=1,photos=0.5", "--task-batch-sizes", "digits=16,photos=8"]
    process = started(["train", *options(place, *weights), "--strategy", "bitfit", "--out", "run"], place)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return place / "run", printed


@pytest.mark.slow
def test_a_run_has_a_directory_and_an_adapter_for_each(run: tuple[Path, str], capsys: Any) -> None:
    out, printed = run
    weights = ["--weights", str(out.parent / "w.pth"), "--steps", "1"]
    assert [printed.count(f"adapter of {name}: {out}") for name in ("digits", "photos", "all")] == [1, 1, 1]
    assert [written.config["task"] for written in load_runs(out)] == ["digits", "photos"]
    assert load_runs(out)[0].config["together"]["photos"]["weight"] == 0.5
    assert load_runs(out)[1].config["batch_size"] == 8
    assert main(["evaluate", str(out / "photos"), *weights]) == 0
    measured = capsys.readouterr()
    assert "are measured, not the" not in measured.err  # the very images of the run
    assert main(["evaluate", str(out), *weights]) == 2
    assert f"name that of one: {out}/digits, {out}/photos" in capsys.readouterr().err


def test_lists_show_the_tasks_and_only_all_of_them_are_removed(
    run: tuple[Path, str], place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, _ = run
    assert main(["runs", "list", str(place), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["task"], row["finished"]) for row in rows] == [("digits", True), ("photos", True)]
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(out), str(copy)], check=True)
    assert main(["runs", "remove", str(copy / "digits"), "--yes"]) == 2
    assert f"remove all of them: {copy}" in capsys.readouterr().err
    (copy / "photos/diary.txt").write_text("dear")
    assert main(["runs", "remove", str(copy), "--yes"]) == 2
    assert "holds diary.txt, which no run writes" in capsys.readouterr().err
    (copy / "photos/diary.txt").unlink()
    assert main(["runs", "remove", str(copy), "--yes"]) == 0
    assert "finished" in capsys.readouterr().out
    assert not copy.exists()


def parsed(*arguments: str) -> Any:
    command = read(arguments)
    assert command is not None
    return command[0]


def test_the_option_is_given_once_for_each_in_any_way(tmp_path: Path) -> None:
    one = parsed("train", "--data", "a,b")
    assert one.data == "a,b"
    assert not one.sources
    for words in (
        ["--data", "digits", "--seed", "3", "--data=more=a,b"],
        ["--seed", "3", "--data", '{digits: null, more: "a,b"}'],
    ):
        both = parsed("train", *words)
        assert {name: source.data for name, source in both.sources.items()} == {
            "digits": "digits",
            "more": "a,b",
        }
        assert both.seed == 3
    content = {"data": {"digits": None, "more": {"data": "a,b", "limit": 50}}, "task_weights": "size"}
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert parsed("plan", "--config", str(file)).sources["more"].limit == 50
    file.write_text("data: [digits, more=pets]\ntask_batch_sizes: {more: 8, digits: 16}\n")
    config = parsed("compare", "--config", str(file))
    assert config.task_batch_sizes == (("digits", 16), ("more", 8))
    assert list(config.sources) == ["digits", "more"]


def test_printed_configurations_are_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    typed = ["train", "--data", "digits", "--data", "more=a,b", "--task-weights", "size"]
    for more in ([], ["--task-batch-sizes", "digits=8,more=16"]):
        with pytest.raises(SystemExit):
            read([*typed, *more, "--print-config"])
        file = tmp_path / "printed.yaml"
        file.write_text(capsys.readouterr().out)
        assert parsed("train", "--config", str(file)) == parsed(*typed, *more)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "digits", "--data"], "--data needs a value"),
        (["--data", "--seed", "3"], "--data needs a value"),
        (
            ["--data", "digits", "--data", "x=digits", "--task-weights", "1,2"],
            "one of size or a number for each task",
        ),
        (["--data", "a/x", "--data", "b/x"], "two tasks are called 'x'"),
        (["--data", "digits,fashion-mnist"], "--data digits --data fashion-mnist"),
        (["--task-weights", "size"], "task_weights is for several tasks"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_comparison_decides_for_each_task(place: Path, tmp_path: Path) -> None:
    words = [
        "compare",
        *options(place),
        "--strategies",
        "bitfit,linearprobe",
        "--seeds",
        "0",
        "--workers",
        "2",
    ]
    process = started([*words, "--out", "runs"], tmp_path)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert printed.startswith(
        "2 tasks are learnt at once, by one adapter with a head for each: digits (16 images a step"
    )
    assert "\nphotos: 60 images at 32x32" in printed
    assert "2 runs of 2 steps" in printed
    for task in ("digits", "photos"):
        assert f"\n{task}, L∞ ≤ 2/255" in printed
    assert len({condition.task for condition in pt.compare(tmp_path / "runs").conditions}) == 2
    page = (tmp_path / "runs/report.html").read_text()
    assert "Learnt at once by one model: digits, photos" in page
    process = started(["plan", *words[1:], "--out", "runs"], tmp_path)
    assert "all runs are finished" in process.communicate()[0]


@pytest.mark.thorough
def test_two_processes_that_were_killed_go_on(place: Path, tmp_path: Path) -> None:
    """On the command line: natural and adversarial, started by a launcher."""
    for steps in ("0", "1"):
        out = tmp_path / steps
        words = [
            "-m",
            "paretune",
            "train",
            *options(place),
            "--strategy",
            "bitfit",
            "--epochs",
            "30",
            "--points",
            "10",
        ]
        words += ["--train-steps", steps, "--out", str(out)]
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            "0",
        ]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        group = subprocess.Popen([*launcher, *words], start_new_session=True, stderr=subprocess.DEVNULL)
        while not (points := out / "photos/points.jsonl").exists() or points.read_text().count("\n") < 2:
            assert group.poll() is None
            time.sleep(0.1)
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()
        assert not (out / "photos/DONE").exists()
        done = launch(2, *words)
        assert done.stdout.count("adapter of all") == 1
        launch(2, *words[:-1], str(tmp_path / f"whole-{steps}"))
        rows = [
            load_points(each)[["task", "step", "clean", "robust"]]
            for each in (out, tmp_path / f"whole-{steps}")
        ]
        assert rows[0].equals(rows[1])

"""Pipes and directories in the place of files are refused and not waited for; state of other images is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import paretune as pt
from paretune.attacks import Linf
from paretune.attacks.autoattack_state import Journal, Outcome
from paretune.commands.cli import main
from paretune.interchange.reading import read_checkpoint, read_json, read_tensors
from paretune.kernels import nvrtc
from paretune.runs import lock
from paretune.runs.sinks.base import backfill
from paretune.runs.store import RunWriter, load_runs
from paretune.watch.progress import Watcher
from tests import tiny
from tests.unit.evaluation.test_evaluation_state import PGD, split
from tests.unit.runs.test_store import CONFIG


@pytest.mark.parametrize("name", ["config.json", "points.jsonl", "DONE", "checkpoint.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named_and_not_waited_for(name: str, make: object, tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", CONFIG)
    (tmp_path / "run/bits").mkdir()
    (tmp_path / "run/points.jsonl").touch()
    (tmp_path / "run" / name).unlink(missing_ok=True)
    make(tmp_path / "run" / name)  # type: ignore[operator]
    with pytest.raises(ValueError, match="no file"):
        load_runs(tmp_path / "run")
    Watcher(tmp_path).look()


@pytest.mark.parametrize(
    ("rows", "shape"), [([9], (3, 4, 4)), ([-1], (3, 4, 4)), ([1, 1], (3, 4, 4)), ([1], (3, 5, 5))]
)
def test_a_batch_of_other_images_is_refused(rows: list[int], shape: tuple[int, ...], tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    found = Outcome(torch.tensor(rows), torch.zeros(len(rows), *shape), 0.0, 0, 0, 0, 0, "fp32")
    journal.write(0, 0, found)
    with pytest.raises(ValueError, match="is damaged"):
        journal.read(0, 0, torch.arange(4), torch.zeros(4, 3, 4, 4), Linf(0.1))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD: list[Callable[[Path], None]] = [os.mkfifo, os.mkdir, device]


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_that_is_no_file(make: Callable[[Path], None], suffix: str, tmp_path: Path) -> None:
    make(tmp_path / f"table{suffix}")
    with pytest.raises(ValueError, match=r"is no file, but|is a directory"):
        pt.analyze(tmp_path / f"table{suffix}")


@pytest.mark.parametrize("make", ODD)
def test_a_configuration_that_is_no_file(
    make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "run.yaml")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "run.yaml' is a directory, a pipe or a device\n" in capsys.readouterr().err


@pytest.mark.parametrize("make", ODD)
def test_weights_that_are_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"weights must be a state dict or an existing file; got .*w\.pth"):
        pt.load_backbone("timm:test_resnet", num_classes=2, weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("read", [read_json, read_tensors, read_checkpoint])
def test_a_part_of_an_adapter_that_is_no_file(
    read: Callable[[Path], Any], make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "part")
    with pytest.raises(ValueError, match="is no file, but a directory, a pipe or a device"):
        read(tmp_path / "part")


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_of_loralib_that_is_no_file(make: Callable[[Path], None], suffix: str, tmp_path: Path) -> None:
    model = tiny.backbone(pt.LinearProbe())
    pt.remove_adapter(model)
    make(tmp_path / f"lora{suffix}")
    with pytest.raises(ValueError, match="is no file, but"):
        pt.import_adapter(model, tmp_path / f"lora{suffix}", format="loralib", alpha=1.0)


@pytest.mark.parametrize("make", ODD)
def test_how_far_sinks_are_is_no_file(
    make: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Sink:
        def open(self, run: object) -> object:
            raise AssertionError("nobody knows how far it is")

    RunWriter(tmp_path, CONFIG)
    make(tmp_path / "sinks.json")
    backfill(tmp_path, [Sink()])  # type: ignore[list-item]
    assert "sinks.json is no file, but a directory, a pipe or a device" in caplog.text


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", ["plan.json", "000000.safetensors"])
def test_state_that_is_no_file(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    model, data = split()
    pt.evaluate(model, data, [PGD], state=tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is no file"):
        pt.evaluate(model, data, [PGD], state=tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, device])  # a folder may hold further ones
def test_an_image_that_is_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
    make(tmp_path / "dog/odd.png")
    with pytest.raises(ValueError, match=r"odd\.png \(it is no file"):
        pt.load_data(str(tmp_path), img_size=8)


@pytest.mark.parametrize("make", [os.mkfifo, device])
def test_who_holds_a_directory_is_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / ".lock-holder")
    with lock.alone(tmp_path):
        assert (tmp_path / ".lock-holder").read_text().startswith("process ")
        (tmp_path / ".lock-holder").unlink()
        make(tmp_path / ".lock-holder")
        with pytest.raises(BlockingIOError, match="is in use by another process"), lock.alone(tmp_path):
            pass


@pytest.mark.parametrize("make", ODD)
def test_other_files_of_a_run_and_a_sweep(make: Callable[[Path], None], tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", CONFIG)
    make(tmp_path / "sweep.json")
    assert [run.state for run in Watcher(tmp_path).look().runs] == ["running", "damaged"]
    make(tmp_path / "run/log.jsonl")
    with pytest.raises(ValueError, match=r"log\.jsonl is no file"):
        RunWriter(tmp_path / "run", CONFIG)
    (tmp_path / "run/DONE").write_text(
        json.dumps({"points": 0, "run": RunWriter(tmp_path / "other", CONFIG).key, "log": {"lines": 0}})
    )
    with pytest.raises(ValueError, match=r"log\.jsonl is no file"):
        load_runs(tmp_path / "run")


@pytest.mark.parametrize("make", ODD)
def test_a_kept_kernel_that_is_no_file_is_made_again(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "kernel")
    assert nvrtc._read(tmp_path / "kernel") is None

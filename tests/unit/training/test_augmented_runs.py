"""Augmentation while training: of the training images alone, exact under resuming, workers and shares, and stated."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import paretune as pt
from paretune.data import Augmented, Custom, Flip, read_augmentation
from paretune.interchange.cards import card
from paretune.interchange.files import read_adapter
from paretune.runs.progress import Status
from paretune.runs.store import load_runs
from paretune.training.plan import Batches, Plan
from tests import tiny
from tests.unit.training.test_loop import ROOT, same_run

MIXED = "flip + Crop(1) + colorjitter + rand-m5-n1"
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from tests import tiny
def fatal(status):
    if status.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
tiny.run(sys.argv[1], augmentation=sys.argv[2], progress=fatal)
"""


def logged(run: Path) -> str:
    return (run / "log.jsonl").read_text()


def failing(status: Status) -> None:
    if status.step == 6:
        raise LookupError


@pytest.mark.parametrize("how", ["failed", pytest.param("killed", marks=pytest.mark.slow)])
def test_an_augmented_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, how: str) -> None:
    if how == "failed":
        with pytest.raises(LookupError):
            tiny.run(tmp_path / "stopped", augmentation=MIXED, progress=failing)
    else:
        command = [sys.executable, "-c", KILLED, str(tmp_path / "stopped"), MIXED]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
    assert list(load_runs(tmp_path / "stopped")[0].points.step) == [4]
    tiny.run(tmp_path / "stopped", augmentation=MIXED)
    tiny.run(tmp_path / "whole", augmentation=MIXED)
    same_run(tmp_path / "stopped", tmp_path / "whole")
    tiny.run(tmp_path / "plain", augmentation="none")
    assert logged(tmp_path / "plain") != logged(tmp_path / "whole")


def test_workers_give_the_same_pixels(tmp_path) -> None:
    tiny.run(tmp_path / "here", augmentation=MIXED)
    torch.manual_seed(7)
    tiny.run(tmp_path / "there", augmentation=MIXED, workers=2)
    same_run(tmp_path / "here", tmp_path / "there")


def plan(**changes: object) -> Plan:
    arguments = {"epochs": None, "steps": 12, "batch_size": 32, "optimizer": None, "epsilon": None, "seed": 5}
    arguments |= {"attacks": [pt.PGD(pt.Linf(0.1))], "eval_every": None, "points": 1, "augmentation": MIXED}
    arguments |= changes
    return Plan.of(tiny.backbone(pt.LinearProbe()), tiny.data(), pt.training.Natural(), **arguments)  # type: ignore[arg-type]


def test_the_shares_of_processes_and_what_is_left_are_parts_of_the_same_batches() -> None:
    made = plan()
    device = torch.device("cpu")
    whole = [images for images, *_ in Batches(made, 0, 0, 1).loader(0, device)]
    halves = [[images for images, *_ in Batches(made, 0, rank, 2).loader(0, device)] for rank in (1, 0)]
    left = [images for images, *_ in Batches(made, 7, 0, 1).loader(0, device)]
    assert len(whole) == 12 > made.per_epoch
    for batch, odd, even in zip(whole, *halves, strict=True):
        assert torch.equal(batch[0::2], even)
        assert torch.equal(batch[1::2], odd)
    assert all(torch.equal(*pair) for pair in zip(whole[7:], left, strict=True))


def test_each_epoch_augments_anew() -> None:
    made = plan()
    seen: dict[int, list[Tensor]] = {}
    for epoch, rows, _ in Batches(made, 0, 0, 1):
        for row, image in zip(rows, made.tasks[0].train[epoch, rows][0], strict=True):
            seen.setdefault(row, []).append(image)
    again = [images for images in seen.values() if len(images) == 2]
    assert len(again) > 100
    assert np.mean([torch.equal(*pair) for pair in again]) < 0.05


def black(image: Tensor) -> Tensor:
    return image * 0


def test_what_is_measured_is_not_augmented(tmp_path) -> None:
    model = tiny.backbone(pt.FullFineTune())
    run = tiny.run(tmp_path / "run", model=model, augmentation=black, objective=pt.training.Natural())
    scores = pt.evaluate(model, tiny.data().report, [pt.PGD(pt.Linf(4 / 255), steps=3)])
    assert run.points.clean.iloc[-1] == scores.clean_accuracy
    pictures = load_file(tmp_path / "run/examples.safetensors")["clean"]
    report = tiny.data().report[:][0]
    assert all(any(torch.equal(picture, image) for image in report) for picture in pictures)


def test_the_configuration_the_list_and_the_card_say_it(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    from paretune.commands.runs import Show

    tiny.run(tmp_path / "run", augmentation="Flip(0.5)+crop")
    config = load_runs(tmp_path / "run")[0].config
    assert config["augmentation"] == "Flip() + Crop()"
    assert config["augmentation_fields"] == [
        {"name": "Flip", "p": 0.5},
        {"name": "Crop", "padding": 0.125, "padding_mode": "constant"},
    ]
    assert read_augmentation(config["augmentation"]) == Flip() + pt.data.Crop()
    Show(str(tmp_path / "run"))()
    assert "augmentation: Flip() + Crop()\n" in capsys.readouterr().out
    made = card(read_adapter(tmp_path / "run/adapter")[0])
    assert "- augmentation of the training images: `Flip() + Crop()`\n" in made, made
    with pytest.raises(
        ValueError, match=r"another configuration: .*augmentation: 'Flip\(\) \+ Crop\(\)' there"
    ):
        tiny.run(tmp_path / "run")


def test_data_decides_where_nobody_says(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.run(tmp_path / "digits").config["augmentation"] == "none"
    data = tiny.data()
    object.__setattr__(data, "augmentation", "crop")
    monkeypatch.setattr(tiny, "data", lambda: data)
    assert tiny.run(tmp_path / "others").config["augmentation"] == "Crop()"
    assert tiny.run(tmp_path / "never", augmentation="none").config["augmentation_fields"] == []


def test_what_fails_fails_before_anything_is_written(tmp_path) -> None:
    for augmentation, why in (
        ("flip+foo", "augmentation='flip\\+foo': 'foo'"),
        (lambda image: image, "needs a name"),
        (Custom(lambda image: image * 2, "twice"), r"must return one image, floats in \[0, 1\]"),
        ("Crop(8)", "padding=8 is no less than a side of 8x8 images"),
    ):
        with pytest.raises(ValueError, match=why):
            tiny.run(tmp_path / "run", augmentation=augmentation)
    assert not (tmp_path / "run").exists()


def test_random_states_are_as_before(tmp_path) -> None:
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = np.random.rand(), torch.rand(1)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    tiny.run(tmp_path / "run", augmentation=MIXED)
    assert (np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


def test_a_split_has_as_many_examples_as_before() -> None:
    train = tiny.data().train
    assert len(Augmented(train, read_augmentation("flip"), 0)) == len(train)

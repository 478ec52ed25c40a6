"""Augmentation as an option of a task: named on the command line and in files, and part of what a run is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

import paretune as pt
from paretune.commands.parser import command_parser, read
from paretune.data import Crop, Custom, Flip, RandAugment
from paretune.frontiers.comparing import compare
from paretune.report.runs import run_settings
from paretune.runs.store import load_runs
from paretune.strategies import BitFit
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name
from tests import tiny
from tests.synthetic import write_runs

OPTIONS: dict[str, Any] = {
    "epochs": 1.0,
    "points": 1,
    "batch_size": 8,
    "train_steps": 0,
    "eval_steps": 1,
    "workers": 1,
    "progress": False,
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    numbers = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = numbers.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def backbone() -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny.network()
        network[-1] = torch.nn.Linear(32, 2)
        return pt.Backbone(network.eval(), image_size=8, sites=["1.norm"])


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        ("flip+crop", Flip() + Crop()),
        ("Flip(0.3) + rand-m9-mstd0.5-inc1", Flip(0.3) + RandAugment()),
        ("none", pt.data.Chain()),
    ],
)
def test_options_and_files_name_it(text: str, chain: Any, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(f'augmentation: "{text}"\nepochs: 1\n')
    for arguments in (["--augmentation", text], ["--config", str(tmp_path / "task.yaml")]):
        found = read(["train", *arguments])
        assert found is not None
        command: Any = found[0]
        assert command.augmentation == chain
    parser = command_parser("train")
    printed = parser.dump(parser.parse_args(["--augmentation", text]))
    (tmp_path / "printed.yaml").write_text(printed)
    again: Any = read(["train", "--config", str(tmp_path / "printed.yaml")])
    assert again[0].augmentation == chain


def test_what_it_is_not_is_told_in_words() -> None:
    with pytest.raises(
        ValueError, match=r"augmentation='rand-m12': magnitude must be a number, at least 0 and at most 10"
    ):
        read(["train", "--augmentation", "rand-m12"])
    with pytest.raises(ValueError, match=r"augmentation='mirror': unknown name 'mirror'"):
        RunConfig(augmentation="mirror")


def test_a_directory_is_named_by_it_unless_the_data_decides() -> None:
    made = [
        directory_name(RunConfig(augmentation=each))
        for each in (
            None,
            "none",
            "flip",
            "Flip(0.4)",
            Custom(v2.Identity(), "a"),
            Custom(v2.Identity(), "b"),
        )
    ]
    assert len(set(made)) == len(made)
    assert directory_name(RunConfig(augmentation="FLIP()")) == made[2]


def test_a_sweep_augments_photographs_unless_told_otherwise(photos: Path, tmp_path: Path) -> None:
    def brighter(image: Tensor) -> Tensor:
        return (image + torch.rand(1) / 4).clamp(0, 1)

    ways: dict[str, Any] = {
        "usual": {},
        "never": {"augmentation": "none"},
        "own": {"augmentation": Custom(brighter, "brighter")},
    }
    for name, way in ways.items():
        pt.sweep(photos, [BitFit()], [0], backbone=backbone(), out=tmp_path / name, **OPTIONS, **way)
    runs = [load_runs(tmp_path / name)[0] for name in ways]
    assert [run.config["augmentation"] for run in runs] == ["Flip() + Crop()", "none", "Custom('brighter')"]
    assert [text.partition("augmentation=")[2].split(", ")[0] for text in run_settings(runs)] == [
        run.config["augmentation"] for run in runs
    ]


def test_a_comparison_says_how_images_were_augmented_and_whether_alike(tmp_path: Path) -> None:
    write_runs(tmp_path / "plain")
    (condition,) = compare(load_runs(tmp_path / "plain")).conditions
    assert not any("augmented" in note for note in condition.notes)
    write_runs(tmp_path / "alike", augmentation="Flip()")
    (condition,) = compare(load_runs(tmp_path / "alike")).conditions
    assert "Training images were augmented: Flip()." in condition.notes
    runs = load_runs(tmp_path / "alike")[:2] + load_runs(tmp_path / "plain")[2:]
    (condition,) = compare(runs).conditions
    assert any(
        note == "Training images were augmented: Flip(), or none, so that strategies may differ in that too."
        for note in condition.notes
    )

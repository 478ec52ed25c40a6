"""What a sweep says before it begins, and which images it takes where nobody says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import paretune as pt
from paretune.backbones.loading import load_backbone
from paretune.commands.cli import main
from paretune.sweeps import announcing
from paretune.sweeps.announcing import data_line, time_line
from paretune.sweeps.config import RunConfig
from paretune.sweeps.costs import Cost
from paretune.sweeps.grid import directory_name, run_all


def zoo(root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 32)) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def weights(tmp_path: Path) -> str:
    with torch.random.fork_rng():
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def small(tmp_path: Path, weights: str, **changes: object) -> RunConfig:
    options = {
        "backbone": "timm:test_resnet",
        "weights": weights,
        "data": str(tmp_path / "zoo"),
        "img_size": 32,
    }
    options |= {
        "batch_size": 8,
        "epochs": 1.0,
        "points": 1,
        "train_steps": 1,
        "eval_steps": 1,
        "strategy": pt.BitFit(),
    }
    return RunConfig(**(options | changes))  # type: ignore[arg-type]


def test_own_images_are_all_used_at_the_size_of_the_backbone(tmp_path: Path, weights: str) -> None:
    zoo(tmp_path / "zoo", {"cat": 600, "dog": 620}, (4, 4))
    data = small(tmp_path, weights, img_size=None).load_data()
    own = load_backbone("timm:test_resnet", num_classes=2, weights=weights).image_size
    assert data.image_size == own == 160
    assert len(data.train) + len(data.select) + len(data.report) == 1220


@pytest.mark.parametrize(
    ("options", "size", "most"),
    [
        ({}, 24, 1000),
        ({"backbone": "dinov2-small"}, 28, 1000),
        ({"backbone": "timm:resnet18"}, None, 1000),
        ({"limit": "all", "img_size": 64}, 64, None),
        ({"data": "flowers"}, 224, None),
        ({"data": "flowers", "backbone": "dinov2-small"}, 224, None),
        ({"data": "flowers", "backbone": "timm:resnet18"}, None, None),
        ({"data": "flowers", "limit": 50, "img_size": 32}, 32, 50),
        ({"data": "cifar10"}, 224, None),
    ],
)
def test_limits_of_the_demo_are_those_of_the_demo(options: dict, size: int | None, most: int | None) -> None:
    config = RunConfig(**options)
    assert (config.size, config.most) == (size, most)


def test_runs_on_other_images_have_other_directories() -> None:
    """What the defaults stand for is in the name, so that they may change."""
    names = [
        directory_name(RunConfig(**options))
        for options in (
            {},
            {"limit": "all"},
            {"skip_bad": True},
            {"data": "flowers"},
            {"data": "flowers", "skip_bad": True},
            {"data": "flowers", "img_size": 24},
            {"data": "flowers", "limit": 1000},
        )
    ]
    assert len(set(names)) == len(names)
    assert directory_name(RunConfig(limit=1000)) == names[0]
    assert directory_name(RunConfig(data="flowers", img_size=224, limit="all")) == names[3]


def test_the_data_is_told_in_a_line(tmp_path: Path) -> None:
    data = pt.load_data(zoo(tmp_path / "zoo", {"cat": 10, "dog": 30}), img_size=(32, 48))
    assert data_line(data) == (
        "zoo: 40 images at 32x48: 24 to train on, 5 to select by, 11 to report; 2 classes (cat, dog) of 10 to 30 images"
    )
    data = pt.load_data("digits", limit=100)
    assert data_line(data).endswith("10 classes (0, 1, 2, 3, 4, …) of 10 images") or "of 9 to" in data_line(
        data
    )


def test_minutes_are_those_of_all_steps_and_measurements(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a second an image: 24 images trained on, and 5 + 11 measured at each of two points."""
    zoo(tmp_path / "zoo", {"cat": 10, "dog": 30})
    config = small(tmp_path, weights, epochs=10.0, points=2)
    threads = []

    def second(*_: object) -> Cost:
        threads.append(torch.get_num_threads())
        return Cost(
            trainable_parameters=1,
            parameters=2,
            setup=0.0,
            clean=1.0,
            attacked=1.0,
            evaluation=1.0,
            peak_memory_bytes=1,
        )

    monkeypatch.setattr(announcing, "measured", second)
    before = torch.get_num_threads()
    line = time_line([(config, 0)] * 3, config.load_data(), workers=2, threads=1)
    assert line == f"3 runs of 30 steps, 2 at once: about {round(2 * (10 * 24 + 2 * 16) / 60)} minutes"
    assert threads == [1]
    assert torch.get_num_threads() == before
    # After the first of two points half of it is left, and the second worker has the longer run.
    line = time_line([(config, 15), (config, 0)], config.load_data(), workers=2, threads=1)
    assert line.endswith("about 5 minutes")
    line = time_line([(config, 15)], config.load_data(), workers=1, threads=1)
    assert line == "1 run of 30 steps: about 2 minutes"


def test_compare_tells_its_data_and_leaves_out_what_cannot_be_read(
    tmp_path: Path, weights: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo(tmp_path / "zoo", {"cat": 20, "dog": 20})
    (tmp_path / "zoo" / "dog" / "7.png").write_bytes(b"")
    (tmp_path / "zoo" / "cat" / "9.png").write_bytes(b"no image")
    command = [
        "compare",
        "--data",
        str(tmp_path / "zoo"),
        "--backbone",
        "timm:test_resnet",
        "--weights",
        weights,
    ]
    command += ["--out", str(tmp_path / "out"), "--img-size", "32", "--batch-size", "8", "--epochs", "1"]
    command += [
        "--points",
        "1",
        "--strategies",
        "bitfit",
        "--seeds",
        "0",
        "--train-steps",
        "1",
        "--eval-steps",
        "1",
    ]
    assert main(command) == 2
    refused = capfd.readouterr().err
    assert "cannot read 2 of the 40 images" in refused
    assert "7.png" in refused
    assert "9.png" in refused

    def nothing(*_: object, **__: object) -> list:
        raise RuntimeError("far enough")

    monkeypatch.setattr("paretune.sweeps.grid.announce", nothing)
    assert main([*command, "--skip-bad"]) == 2
    told = capfd.readouterr()
    line = told.out.partition("\n")[0]
    assert line.startswith("zoo: 38 images at 32x32: 22 to train on")
    assert line.endswith("of 19 images; 2 that cannot be read are left out")
    assert "1 run of 2 steps: about 1 minute\n" in told.out
    assert told.err.endswith("far enough\n")


def test_a_finished_run_on_other_images_is_refused(tmp_path: Path, weights: str, caplog) -> None:
    zoo(tmp_path / "zoo", {"cat": 10, "dog": 30})
    config = small(tmp_path, weights, epochs=0.4)
    path = tmp_path / "out" / directory_name(config)
    config.run(path, progress=False)
    (run,) = run_all([config], tmp_path / "out", workers=1)
    assert run.done
    (tmp_path / "zoo" / "cat" / "3.png").rename(tmp_path / "cat.png")
    with pytest.raises(
        ValueError, match="has a finished run on other images than zoo holds now: restore them"
    ):
        run_all([config], tmp_path / "out", workers=1)
    (tmp_path / "zoo").rename(tmp_path / "elsewhere")
    assert len(run_all([config], tmp_path / "out", workers=1)) == 1
    assert "whether the data of finished runs has changed since is not known" in caplog.text


@pytest.mark.parametrize(
    ("skipped", "end"),
    [(0, "images"), (1, "; 1 that cannot be read is left out"), (2, "; 2 that cannot be read are left out")],
)
def test_images_that_were_left_out_are_counted_in_good_grammar(
    tmp_path: Path, skipped: int, end: str
) -> None:
    data = pt.load_data(zoo(tmp_path / "zoo", {"cat": 10, "dog": 10}), img_size=8)
    assert data_line(dataclasses.replace(data, skipped=skipped)).endswith(end)

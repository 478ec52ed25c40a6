"""``paretune inherit``: its options as they are typed, in a file, and what it refuses in words."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import paretune as pt
from paretune.backbones.heads import pretrained_head
from paretune.commands.cli import main
from paretune.shifts.imagenet import wordnet_ids
from paretune.sweeps.before import with_own_head
from paretune.sweeps.methods import Methods
from paretune.sweeps.protocol import METHODS, InheritConfig

FEW = ["--epochs", "1", "--batch-size", "8", "--eval-steps", "1", "--workers", "1", "--limit", "120"]


def test_options_come_from_a_file_and_go_into_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = (
        "FullFineTune, FullFineTune + 100*EWC(examples=9) + LPFT(0.3), LoRA(rank=2) + WiSE(0.25), Soup()"
    )
    with pytest.raises(SystemExit):
        main(
            [
                "inherit",
                "--methods",
                methods,
                "--tasks",
                "Invert(), Rotation(30)",
                "--seeds",
                "0,3",
                "--print-config",
            ]
        )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert Methods.read(printed["methods"]) == Methods.read(methods)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(printed))
    with pytest.raises(SystemExit):
        main(["inherit", "--config", str(tmp_path / "c.yaml"), "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out) == printed
    (tmp_path / "list.yaml").write_text("methods: [FullFineTune, FullFineTune + L2SP()]\ndomains: [a, b]\n")
    with pytest.raises(SystemExit):
        main(["inherit", "--config", str(tmp_path / "list.yaml"), "--print-config"])
    listed = yaml.safe_load(capsys.readouterr().out)
    assert Methods.read(listed["methods"]) == Methods.read("FullFineTune, FullFineTune + L2SP()")
    assert listed["domains"] == "a, b"


def test_the_methods_of_the_paper_are_compared_by_default() -> None:
    config = InheritConfig()
    assert config.methods == METHODS
    assert (config.train_steps, config.held_out, config.points) == (0, True, 1)
    assert len(METHODS.trained) == 7


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--pretrain", "digits"], "data='digits' is one task; give tasks"),
        (["--tasks", "Invert()", "--pretrain", "digits"], "two related tasks or more; got"),
        (["--tasks", "Invrt()"], "did you mean Invert"),
        (["--methods", "full"], "did you mean FullFineTune"),
        (["--methods", "EWC()"], "names no strategy"),
        (["--seeds", "0,0"], "each one once"),
        (["--start", "run", "--pretrain", "digits"], "start or pretrain, not both"),
        (["--out", ""], "out is empty"),
        (["--level", "95", "--tasks", "Invert(), Rotation(30)"], "did you mean 0.95"),
        (["--shifts", "Invert()"], "give tasks="),
        (
            ["--tasks", "Invert(), Rotation(30)"],
            "the task 'invert' has the class '0', which is none of the 1,000",
        ),
        (["--start", "nowhere"], "nowhere"),
    ],
)
def test_what_is_typed_wrongly_is_told_in_a_line(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inherit", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert not [*tmp_path.iterdir()]


def test_the_head_of_published_weights_answers_with_wordnet_ids() -> None:
    model = with_own_head(InheritConfig(img_size=24))
    assert model.classes == wordnet_ids()
    assert len({*wordnet_ids()}) == 1000
    head = pretrained_head(pt.load_backbone("efficientnet-lite0", num_classes=2, img_size=24))
    assert torch.equal(model.module.classifier.weight, head.weight)  # type: ignore[union-attr]
    assert head.bias is not None
    assert torch.equal(model.module.classifier.bias, head.bias)  # type: ignore[union-attr]


def started(arguments: list[str], place: Path) -> str:
    source = str(Path(pt.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        [sys.executable, "-m", "paretune", "inherit", *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def write(root: Path, domains: dict[str, tuple[str, ...]]) -> Path:
    rng = np.random.default_rng(0)
    for tone, (domain, classes) in enumerate(domains.items()):
        for label, name in enumerate(classes):
            (root / domain / name).mkdir(parents=True)
            for number in range(6 + tone):
                pixels = rng.integers(0, 90, (24, 24, 3), dtype=np.uint8) + np.uint8(50 * label)
                Image.fromarray(pixels).save(root / domain / name / f"{number}.png")
    return root


@pytest.mark.thorough
def test_a_tree_of_imagenet_folders_with_the_head_that_the_weights_come_with(tmp_path: Path) -> None:
    names = wordnet_ids()
    chosen = {"imagenet-a": names[:3], "imagenet-r": names[1:4], "val": names[:4]}
    root = write(tmp_path / "rib", chosen)
    arguments = [
        "--data",
        str(root),
        "--domains",
        "imagenet-a,imagenet-r",
        "--pretraining",
        str(root / "val"),
        "--among",
    ]
    arguments += [
        "--img-size",
        "24",
        "--methods",
        "LinearProbe, LinearProbe + WiSE(0.5)",
        "--out",
        "out",
        *FEW,
    ]
    told = started(arguments, tmp_path)
    assert "imagenet-a the model answers with one of the 3 classes of the task, of 1,000" in told
    assert "lost of pretraining" in told
    cells = pd.read_csv(tmp_path / "out/matrix.csv")
    assert len(cells) == 2 * 2 * 3
    assert (tmp_path / "out/report.html").stat().st_size > 100_000


@pytest.mark.slow
def test_a_robust_run_is_what_it_begins_with(tmp_path: Path) -> None:
    data = pt.load_data("digits", img_size=24, limit=120)
    model = pt.adapt(
        pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24), pt.LoRA(rank=2), seed=0
    )
    attack = pt.PGD(pt.Linf(2 / 255), steps=1)
    run = pt.train(
        model,
        data,
        pt.AdversarialTraining(attack),
        out=tmp_path / "run",
        steps=4,
        attacks=[attack],
        progress=False,
    )
    arguments = [
        "--start",
        "run",
        "--tasks",
        "Invert(), Rotation(90)",
        "--methods",
        "LinearProbe",
        "--attack-elsewhere",
    ]
    told = started([*arguments, "--train-steps", "1", "--held-out", "false", "--out", "out", *FEW], tmp_path)
    assert "robust accuracy of the other tasks" in told
    assert "as published" in told
    cells = pd.read_csv(tmp_path / "out/matrix.csv")
    before = cells[cells["measured_on"] == "pretraining"].groupby("accuracy")["before"].first()
    assert before["clean"] == pytest.approx(run.points["clean"].iloc[-1])
    again = started([*arguments, "--train-steps", "1", "--held-out", "false", "--out", "out", *FEW], tmp_path)
    assert again.partition("clean accuracy")[2] == told.partition("clean accuracy")[2]

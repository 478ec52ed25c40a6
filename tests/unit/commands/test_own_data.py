"""A table of one's own images, from training to evaluation on the command line."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from paretune.commands.cli import main


def test_an_adapter_finds_its_table_again_and_is_not_measured_on_what_it_learnt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.random.fork_rng():
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    rng = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    table = pd.DataFrame(
        {"file": [f"{number}.png" for number in range(61)], "class": ["a", "b", "c", "d"] * 15 + ["a"]}
    )
    table.to_csv(tmp_path / "birds.csv", index=False, sep=";")
    weights = ["--weights", str(tmp_path / "w.pth")]
    run = str(tmp_path / "run")
    train = [
        "train",
        "--backbone",
        "timm:test_resnet",
        *weights,
        "--data",
        str(tmp_path / "birds.csv"),
        "--img-size",
        "32",
    ]
    train += [
        "--strategy",
        "bitfit",
        "--batch-size",
        "8",
        "--epochs",
        "0.5",
        "--points",
        "1",
        "--train-steps",
        "1",
    ]
    train += ["--eval-steps", "1", "--out", run]
    assert main(train) == 2
    assert "cannot read 1 of the 61 images of" in capfd.readouterr().err  # 60.png does not exist
    assert main([*train, "--skip-bad"]) == 0
    assert "1 of the 61 images of" in caplog.text
    assert "cannot be read and is left out: " in caplog.text
    capfd.readouterr()
    evaluate = ["evaluate", run, *weights, "--steps", "1", "--epsilons", "1/255"]
    assert main(evaluate) == 0
    assert "note" not in capfd.readouterr().err  # the report split of the run
    assert main([*evaluate, "--split-seed", "1"]) == 2
    assert "the adapter was trained on" in capfd.readouterr().err
    assert main([*evaluate, "--data", str(tmp_path / "birds.csv")]) == 0
    assert "note" not in capfd.readouterr().err
    (tmp_path / "5.png").unlink()
    assert main(evaluate) == 2
    assert "differs from the data that the adapter was trained on" in capfd.readouterr().err

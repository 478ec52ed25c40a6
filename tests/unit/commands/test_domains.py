"""Domains on the command line: train on one, choose by it, and report all of them, in one call."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from PIL import Image

import paretune as pt
from paretune.commands.cli import main
from paretune.frontiers.elsewhere import Elsewhere
from paretune.runs.store import load_runs
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name
from paretune.sweeps.sources import Domains

COUNTS = {"photo": 60, "sketch": 24, "art": 18}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and a folder of three domains of two classes; bright and dark images, in a colour of the domain."""
    place = tmp_path_factory.mktemp("domains")
    with torch.random.fork_rng():
        torch.save(timm.create_model("test_resnet").state_dict(), place / "w.pth")
    rng = np.random.default_rng(0)
    for channel, (domain, count) in enumerate(COUNTS.items()):
        for number in range(count):
            folder = place / "pets" / domain / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (16, 16, 3), dtype=np.uint8) + np.uint8(127 * (number % 2))
            pixels[..., channel] //= 2
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return place


def options(place: Path, data: Path | None = None) -> list[str]:
    said = (
        f"--backbone timm:test_resnet --weights {place}/w.pth --data {data or place / 'pets'} --img-size 32 "
        "--train-domains photo --batch-size 8 --epochs 1 --points 2 --train-steps 1 --eval-steps 1"
    )
    return said.split()


@pytest.mark.slow
def test_one_call_trains_on_one_domain_and_reports_all(place: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "paretune",
        "compare",
        *options(place),
        "--strategies",
        "bitfit,linearprobe",
    ]
    told = subprocess.run(
        [*command, "--seeds", "0", "--workers", "1", "--out", "runs"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    assert "60 images at 32x32" in told
    assert "; 18 of art elsewhere; 24 of sketch elsewhere" in told
    assert "clean accuracy on what was trained on (report split) and elsewhere, 95% intervals" in told
    assert re.search(r"strategy +trained on +elsewhere +drop +art \(18\) +sketch \(24\)", told)
    points = pt.load_points(tmp_path / "runs")
    assert set(points["task"]) == {"pets: photo"}
    assert set(points["examples"]) == {16}
    pooled = (18 * points["clean_in_art"] + 24 * points["clean_in_sketch"]) / 42
    np.testing.assert_allclose(points["clean_elsewhere"], pooled)
    assert "robust_elsewhere" not in points
    found = {each.strategy: each for each in pt.compare(tmp_path / "runs").conditions[0].elsewhere}
    assert {*found} == {"BitFit", "LinearProbe"}
    for each in found.values():
        assert isinstance(each, Elsewhere)
        assert f"{each.pooled[0]:.3f}" in told
    page = (tmp_path / "runs/report.html").read_text()
    assert '<h2 id="elsewhere">Out of distribution</h2>' in page
    assert "Elsewhere (42)" in page
    assert ">sketch (24)<" in page


@pytest.mark.thorough
def test_a_sweep_is_the_same_as_the_command(place: Path, tmp_path: Path) -> None:
    given = {"weights": str(place / "w.pth"), "img_size": 32, "batch_size": 8, "epochs": 1.0, "points": 1}
    given |= {
        "train_steps": 0,
        "eval_steps": 1,
        "workers": 1,
        "progress": False,
        "backbone": "timm:test_resnet",
    }
    outcome = pt.sweep(
        place / "pets", ["bitfit"], [0], train_domains=["photo", "art"], out=tmp_path / "runs",
        attack_elsewhere=True, **given,
    )  # fmt: skip
    clean, robust = outcome.conditions[0].elsewhere
    assert clean.examples == {"sketch": 24}
    assert robust.pooled[0] <= clean.pooled[0]
    assert "robust accuracy on what was trained on" in repr(outcome)
    with pytest.raises(ValueError, match="data is split already; give train_domains to load_data"):
        pt.sweep(
            pt.load_data(place / "pets" / "photo", img_size=32), ["bitfit"], [0], train_domains=["photo"]
        )


def test_training_evaluation_and_yaml_take_domains(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    arguments = ["train", *options(place), "--strategy", "bitfit"]
    with pytest.raises(SystemExit):
        main([*arguments, "--print-config"])
    printed = capfd.readouterr().out
    assert yaml.safe_load(printed)["train_domains"] == "photo"
    (tmp_path / "config.yaml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--out", run]) == 0
    assert "clean_in_sketch" in capfd.readouterr().out
    (row,) = load_runs(run)[0].points.tail(1).to_dict("records")

    evaluate = ["evaluate", run, "--weights", str(place / "w.pth"), "--steps", "1", "--epsilons", "1/255"]
    assert main([*evaluate, "--domain", "sketch"]) == 0
    out, err = capfd.readouterr()
    assert f"{row['clean_in_sketch']:.4g}" in out
    assert " 24" in out
    assert "note" not in err
    for domain, why in (("photo", "it was trained on: leave --domain out"), ("skech", "there is none")):
        assert main([*evaluate, "--domain", domain]) == 2
        said = " ".join(capfd.readouterr().err.split())
        assert why in said
        assert "Elsewhere in pets: photo: art, sketch" in said
    assert main([*evaluate, "--domain", "art", "--split-seed", "3"]) == 2
    assert "leave it out with --domain" in " ".join(capfd.readouterr().err.split())
    assert main(evaluate) == 0  # the report split of photos
    assert f"{row['clean']:.4g}" in capfd.readouterr().out
    assert main([*evaluate, "--data", str(place / "pets" / "sketch")]) == 0  # other data, without domains
    assert "differs from the data that the adapter was trained on" in capfd.readouterr().err


def test_a_table_of_domains_is_found_again(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = sorted((place / "pets").rglob("*.png"))
    table = pd.DataFrame(
        {
            "path": map(str, files),
            "label": [f.parts[-2] for f in files],
            "domain": [f.parts[-3] for f in files],
        }
    )
    table.to_csv(tmp_path / "pets.csv", index=False)
    arguments = ["train", *options(place, tmp_path / "pets.csv"), "--strategy", "bitfit"]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--train-domains", "art,photo"]) == 0
    recorded = json.loads((tmp_path / "run/adapter/paretune.json").read_text())["notes"]["data"][
        "loaded_with"
    ]
    assert recorded["train_domains"] == ["art", "photo"]
    evaluate = ["evaluate", str(tmp_path / "run"), "--weights", str(place / "w.pth"), "--steps", "1"]
    assert main([*evaluate, "--domain", "sketch"]) == 0
    assert main([*arguments, "--train-domains", "phot"]) == 2
    assert "did you mean 'photo'" in " ".join(capfd.readouterr().err.split())


def test_runs_on_other_domains_have_directories_of_their_own() -> None:
    domains = [None, Domains(["a"]), Domains(["a", "b"]), Domains(["b", "a"])]
    assert len({directory_name(RunConfig(data="pets", train_domains=each)) for each in domains}) == 4
    with pytest.raises(ValueError, match="train_domains must be names, separated by commas"):
        Domains.read("a,,b")

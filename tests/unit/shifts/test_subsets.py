"""Natural subsets: the report split by the camera that took it, with ids, labels and order kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import paretune as pt
from paretune.commands.cli import main
from paretune.data.tables import read_columns
from paretune.shifts import Subsets
from tests.unit.attacks.victims import Linear

CAMERAS = ("front", "rear", "side")


def table(root: Path, count: int = 60, **columns: Any) -> pd.DataFrame:
    """Images whose red is their number, with classes and cameras that are independent."""
    root.mkdir(exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{number}.png")
    rows = {
        "path": [str(root / f"{number}.png") for number in range(count)],
        "label": ["cat" if number % 2 else "dog" for number in range(count)],
        "camera": [CAMERAS[number // 2 % 3] for number in range(count)],
        **columns,
    }
    return pd.DataFrame(rows)


def numbers(split: pt.data.ImageSplit) -> list[int]:
    values: list[int] = (255 * split[:][0][:, 0, 0, 0]).round().int().tolist()
    return values


@pytest.mark.parametrize("kind", ["frame", "file", "hub", "domains"])
def test_each_subset_keeps_ids_labels_and_order(tmp_path: Path, kind: str) -> None:
    given: Any = table(tmp_path / "images")
    options: dict[str, Any] = {"columns": {"subset": "camera"}}
    if kind == "file":
        given.to_csv(tmp_path / "cars.csv", index=False)
        given = tmp_path / "cars.csv"
    elif kind == "hub":
        datasets = pytest.importorskip("datasets")
        rows = {
            "image": [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(60)],
            "label": [*given["label"]],
        }
        cameras = datasets.ClassLabel(names=[*CAMERAS])
        features = {"image": datasets.Image(), "label": datasets.Value("string"), "camera": cameras}
        rows["camera"] = [CAMERAS.index(camera) for camera in given["camera"]]
        given = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        options["columns"] |= {"label": "label"}
    elif kind == "domains":
        given["domain"] = ["day" if number < 30 else "night" for number in range(60)]
        options["train_domains"] = ["day", "night"]
    data = pt.load_data(given, **options)
    parts = Subsets().of(data.report)
    assert [*parts] == [*CAMERAS]
    whole = numbers(data.report)
    for camera, part in parts.items():
        assert numbers(part) == [number for number in whole if CAMERAS[number // 2 % 3] == camera]
        places = [whole.index(number) for number in numbers(part)]
        assert part.ids.tolist() == data.report.ids[places].tolist()
        assert part.labels.tolist() == data.report.labels[places].tolist()
        assert (part.shift, part.paired, part.classes) == ("Subsets()", False, data.classes)
        assert part.subsets == (camera,) * len(part)
    assert len({data.report.fingerprint, *(part.fingerprint for part in parts.values())}) == 4


def test_bits_of_subsets_are_those_of_the_whole(tmp_path: Path) -> None:
    data = pt.load_data(table(tmp_path / "images"), columns={"subset": "camera"}, img_size=8)
    model = Linear(2, 3, 8, 8)
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 192)).astype("f"))
    model.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    scores = pt.evaluate(model, data.report, shifts=[Subsets()])
    cameras = np.array(data.report.subsets)
    for camera, part in scores.elsewhere.items():
        np.testing.assert_array_equal(part.clean, scores.clean[cameras == camera])
    few = data.report.first(4)
    assert few.subsets == data.report.subsets[:4]  # type: ignore[index]
    assert data.report.changed(_same, "Same()").subsets == data.report.subsets


def _same(images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return images


def test_data_without_subsets_is_refused(tmp_path: Path) -> None:
    frame = table(tmp_path / "images")
    with pytest.raises(
        ValueError, match=r"Subsets\(\) needs examples of two subsets, and the data does not say"
    ):
        Subsets().of(pt.load_data(frame).report)
    with pytest.raises(ValueError, match="and all are of 'front'"):
        Subsets().of(pt.load_data(frame.assign(subset="front")).report)
    with pytest.raises(ValueError, match=r"has no column 'kamera' .subset.; did you mean 'camera'"):
        pt.load_data(frame, columns={"subset": "kamera"})
    with pytest.raises(ValueError, match="column 'camera' is empty in 1 rows, first in row 3"):
        pt.load_data(
            frame.assign(camera=["" if row == 3 else "front" for row in range(60)]),
            columns={"subset": "camera"},
        )
    pairs = [(torch.rand(3, 8, 8), row % 2) for row in range(20)]
    with pytest.raises(ValueError, match="list has no column 'camera' of subsets; it has no columns"):
        pt.load_data(pairs, columns={"subset": "camera"})
    with pytest.raises(ValueError, match="no example is of the subset 'top'"):
        pt.load_data(frame, columns={"subset": "camera"}).report.subset("top", "Subsets()")
    assert read_columns("subset=camera") == {"subset": "camera"}


def test_the_command_line_measures_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path / "images").to_csv(tmp_path / "cars.csv", index=False)
    with torch.random.fork_rng():
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    line = (
        f"train --backbone timm:test_resnet --weights {tmp_path}/w.pth --data {tmp_path}/cars.csv --columns subset=camera "
        "--img-size 32 --batch-size 8 --strategy linearprobe --epochs 1 --points 1 --train-steps 0 --eval-steps 1 --shifts "
        f"Subsets() --out {tmp_path}/run"
    )
    assert main(line.split()) == 0, capsys.readouterr().err
    rows = [json.loads(text) for text in (tmp_path / "run/points.jsonl").read_text().splitlines()]
    sizes = {name: part["examples"] for name, part in rows[-1]["elsewhere"].items()}
    assert [*sizes] == [*CAMERAS]
    assert sum(sizes.values()) == 16  # the report split
    line = f"evaluate {tmp_path}/run --weights {tmp_path}/w.pth --epsilons 1/255 --steps 1 --shifts Subsets()"
    assert main(line.split()) == 0, capsys.readouterr().err
    assert "rear" in capsys.readouterr().out

"""Tables whose columns have names of their own, as typed on the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import paretune as pt
from paretune.commands.cli import main
from paretune.data.tables import read_columns
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name

NAMES = {"image": "photo no.", "label": "species", "split": "phase"}


def table(directory: Path) -> Path:
    """40 images in four classes, with a column "label" that means something else."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(40):
        file = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(directory / file)
        phase = ("train", "train", "val", "test")[number // 4 % 4]
        values = {"photo no.": file, "species": "abcd"[number % 4], "phase": phase, "label": number}
        rows.append(values)
    path = directory / "birds.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def paretune(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "paretune", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_and_its_evaluation_take_the_columns_that_are_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = table(tmp_path), tmp_path / "run"
    columns = ("--columns", "image=photo no., label=species, split=phase")
    budget = "--img-size 24 --strategy BitFit --batch-size 8 --epochs 0.5 --points 1 --train-steps 0 --eval-steps 1"
    paretune("train", "--data", str(path), *columns, *budget.split(), "--out", str(run))
    adapter = json.loads((run / "adapter/paretune.json").read_text())
    assert adapter["classes"] == list("abcd")
    assert adapter["notes"]["data"]["loaded_with"]["columns"] == NAMES
    data = pt.load_data(path, img_size=24, columns=NAMES)
    assert adapter["notes"]["data"]["fingerprint"] == data.fingerprint
    evaluate = ["evaluate", str(run), "--steps", "1", "--epsilons", "1/255"]
    assert main(evaluate) == 0
    told = capsys.readouterr().out
    assert told == paretune(*evaluate, "--data", str(path), *columns)


@pytest.mark.parametrize(
    "text", ["", "photo", "image=", "=photo", "picture=photo", "image=a,image=b", "image=a,,label=b"]
)
def test_what_says_no_columns_is_refused_with_the_form(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--columns", text]) == 2
    assert "columns must say once each what a column holds (image, label," in capfd.readouterr().err


def test_an_unknown_column_names_the_option_and_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'specis'.*did you mean 'species'"):
        RunConfig(data=str(table(tmp_path)), img_size=24, columns="image=photo no.,label=specis").load_data()


def test_columns_are_read_with_spaces_in_and_around_them() -> None:
    assert read_columns(" image = photo no. ,label=species,split=phase") == NAMES
    assert read_columns("image=a=b") == {"image": "a=b"}


def test_runs_on_other_columns_are_other_runs() -> None:
    names = {directory_name(RunConfig(columns=text)) for text in (None, "label=a", "label=b")}
    assert len(names) == 3

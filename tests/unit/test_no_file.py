"""Pipes and directories in the place of files are refused and not waited for; state of other images is refused."""

import os
from pathlib import Path

import pytest
import torch

from paretune.attacks import Linf
from paretune.attacks.autoattack_state import Journal, Outcome
from paretune.results import RunWriter, load_runs
from paretune.watch.progress import Watcher
from tests.unit.test_results import CONFIG


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

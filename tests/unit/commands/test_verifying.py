"""``paretune runs verify``: what is well passes, and each thing that is not is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paretune.commands.cli import main
from tests.synthetic import STRATEGIES, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(tmp_path / "runs" / str(seed), STRATEGIES[0], seed)
    return tmp_path / "runs"


def verified(runs: Path, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["runs", "verify", str(runs), *options])
    told, complained = capfd.readouterr()
    return code, told, complained


def test_what_is_well_passes(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, told, _ = verified(runs, capfd)
    assert code == 0
    assert told.startswith("2 runs, ")
    code, told, _ = verified(runs, capfd, "--json")
    assert code == 0
    assert json.loads(told)["problems"] == {}


def changed(file: Path, key: str, value: object) -> None:
    """A file of bits with other bits, and the notes that it had."""
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        notes = opened.metadata()
    tensors = load_file(file)
    tensors[key] = np.asarray(value(tensors[key]), dtype=np.uint8)  # type: ignore[operator]
    save_file(tensors, file, notes)


def test_bits_that_contradict_their_row_are_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = sorted((runs / "1" / "bits").iterdir())[0]
    changed(file, "report/clean", np.zeros_like)
    code, told, complained = verified(runs, capfd)
    assert code == 2
    assert f"{runs / '1'}: " in told
    assert "report/clean gives 0.000000" in told
    assert "1 runs are not what they say" in complained


def test_a_robust_bit_without_its_clean_one_is_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = sorted((runs / "0" / "bits").iterdir())[-1]
    key = next(name for name in load_file(file) if name.startswith("select/robust"))
    # As many as before, of other examples: the mean stays.
    changed(file, key, lambda packed: np.packbits(np.unpackbits(packed)[::-1]))
    code, told, _ = verified(runs, capfd)
    assert code == 2
    assert "robust implies clean" in told


def test_bits_that_are_gone_and_runs_that_cannot_be_read_are_named(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(runs / "0" / "bits")
    (runs / "1" / "config.json").write_text("{")
    code, told, complained = verified(runs, capfd)
    assert code == 2
    assert str(runs / "0") in told
    assert str(runs / "1") in told
    assert "2 runs are not what they say" in complained


def test_two_splits_of_a_task_are_named(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "other", STRATEGIES[1], 0, examples=77)
    code, told, complained = verified(runs, capfd)
    assert code == 2
    assert "2 splits, which cannot be compared" in told
    assert "0 runs are not what they say, and 1 tasks have several splits" in complained

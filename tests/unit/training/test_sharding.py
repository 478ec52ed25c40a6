"""What two processes train in shards is what one trains whole, and its files are the same."""

import re
from pathlib import Path

import pytest
import torch

from tests.sharded import learn, objectives, strategies
from tests.unit.training import test_loop
from tests.unit.training.test_processes import assert_left, launch

SCRIPT = str(test_loop.ROOT / "tests/sharded.py")
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
}  # what accelerate launch --use_fsdp --fsdp_version 2 sets


def flat(changes: dict[str, torch.Tensor]) -> torch.Tensor:
    """All that is changed, without the biases of keys."""
    for name, change in changes.items():
        if name.endswith("qkv.bias"):
            change.unflatten(0, (3, -1))[1] = 0
    return torch.cat([change.flatten() for change in changes.values()])


def assert_alike(one: Path, other: Path) -> None:
    first, second = torch.load(one), torch.load(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-5), name


@pytest.mark.slow
def test_every_strategy_trains_in_shards_as_whole(tmp_path: Path) -> None:
    """As a whole to a thousandth of what it changes: Adam moves a weight whose gradient is little more than rounding as far
    as any other. Biases of keys are left out, whose gradient is 0.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
    strategies(one)
    launch(2, SCRIPT, str(two), "strategies", **FSDP)
    names = [file.name for file in one.glob("*.pt")]
    assert len(names) == 15
    for name in names:
        whole, parts = (flat(torch.load(directory / name)) for directory in (one, two))
        assert torch.dist(whole, parts) < 0.001 * whole.norm(), name


@pytest.mark.slow
def test_objectives_learn_in_shards_of_half_the_weights(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
    objectives(one)
    launch(2, SCRIPT, str(two), "objectives", **FSDP)
    names = [file.name for file in one.glob("*.pt")]
    assert len(names) >= 7
    for name in names:
        assert_alike(one / name, two / name)
    held, numbers = zip(*((two / f"held-{rank}").read_text().split() for rank in (0, 1)), strict=True)
    assert sum(map(int, held)) == int(numbers[0])
    assert max(map(int, held)) < 0.6 * int(numbers[0])


@pytest.mark.slow
def test_a_run_goes_on_in_shards_and_out_of_them(tmp_path: Path) -> None:
    """Its files are those of one process."""
    for name, halves in (("in", ({}, FSDP)), ("out", (FSDP, {}))):
        for what, environment in zip(("half", "rest"), halves, strict=True):
            launch(2 if environment else 1, SCRIPT, str(tmp_path / name), what, **environment)
            for rank in (0, 1) if environment else ():
                assert_left(tmp_path / name, rank)
    (tmp_path / "one").mkdir()
    learn(tmp_path / "one", half=False)
    for name in ("in", "out"):
        assert_alike(tmp_path / "one/run.pt", tmp_path / name / "run.pt")


@pytest.mark.slow
def test_what_cannot_be_in_shards_is_refused(tmp_path: Path) -> None:
    launch(2, SCRIPT, str(tmp_path), "refused", **FSDP)
    for name, message in (
        (
            "anchored",
            r"EWC.* looks at weights or features of the model, which are in shards; launch without --use_fsdp",
        ),
        ("tasks", "several tasks at once cannot be sharded; launch without --use_fsdp"),
        ("auto", r"may end otherwise in each process; name one for all: precision='fp32' or 'bf16'"),
        ("first", "by FSDP2 only; launch with --use_fsdp --fsdp_version 2"),
    ):
        for rank in (0, 1):
            assert re.search(message, (tmp_path / f"{name}-{rank}").read_text()), name


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_other_ways_to_divide_a_model_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"ACCELERATE_USE_{name} is set.*--use_fsdp --fsdp_version 2"):
        test_loop.tiny.run(tmp_path / "run")

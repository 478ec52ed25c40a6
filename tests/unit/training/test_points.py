"""Whoever asks for so many evaluation points gets them, or is told why not; runs that had them are the same as ever."""

import itertools
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.commands.cli import main
from paretune.runs.store import Run, load_runs
from paretune.sweeps.config import RunConfig
from paretune.training.plan import measuring_steps
from tests import tiny
from tests.unit.commands.test_cli import SMALL, weights  # noqa: F401  # a fixture
from tests.unit.training.test_loop import same_run


def steps_of(run: Run) -> list[int]:
    return [*map(int, run.points["step"])]


@pytest.mark.parametrize(
    ("steps", "points", "expected"),
    [
        (5, 4, [1, 3, 4, 5]),
        (10, 4, [3, 6, 9, 10]),  # as every third step always was
        (10, 6, [2, 3, 5, 7, 8, 10]),
        (6, 3, [2, 4, 6]),
        (3, 3, [1, 2, 3]),
    ],
)
def test_there_are_as_many_points_as_were_asked_for(
    steps: int, points: int, expected: list[int], tmp_path: Path
) -> None:
    run = tiny.run(tmp_path / "run", steps=steps, eval_every=None, points=points)
    assert steps_of(run) == expected


def test_every_number_of_points_up_to_the_steps_is_met_at_different_steps_that_end_with_the_last() -> None:
    for total, points in itertools.product(range(1, 80), repeat=2):
        if points <= total:
            places, _ = measuring_steps(total, 7, None, points)
            assert len(places) == points
            assert max(places) == total
            assert min(places) >= 1


def test_where_steps_between_points_give_that_many_the_run_has_the_key_that_it_always_had(
    tmp_path: Path,
) -> None:
    one = tiny.run(tmp_path / "points", eval_every=None, points=3)  # of 10 steps
    other = tiny.run(tmp_path / "steps", eval_every=4)
    assert one.config["eval_every"] == 4
    assert one.key == other.key
    for total, points in itertools.product(range(1, 80), repeat=2):
        if total % points == 0:
            assert measuring_steps(total, 7, None, points)[1] == {"eval_every": total // points}


@pytest.mark.parametrize("points", [0, -1, 11, 2.0, True])
def test_points_that_cannot_be_are_refused_before_anything_is_written(points: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="points must be a whole number from 1 to 10"):
        tiny.run(tmp_path / "run", eval_every=None, points=points)
    with pytest.raises(ValueError, match="give either eval_every or points"):
        tiny.run(tmp_path / "run", points=2)
    assert not (tmp_path / "run").exists()


def test_a_run_with_points_of_its_own_resumes_exactly(tmp_path: Path) -> None:
    def stop(status: Any) -> None:
        if status.step == 6:
            raise KeyboardInterrupt

    call: dict[str, Any] = {"eval_every": None, "points": 6}
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "stopped", **call, progress=stop)
    assert steps_of(load_runs(tmp_path / "stopped")[0]) == [2, 3, 5]
    tiny.run(tmp_path / "stopped", **call)
    tiny.run(tmp_path / "whole", **call)
    same_run(tmp_path / "stopped", tmp_path / "whole")
    with pytest.raises(ValueError, match=r"points: 6 there, 7 here"):
        tiny.run(tmp_path / "stopped", eval_every=None, points=7)


def small(weights: str, **changes: Any) -> RunConfig:  # noqa: F811
    """5 steps."""
    fixed: dict[str, Any] = {"backbone": "timm:test_resnet", "img_size": 32, "limit": 120, "batch_size": 16}
    fixed |= {"epochs": 1.0, "train_steps": 1, "eval_steps": 1, "strategy": pt.BitFit(), "weights": weights}
    return RunConfig(**fixed | changes)


def test_a_configuration_asks_for_points_too(tmp_path: Path, weights: str) -> None:  # noqa: F811
    (run,) = small(weights, points=4).run(tmp_path / "run", progress=False)
    assert len(run.points) == 4


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_command_line_refuses_more_points_than_steps_at_once(
    command: str,
    tmp_path: Path,
    weights: str,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [command, *SMALL, "--weights", weights, "--out", str(tmp_path / "out"), "--points", "9"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "points must be a whole number from 1 to" in error
    assert not [*tmp_path.glob("out/*/config.json")]

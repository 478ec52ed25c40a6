"""Intervals hold the truth as often as they say, and equal strategies are told apart as rarely."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARKS / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["coverage_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_rows_hold_what_the_documentation_says() -> None:
    """Of the whole grid but what `compare` warns of: 93 to 97 % and at most 5 %, give or take two standard errors."""
    rows = pd.read_csv(BENCHMARKS / "coverage.csv")
    warned = rows["seeds"].between(2, 4) | rows["groups"].between(1, 99)
    for method in ("basic", "bca"):
        ours = rows[(rows["method"] == method) & ~warned]
        assert len(ours) >= 30
        error = np.sqrt(0.95 * 0.05 / ours["repetitions"])
        assert (ours["coverage"] > 0.93 - 2 * error).all()
        assert (ours["coverage"] < 0.97 + 2 * error).all()
        assert (ours["false_positives"] <= 0.05).all()
        assert ours["coverage"].mean() == pytest.approx(0.955, abs=0.015)
    naive = rows[(rows["method"] == "naive") & ~warned]
    assert naive["coverage"].min() < 0.5
    assert naive[naive["checkpoints_b"] > naive["checkpoints"]]["false_positives"].max() > 0.5
    warned_of = rows[(rows["method"] == "basic") & (rows["seeds"] == 2)]
    assert (warned_of["false_positives"] > 0.06).all()
    ours = rows[(rows["method"] == "basic") & ~warned]
    assert (ours["set_coverage"] >= 0.97).all()
    several = ours[(ours["strategies"] > 2) & (ours["lead"] == 0)]
    assert len(several) >= 4
    assert (several["set_size"] > 0.95 * several["strategies"]).all()
    sizes = ours[(ours["strategies"] == 4) & (ours["seeds"] == 1)].groupby("lead")["set_size"].mean()
    assert sizes.is_monotonic_decreasing  # who leads by more leaves fewer beside it
    assert sizes.iloc[-1] < 3.6


def test_simulated_accuracies_are_the_true_ones(coverage: ModuleType) -> None:
    clean, given = coverage.curve(5)
    rng = np.random.default_rng(0)
    for groups in (0, 40_000):
        difficulty = coverage.difficulties(200_000, groups, rng)
        right, robust = coverage.draw(clean, given, difficulty, 0.64, rng)
        assert right.mean(axis=1) == pytest.approx(clean, abs=0.005)
        assert robust.mean(axis=1) == pytest.approx(coverage.robust_accuracy(clean, given, 0.64), abs=0.005)
        assert not (robust & ~right).any()
    many, _ = coverage.curve(25)
    assert many[4::5] == pytest.approx(clean)  # the longer run passes through the shorter one's points


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        {"checkpoints": 10, "checkpoints_b": 50, "examples": 250, "examples_select": 250},
        {"checkpoints": 50, "checkpoints_b": 50, "examples": 400, "examples_select": 100},
        {"checkpoints": 10, "checkpoints_b": 10, "examples": 400, "examples_select": 400, "seeds": 5},
        {"checkpoints": 10, "checkpoints_b": 10, "examples": 1000, "examples_select": 1000, "groups": 100},
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(coverage: ModuleType, setting: dict[str, int]) -> None:
    made = coverage.measure(coverage.Setting(**setting, correlation=0.64, repetitions=200))
    rows = {row["method"]: row for row in made}
    error = np.sqrt(0.95 * 0.05 / 200)
    assert 0.95 - 3.5 * error < rows["basic"]["coverage"] < 0.95 + 3.2 * error
    assert rows["basic"]["false_positives"] < 0.05 + 2 * error
    if setting["checkpoints_b"] > setting["checkpoints"]:
        assert rows["naive"]["false_positives"] > 0.15
    if "groups" in setting:
        assert rows["no groups"]["coverage"] < 0.85

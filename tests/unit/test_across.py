"""Many tasks: tests with known answers, and verdicts that admit when tasks are too few."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from paretune.across import across_tasks
from paretune.stats import compare
from paretune.verdict import Comparison
from tests.synthetic import STRATEGIES, Strategy, write_run


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("runs")
    for number, strategy in enumerate(STRATEGIES[:3]):
        write_run(root / str(number), strategy, points=3, examples=60)
    return compare(root, resamples=100)


def tasks(one: Comparison, areas: dict[str, list[float]]) -> Comparison:
    """The same condition under several names, with these areas."""
    (condition,) = one.conditions
    made = []
    for number in range(len(next(iter(areas.values())))):
        estimates = [
            dataclasses.replace(condition.areas[0], strategy=name, area=values[number])
            for name, values in areas.items()
            if not np.isnan(values[number])
        ]
        estimates.sort(key=lambda each: -each.area)
        made.append(
            dataclasses.replace(condition, task=f"task{number}", areas=tuple(estimates), differences=())
        )
    return Comparison(tuple(made))


def test_a_strategy_that_wins_everywhere_is_told_apart(one: Comparison) -> None:
    rng = np.random.default_rng(0)
    base = rng.random(8) / 2
    areas = {"A": [*(base + 0.1)], "B": [*(base + 0.01 * np.arange(1, 9))], "C": [*base]}
    (result,) = across_tasks(tasks(one, areas))
    assert result.ranked == ("A", "B", "C")
    assert result.mean_ranks == pytest.approx((1, 2, 3))
    assert result.friedman_p == pytest.approx(np.exp(-8))  # chi-squared of 16 with 2 degrees of freedom
    # 2 / 2^8 for each pair, times three by Holm
    assert [pair.p_value for pair in result.pairs] == pytest.approx([3 * 2 / 256] * 3)
    first = result.pairs[0]
    assert (first.strategy_a, first.strategy_b, first.wins, first.losses) == ("A", "B", 8, 0)
    assert first.median_difference == pytest.approx(0.055)
    assert result.certainty == "clear"
    assert result.verdict.startswith(
        "A has the best mean rank, 1.00 over 8 tasks, told apart from every other"
    )
    assert "the largest area is A's in every task" in result.verdict
    assert [*result.to_frame()["strategy"]] == ["A"] * 8


def test_five_tasks_are_too_few_and_it_says_so(one: Comparison) -> None:
    (result,) = across_tasks(tasks(one, {"A": [0.5, 0.6, 0.7, 0.6, 0.5], "B": [0.1, 0.25, 0.2, 0.1, 0.05]}))
    assert result.friedman_p is None  # two strategies
    assert result.pairs[0].p_value == pytest.approx(2 / 32)
    assert result.certainty == "cannot tell"
    assert "5 tasks are too few for any signed-rank test" in result.verdict


def test_tasks_that_disagree_are_told_task_by_task(one: Comparison) -> None:
    areas = {"A": [0.5, 0.3] * 4, "B": [0.3, 0.5] * 4, "C": [0.2] * 8, "D": [0.9] + [float("nan")] * 7}
    (result,) = across_tasks(tasks(one, areas))
    assert result.left_out == ("D",)
    assert result.certainty == "cannot tell"
    assert result.verdict.endswith("3 strategies have the largest area of some task.")
    assert [winner.strategy for winner in result.winners] == ["D", "B", *"ABABAB"]
    assert (result.pairs[0].wins, result.pairs[0].losses) == (4, 4)


def test_equal_areas_are_no_evidence(one: Comparison) -> None:
    (result,) = across_tasks(tasks(one, {name: [0.5, 0.4, 0.3] for name in "ABC"}))
    assert result.friedman_p == 1
    assert {pair.p_value for pair in result.pairs} == {1}
    assert result.mean_ranks == (2, 2, 2)


def test_what_cannot_be_compared_is_named(one: Comparison) -> None:
    with pytest.raises(ValueError, match="at least two tasks under one attack and epsilon; got digits: PGD"):
        across_tasks(one)
    nan = float("nan")
    with pytest.raises(ValueError, match="no strategy is in all tasks: task0 has A; task1 has B"):
        across_tasks(tasks(one, {"A": [0.5, nan], "B": [nan, 0.5]}))
    (alone,) = across_tasks(tasks(one, {"A": [0.5, 0.4], "B": [nan, 0.5]}))
    assert alone.certainty == "alone"
    assert "no other strategy that every task has" in alone.verdict


def test_runs_of_several_tasks_go_through(tmp_path: Path) -> None:
    for task in ("one", "two", "three"):
        for name, gain in (("A", 0.3), ("B", 0.0), ("C", -0.04)):
            strategy = Strategy(name, f"{name}()", gain, 10)
            write_run(tmp_path / f"{task}{name}", strategy, points=4, examples=200, task=task)
    (result,) = across_tasks(compare(tmp_path, resamples=400))
    assert result.tasks == ("one", "three", "two")
    assert result.ranked[0] == "A"
    assert {winner.certainty for winner in result.winners} == {"clear"}
    assert result.certainty == "cannot tell"

"""Many tasks: tests with known answers, and verdicts that admit when tasks are too few."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from paretune.frontiers.across import across_rankings, across_tasks
from paretune.frontiers.comparing import compare
from paretune.frontiers.power import needed_tasks
from paretune.frontiers.verdict import Comparison
from tests.synthetic import STRATEGIES, Strategy, untested, write_run


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
    luck = 0.005 * rng.standard_normal((2, 8))
    areas = {
        "A": [*(base + 0.1 + luck[0])],
        "B": [*(base + 0.01 * np.arange(1, 9))],
        "C": [*(base + luck[1])],
    }
    (result,) = across_tasks(tasks(one, areas))
    assert result.ranked == ("A", "B", "C")
    assert result.mean_ranks == pytest.approx((1, 2, 3))
    assert result.mean_areas == pytest.approx([np.mean(areas[name]) for name in "ABC"])
    raw = [stats.ttest_rel(areas[a], areas[b]) for a, b in ("AB", "AC", "BC")]
    worst = 0.0
    for place, index in enumerate(np.argsort([each.pvalue for each in raw])):
        worst = max(worst, (3 - place) * raw[index].pvalue)
        assert result.pairs[index].p_value == pytest.approx(worst)
    first = result.pairs[0]
    assert (first.strategy_a, first.strategy_b, first.wins, first.losses) == ("A", "B", 8, 0)
    assert (first.low, first.high) == pytest.approx(tuple(raw[0].confidence_interval(0.95)))
    assert first.here is None
    assert result.certainty == "clear"
    assert result.verdict.startswith("A has the largest mean area, ")
    assert "over 8 tasks (mean rank 1.00); every other strategy is told apart from it" in result.verdict
    assert "the largest area is A's in every task" in result.verdict
    assert f"A is ahead of B by {first.mean_difference:.3f} on average" in result.verdict
    assert [winner.strategy for winner in result.winners] == ["A"] * 8


def test_a_few_tasks_have_an_estimate_and_what_more_would_settle_it(one: Comparison) -> None:
    (result,) = across_tasks(tasks(one, {"A": [0.5, 0.66, 0.7], "B": [0.4, 0.5, 0.68]}))
    (pair,) = result.pairs
    expected = stats.ttest_1samp([0.1, 0.16, 0.02], 0)
    assert pair.p_value == pytest.approx(expected.pvalue)
    assert (pair.low, pair.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert result.certainty == "cannot tell"
    assert result.tied == ("A", "B")
    assert (
        "B cannot be told apart from it on tasks in general; these tasks do not tell which" in result.verdict
    )
    assert f"about {pair.tasks_needed} such tasks would settle it in general" in result.verdict
    (close,) = across_tasks(tasks(one, {"A": [0.5, 0.6, 0.7], "B": [0.402, 0.5, 0.598]}))
    assert close.certainty == "clear"  # three that agree are enough


def test_two_that_differ_by_less_than_the_margin_are_tied_over_tasks(one: Comparison) -> None:
    near = {"A": [0.5, 0.6, 0.7], "B": [0.497, 0.5971, 0.6969], "C": [0.3, 0.41, 0.5]}
    (result,) = across_tasks(tasks(one, near))
    assert result.certainty == "tie"
    assert result.tied == ("A", "B")
    assert "B is less than 0.005 behind" in result.verdict
    assert result.pairs[0].p_value < 0.05


def test_the_number_of_tasks_needed_is_enough_and_one_less_is_not() -> None:
    rng = np.random.default_rng(0)
    for effect in (0.02, 0.05):
        number = needed_tasks(effect, spread=0.03, alpha=0.05)
        found = {}
        assert number is not None
        for tasks_made in (number, number - 2):
            gaps = effect + 0.03 * rng.standard_normal((4000, tasks_made))
            found[tasks_made] = (stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05).mean()
        assert found[number] > 0.77
        assert found[number - 2] < 0.8
    assert needed_tasks(0.001, spread=0.1, alpha=0.05) is None
    with pytest.raises(ValueError, match="effect must be above 0"):
        needed_tasks(0.0, spread=0.1, alpha=0.05)


def test_tasks_tell_no_equals_apart_more_often_than_promised(one: Comparison) -> None:
    """Three equal strategies on three or ten tasks; bounds are three standard errors off 5 %."""
    rng = np.random.default_rng(0)
    for count in (3, 10):
        told = 0
        for _ in range(400):
            areas = {
                str(number): dict(zip("ABC", row.tolist(), strict=True))
                for number, row in enumerate(rng.random((count, 3)))
            }
            made = across_rankings(untested(areas, margin=0.0))
            told += bool(made.decision.told.any())
        assert told / 400 <= 0.05 + 3 * 0.011


def test_tasks_that_disagree_are_told_task_by_task(one: Comparison) -> None:
    areas = {"A": [0.5, 0.3] * 4, "B": [0.3, 0.5] * 4, "C": [0.2] * 8, "D": [0.9] + [float("nan")] * 7}
    (result,) = across_tasks(tasks(one, areas))
    assert result.left_out == ("D",)
    assert (result.certainty, result.tied) == ("tie", ("A", "B"))  # C is told apart from both
    assert "3 strategies have the largest area of some task." in result.verdict
    assert [winner.strategy for winner in result.winners] == ["D", "B", *"ABABAB"]
    assert (result.pairs[0].wins, result.pairs[0].losses) == (4, 4)


def test_equal_areas_are_no_evidence(one: Comparison) -> None:
    (result,) = across_tasks(tasks(one, {name: [0.5, 0.4, 0.3] for name in "ABC"}))
    assert {pair.p_value for pair in result.pairs} == {1}
    assert "B and C have the same area" in result.verdict
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


def test_tasks_that_share_no_strategy_do_not_take_those_of_another_epsilon_along(
    one: Comparison, caplog: pytest.LogCaptureFixture
) -> None:
    nan = float("nan")
    apart = tasks(one, {"A": [0.3, nan], "B": [nan, 0.4]})
    shared = tasks(one, {"A": [0.3, 0.5], "B": [0.2, 0.4]})
    elsewhere = [dataclasses.replace(condition, epsilon=0.25) for condition in apart.conditions]
    (result,) = across_tasks(Comparison((*elsewhere, *shared.conditions)))
    assert result.epsilon == shared.conditions[0].epsilon
    assert result.ranked == ("A", "B")
    assert "at epsilon 0.25: no strategy is in all tasks: task0 has A; task1 has B" in caplog.text


def test_runs_of_several_tasks_go_through(tmp_path: Path) -> None:
    for task in ("one", "two", "three"):
        for name, gain in (("A", 0.3), ("B", 0.0), ("C", -0.04)):
            strategy = Strategy(name, f"{name}()", gain, 10)
            write_run(tmp_path / f"{task}{name}", strategy, points=4, examples=200, task=task)
    (result,) = across_tasks(compare(tmp_path, resamples=400))
    assert result.tasks == ("one", "three", "two")
    assert result.ranked[0] == "A"
    assert {winner.certainty for winner in result.winners} == {"clear"}
    for pair in result.pairs:
        assert pair.here is not None
        assert (
            pair.here[1] - pair.here[0] <= pair.high - pair.low
        )  # these tasks are surer than tasks like them
    assert result.pairs[0].here[0] > 0
    assert "for these tasks alone" in result.verdict


def test_tasks_that_would_have_shown_the_margin_say_so(one: Comparison) -> None:
    areas = {"A": [0.5, 0.501, 0.499, 0.5] * 3, "B": [0.4995, 0.5, 0.5, 0.4995] * 3}
    (result,) = across_tasks(tasks(one, areas))
    assert result.pairs[0].tasks_needed is not None
    assert result.pairs[0].tasks_needed <= 12
    assert "a true difference of 0.005 would have been told by these tasks" in result.verdict
    assert "would settle it" not in result.verdict


def test_copies_of_one_task_say_nothing_of_others(one: Comparison) -> None:
    (result,) = across_tasks(tasks(one, {"A": [0.5, 0.6, 0.7], "B": [0.4, 0.5, 0.6], "C": [0.1, 0.5, 0.3]}))
    pair = result.pairs[0]
    assert (pair.strategy_b, pair.low, pair.p_value, pair.tasks_needed) == ("B", None, None, None)
    assert result.certainty == "unknown"
    assert "these tasks are too alike to say how certain this is" in result.verdict
    assert "B cannot be told apart" not in result.verdict
    assert "A is ahead of B by 0.100 on each of these tasks: copies of one task say nothing" in result.verdict

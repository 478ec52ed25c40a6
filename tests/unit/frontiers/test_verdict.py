"""What a comparison allows to say: ties, budgets, floors, groups and intervals."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from paretune.frontiers.comparing import compare, recommend
from paretune.frontiers.settings import Settings
from paretune.runs.store import load_runs
from tests.synthetic import STRATEGIES, Strategy, write_run, write_runs
from tests.unit.frontiers.test_comparing import FULL, LORA, runs

__all__ = ["runs"]  # fixtures


def test_pairing_narrows_the_interval_of_a_difference(runs: Path) -> None:
    comparison = compare(runs)
    width = {e.strategy: e.high - e.low for e in comparison.areas}
    for d in comparison.differences:
        unpaired = np.hypot(width[d.strategy_a], width[d.strategy_b])
        assert d.high - d.low < 0.8 * unpaired


def test_areas_that_cannot_be_told_apart_are_said_to_be(tmp_path: Path) -> None:
    same = [Strategy(name, f"{name}()", 0.0, size) for name, size in (("A", 30), ("B", 10), ("C", 20))]
    write_runs(tmp_path, same, (0,), examples=100)
    (recommendation,) = recommend(tmp_path)
    assert recommendation.certainty == "cannot tell"
    assert recommendation.strategy == "B"
    assert str(recommendation).startswith("Cannot tell; cheapest: B. ")
    assert "these data do not tell which strategy is best" in recommendation.reason
    assert len(recommendation.needed) == 2
    (recommendation,) = recommend(tmp_path, margin=0.5)
    assert recommendation.certainty == "equivalent"
    assert "all differ by less than 0.5 for practical purposes" in recommendation.reason


def test_practical_equivalence_is_decided_by_the_whole_interval(runs: Path) -> None:
    (difference, *_) = compare(runs).differences
    for low, high, expected in [
        (0.02, 0.05, "ahead"),
        (-0.05, -0.02, "behind"),
        (-0.01, 0.01, "equivalent"),
        (-0.01, 0.02, "undecided"),
        (0.005, 0.02, "undecided"),
    ]:
        moved = dataclasses.replace(difference, low=low, high=high, margin=0.01)
        assert moved.practically == expected
    assert difference.ahead + difference.equivalent + difference.behind == pytest.approx(1)
    assert difference.error_examples == pytest.approx((difference.high - difference.low) / 3.92, rel=0.1)
    assert difference.error_seeds is not None
    assert difference.error_seeds > 0


def test_one_example_cannot_be_resampled(tmp_path: Path) -> None:
    write_run(tmp_path, LORA, points=2, examples=1)
    with pytest.raises(ValueError, match="has 1 report example; nothing can be resampled below two"):
        compare(tmp_path)


def test_a_budget_leaves_out_what_does_not_fit(runs: Path) -> None:
    (everything,), (small,) = recommend(runs), recommend(runs, max_trainable=40_000)
    assert everything.strategy == "Compacter"
    assert (small.strategy, small.certainty) == ("BitFit", "alone")
    (fast,) = recommend(runs, max_seconds=24.0)
    assert fast == everything
    with pytest.raises(ValueError, match=r"max_trainable=10 .* smallest trains 31,000 parameters"):
        recommend(runs, max_trainable=10)
    with pytest.raises(ValueError, match=r"max_seconds=1: .* fastest takes 24 s"):
        recommend(runs, max_seconds=1)


def test_one_task_can_be_asked_for(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", [LORA, FULL], (0,), points=3, examples=60)
    write_run(tmp_path / "b", LORA, points=3, examples=80, task="flowers")
    assert [r.task for r in recommend(tmp_path)] == ["digits", "flowers"]
    assert [r.task for r in recommend(tmp_path, task="flowers")] == ["flowers"]
    with pytest.raises(ValueError, match=r"no runs of task 'flower'; did you mean 'flowers'\? Tasks: digits"):
        recommend(tmp_path, task="flower")


def test_floors_make_areas_partial(runs: Path) -> None:
    plain, floored = compare(runs).conditions[0], compare(runs, min_clean=0.75, min_robust=0.2).conditions[0]
    moved = compare(runs, reference=(0.75, 0.2)).conditions[0]
    assert floored.settings == Settings(min_clean=0.75, min_robust=0.2)
    assert [e.area for e in floored.areas] == [e.area for e in moved.areas]
    assert floored.best.area != plain.best.area
    assert "the largest area above clean 0.75 above robust 0.2," in floored.verdict
    with pytest.raises(ValueError, match="min_clean must be"):
        compare(runs, min_clean=80)


def test_both_kinds_of_interval_agree_where_resamples_are_nearly_normal(runs: Path) -> None:
    basic, bca = compare(runs).conditions[0], compare(runs, interval="bca").conditions[0]
    assert bca.settings.interval == "bca"
    for one, other in zip(basic.areas, bca.areas, strict=True):
        assert one.area == other.area
        width = one.high - one.low
        assert other.low == pytest.approx(one.low, abs=0.15 * width)
        assert other.high == pytest.approx(one.high, abs=0.15 * width)
    for d in bca.differences:
        assert (d.p_unadjusted < 0.05) == (d.low > 0 or d.high < 0)
    with pytest.raises(ValueError, match="interval must be 'basic' or 'bca'"):
        compare(runs, interval="percentile")  # type: ignore[arg-type]


def test_groups_are_resampled_instead_of_examples(runs: Path) -> None:
    alone = compare(runs).conditions[0]
    singles = compare(runs, groups={"digits": (np.arange(400), np.arange(200))}).conditions[0]
    assert (alone.groups, singles.groups) == (None, 400)
    assert singles.areas == alone.areas  # groups of one are examples
    run = load_runs(runs)[0]
    hard = np.mean([run.bits(row)["report/robust"] for _, row in run.points.iterrows()], axis=0)
    report = np.argsort(np.argsort(hard, kind="stable"), kind="stable") // 20  # 20 of like difficulty each
    grouped = compare(runs, groups={"digits": (report, np.arange(200) // 10)}).conditions[0]
    assert grouped.groups == 20
    assert [e.area for e in grouped.areas] == [e.area for e in alone.areas]
    for one, other in zip(alone.areas, grouped.areas, strict=True):
        assert other.high - other.low > 1.5 * (one.high - one.low)
    assert "the sampling of test examples in 20 groups and the choice of checkpoints" in grouped.verdict
    assert "There are 20 groups of report examples; below 100, intervals are too narrow." in grouped.notes
    assert not any("groups" in note for note in singles.notes)
    with pytest.raises(ValueError, match=r"groups names the tasks \['digitz'\]"):
        compare(runs, groups={"digitz": (report, report)})
    with pytest.raises(ValueError, match=r"the select split has 200 examples, .* got \(400,\)"):
        compare(runs, groups={"digits": (report, report)})
    with pytest.raises(ValueError, match="the report split has one group"):
        compare(runs, groups={"digits": (np.zeros(400), np.arange(200))})


def test_different_numbers_of_select_examples_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", LORA)
    write_run(tmp_path / "b", FULL, examples_select=100)
    with pytest.raises(ValueError, match=r"chose on different numbers of examples: \[100, 200\]"):
        compare(tmp_path)


def test_every_level_is_named_as_it_is(runs: Path) -> None:
    """99.5 % is not 100 %."""
    (condition,) = compare(runs, level=0.995).conditions
    assert "(99.5% interval" in condition.verdict


def test_a_budget_judges_those_that_it_allows(tmp_path: Path) -> None:
    """Beside a strategy that is too dear, none of the others could be the best; without it, one must be."""
    write_runs(tmp_path, [LORA, Strategy("A", "A()", -0.1, 20), Strategy("B", "B()", -0.2, 10)], (0,))
    (dear,) = recommend(tmp_path)
    assert (dear.confidence_set, dear.certainty) == (("LoRA",), "clear")
    (condition,) = compare(tmp_path).conditions
    within = condition.within(max_trainable=20)
    assert within.recommendation.confidence_set == within.recommendation.tied
    assert within.best.p_best == 1
    assert within.recommended.strategy in within.confidence_set
    (advice,) = recommend(tmp_path, max_trainable=20)
    assert advice == within.recommendation


def test_nothing_is_recommended_where_nothing_is_above_the_floors(runs: Path) -> None:
    (condition,) = compare(runs, min_clean=0.99).conditions
    assert {each.area for each in condition.areas} == {0.0}
    assert condition.certainty == "cannot tell"
    assert "no chosen checkpoint is above (0.99, 0) in both accuracies" in condition.verdict
    assert "have the same area" in condition.verdict


def test_an_interval_holds_its_estimate(tmp_path: Path) -> None:
    """Also where a strict floor and few examples make the area negative or the resamples biased."""
    write_runs(tmp_path, STRATEGIES, (0,), points=12, examples=60, examples_select=60)
    for floor in (0.0, 0.7, 0.85, 0.9):
        for interval in ("basic", "bca"):
            for each in compare(tmp_path, min_clean=floor, interval=interval, resamples=100).areas:  # type: ignore[arg-type]
                assert each.low <= each.area <= each.high


def test_fewer_examples_than_there_are_are_not_asked_for(tmp_path: Path) -> None:
    """Where a difference as wide as the margin would have been found, it is said that there is none."""
    same = [Strategy(name, f"{name}()", 0.0, size) for name, size in (("A", 30), ("B", 10))]
    write_runs(tmp_path, same, (0,), examples=800)
    (advice,) = recommend(tmp_path, margin=0.3)
    (need,) = advice.needed
    assert need.examples is not None
    assert need.examples < 800
    assert advice.would_change[0].startswith(f"A true difference of 0.300 between {need.strategy_a}")
    assert not any("instead of 800" in change for change in advice.would_change)

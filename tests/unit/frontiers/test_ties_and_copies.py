"""What is said of exactly equal areas, of copies, and of differences that others imply: true to the tables beside it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paretune.frontiers.deciding import decide, gap_text
from paretune.frontiers.tables.analysis import Analysis, analyze
from paretune.report.analysis_page import write_analysis
from paretune.report.tables import standing

POINTS = ((0.9, 0.2), (0.8, 0.4), (0.6, 0.5))


def table(gap: dict[str, float], *, groups: str = "AB", seeds: int = 3, spread: float = 0.01) -> pd.DataFrame:
    """For each task, groups that are ``gap`` of robust accuracy behind one another."""
    return pd.DataFrame(
        {
            "task": task,
            "strategy": group,
            "seed": seed,
            "clean": clean,
            "robust": robust - gap[task] * place + spread * seed,
        }
        for task in gap
        for place, group in enumerate(groups)
        for seed in range(seeds)
        for clean, robust in POINTS
    )


def analysed(rows: pd.DataFrame, margin: float = 0.005) -> Analysis:
    return analyze(rows, task="task", seed="seed", margin=margin)


def test_tasks_in_which_all_are_equal_are_nobodys_alone() -> None:
    result = analysed(table({"one": 0.0, "two": 0.0, "three": 0.0}))

    assert result.across is not None
    assert "in every task" not in result.across.verdict
    assert "is ahead of" not in result.across.verdict
    assert "A and B have the same mean area" in result.across.verdict
    assert [winner.sharing for winner in result.across.winners] == [("A", "B")] * 3


def test_a_task_that_is_shared_counts_for_both(tmp_path: Path) -> None:
    result = analysed(table({"even": 0.0, "apart": 0.05}))

    assert result.across is not None
    assert "2 strategies have the largest area of some task" in result.across.verdict
    page = write_analysis(result, tmp_path).read_text()
    assert "<td>2</td><td>apart, even</td>" in page
    assert "<td>1</td><td>even</td>" in page


@pytest.mark.parametrize("gap", [{"one": 0.0}, {"one": 0.0, "two": 0.0}])
def test_nothing_differs_by_less_than_no_margin(gap: dict[str, float]) -> None:
    result = analysed(table(gap), margin=0.0)

    assert "less than 0 " not in result.verdict
    assert "true difference" not in result.verdict
    assert "B has the same area" in result.verdict


def test_one_strategy_alone_in_all_tasks_has_no_largest_area_of_them() -> None:
    rows = table({"one": 0.1, "two": 0.1}, groups="ABC")
    rows = rows[~((rows["task"] == "one") & (rows["strategy"] == "C"))]
    result = analysed(rows[~((rows["task"] == "two") & (rows["strategy"] == "A"))])

    assert result.across is not None
    assert result.across.verdict.startswith("B has a mean area of ")


def test_where_repeats_are_copies_intervals_are_not_said_to_take_just_as_many() -> None:
    (task,) = analysed(table({"one": 0.1}, spread=0.0)).tasks

    assert "areas that are not all equal" in task.covers


def test_a_lead_that_is_the_same_in_each_repeat_is_named_as_the_reason_that_there_is_no_test() -> None:
    (task,) = analysed(table({"one": 0.1})).tasks

    assert task.certainty == "unknown"
    assert task.covers.startswith("Intervals are Student's t over training seeds: ")
    assert any("A is ahead of B by the same amount with each seed" in note for note in task.notes)


def test_what_only_others_tell_apart_is_not_shown_as_told_by_its_own_p_value() -> None:
    p_values = np.full((3, 3), np.nan)
    p_values[0, 1], p_values[1, 2], p_values[0, 2] = 0.01, 0.01, 0.2
    made = decide([0.6, 0.5, 0.4], p_values, level=0.95, margin=0.005)

    assert [standing(made, 0, other, 0.005) for other in (1, 2)] == [
        "told apart",
        "told apart through others",
    ]


def test_a_difference_that_is_not_zero_is_not_written_as_zero() -> None:
    assert [gap_text(gap) for gap in (0.0123, 0.0006, 0.00012, 3e-9)] == ["0.012", "0.001", "0.0001", "3e-09"]

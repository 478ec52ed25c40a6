"""Expected areas against every subset there is."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.frontiers.budget import budget_curves, expected_areas
from paretune.frontiers.cells import chosen_front
from paretune.frontiers.comparing import compare
from paretune.frontiers.pareto import ordered_area
from paretune.runs.store import load_runs
from tests.synthetic import STRATEGIES, write_run, write_runs

ACCURACY = st.one_of(st.integers(0, 4).map(lambda n: n / 4), st.floats(0, 1))
ROWS = st.lists(st.tuples(ACCURACY, ACCURACY, ACCURACY, ACCURACY), min_size=1, max_size=7).map(np.array)


def every_subset(rows: np.ndarray, k: int, reference: tuple[float, float]) -> float:  # type: ignore[type-arg]
    areas = []
    for subset in combinations(range(len(rows)), k):
        some = rows[list(subset)]
        front = chosen_front(some[:, :2], reference)
        areas.append(float(ordered_area(some[front, 2], some[front, 3], reference)))
    return float(np.mean(areas))


@given(ROWS, st.tuples(st.sampled_from([0.0, 0.25, 0.4]), st.sampled_from([0.0, 0.25])))
def test_the_expected_area_is_the_mean_over_all_subsets(
    rows: np.ndarray,  # type: ignore[type-arg]
    reference: tuple[float, float],
) -> None:
    budgets = np.arange(1, len(rows) + 1)
    found, *_ = expected_areas(rows[:, :2], rows[:, 2:], budgets, reference)
    assert found == pytest.approx([every_subset(rows, k, reference) for k in budgets], abs=1e-12)


def test_one_point_gives_the_mean_of_the_rectangles_and_all_points_the_area() -> None:
    rows = np.array([[0.9, 0.2], [0.6, 0.5]])
    found, *_ = expected_areas(rows, rows, np.array([1, 2]), (0.0, 0.0))
    assert found == pytest.approx([(0.18 + 0.3) / 2, 0.36])


@given(ROWS)
def test_without_noise_more_budget_never_costs(rows: np.ndarray) -> None:  # type: ignore[type-arg]
    curve, *_ = expected_areas(rows[:, :2], rows[:, :2], np.arange(1, len(rows) + 1), (0.0, 0.0))
    assert (np.diff(curve) >= -1e-12).all()


def test_curves_end_at_the_areas_of_the_comparison(tmp_path: Path) -> None:
    write_runs(tmp_path, STRATEGIES[:2])
    areas = {each.strategy: each for each in compare(tmp_path, reference=(0.1, 0.0)).areas}
    curves = budget_curves(tmp_path, reference=(0.1, 0.0))
    assert [curve.strategy for curve in curves] == ["Compacter", "LoRA"]
    for curve in curves:
        assert curve.points == tuple(range(1, 9))
        estimate = areas[curve.strategy]
        assert curve.areas[-1] == pytest.approx(estimate.area)
        # The interval of the comparison holds the choice too; this one the examples only.
        width = estimate.high - estimate.low
        assert 0.7 * width < curve.high[-1] - curve.low[-1] < 1.05 * width
        assert all(
            low < area < high for low, area, high in zip(curve.low, curve.areas, curve.high, strict=True)
        )
    with pytest.raises(ValueError, match="level"):
        budget_curves(tmp_path, level=95)


def test_the_poorest_seed_ends_the_curve_and_many_budgets_are_thinned(tmp_path: Path) -> None:
    write_run(tmp_path / "a", STRATEGIES[0], 0, points=60, examples=50)
    write_run(tmp_path / "b", STRATEGIES[0], 1, points=45, examples=50)
    (curve,) = budget_curves(load_runs(tmp_path))
    assert (curve.points[0], curve.points[-1]) == (1, 45)
    assert len(curve.points) <= 40

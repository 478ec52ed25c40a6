"""Expected robustness: the integral is exact, checkpoints are chosen on select, radii are told from other numbers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paretune.report.drawing import as_points
from paretune.report.robustness import expected_robustness, family, robustness_curves
from tests.synthetic import STRATEGIES, write_runs

EPSILONS = (1 / 255, 2 / 255, 4 / 255)


def points_of(rows: list[tuple[int, float, float, float]]) -> pd.DataFrame:
    """Rows of (step, epsilon, robust on select, robust on report); clean is 0.9 on both."""
    columns = ["step", "epsilon", "robust_select", "robust"]
    table = pd.DataFrame(rows, columns=columns).assign(strategy="LoRA", task="digits", threat="Linf")
    table["attack"] = [f"PGD(Linf({epsilon!r}), steps=20)" for epsilon in table["epsilon"]]
    return as_points(table.assign(clean=0.9, clean_select=0.9))


def test_the_mean_over_epsilon_is_that_of_the_broken_line() -> None:
    grid = np.array([0.0, 1.0, 2.0, 4.0])
    assert expected_robustness(grid, np.full(4, 0.7)) == pytest.approx(0.7)
    assert expected_robustness(grid, 1 - grid / 4) == pytest.approx(0.5)
    # 0.8 to 0.6 to 0.4 to 0: (0.7 + 0.5 + 2 * 0.2) / 4
    assert expected_robustness(grid, np.array([0.8, 0.6, 0.4, 0.0])) == pytest.approx(0.4)


def test_the_mean_over_examples_is_that_of_their_accuracy() -> None:
    grid, right = np.array([0.0, 1.0, 3.0]), np.array([[True, True, False], [True, False, False]])
    assert expected_robustness(grid, right) == pytest.approx([2 / 3, 1 / 6])
    assert expected_robustness(grid, right).mean() == pytest.approx(
        expected_robustness(grid, right.mean(axis=0))
    )


def test_a_checkpoint_is_chosen_on_select_and_measured_on_report() -> None:
    (curve,) = robustness_curves(
        points_of([(1, 0.1, 0.5, 0.2), (1, 0.2, 0.4, 0.1), (2, 0.1, 0.3, 0.8), (2, 0.2, 0.2, 0.7)])
    )
    assert curve.steps == (1,)
    assert curve.epsilons == (0.0, 0.1, 0.2)
    assert curve.accuracies == (0.9, 0.2, 0.1)
    assert curve.expected == pytest.approx((0.55 + 0.15) / 2)
    assert curve.attack == "PGD(Linf(ε), steps=20)"


def test_a_checkpoint_without_every_epsilon_is_left_out() -> None:
    rows = [(1, 0.1, 0.5, 0.5), (1, 0.2, 0.4, 0.4), (2, 0.1, 0.9, 0.9)]
    (curve,) = robustness_curves(points_of(rows))
    assert curve.steps == (1,)
    assert robustness_curves(points_of(rows[:1])) == ()


def test_curves_of_runs_are_means_over_their_seeds(tmp_path: Path) -> None:
    attacks = [(f"PGD(Linf({epsilon}), steps=20)", "Linf", epsilon, 1 - 20 * epsilon) for epsilon in EPSILONS]
    points = as_points(write_runs(tmp_path, STRATEGIES[:2], attacks=attacks, points=4, examples=100))
    curves = robustness_curves(points)
    assert [curve.strategy for curve in curves] == ["Compacter", "LoRA"]
    for curve in curves:
        assert curve.epsilons == (0.0, *EPSILONS)
        rows = points[points["label"] == curve.strategy]
        for place, epsilon in enumerate(EPSILONS, start=1):
            at = rows[rows["epsilon"] == epsilon].set_index(["seed", "step"])["robust"]
            of_seeds = [float(at[seed, step]) for seed, step in enumerate(curve.steps)]
            assert curve.accuracies[place] == pytest.approx(np.mean(of_seeds))
            assert (curve.low[place], curve.high[place]) == (min(of_seeds), max(of_seeds))
        assert curve.expected == pytest.approx(
            float(expected_robustness(np.array(curve.epsilons), np.array(curve.accuracies)))
        )


@pytest.mark.parametrize(
    ("attack", "epsilon", "name"),
    [
        ("PGD(Linf(4/255), steps=20)", 4 / 255, "PGD(Linf(ε), steps=20)"),
        ("PGD(L2(0.5), steps=20, step_size=0.1)", 0.5, "PGD(L2(ε), steps=20, step_size=0.1)"),
        ("PGD(L1(20.0), steps=10)", 20.0, "PGD(L1(ε), steps=10)"),
        ("AutoAttack(Linf(1e-05))", 1e-5, "AutoAttack(Linf(ε))"),
    ],
)
def test_the_family_of_an_attack_names_no_radius(attack: str, epsilon: float, name: str) -> None:
    assert family(attack, epsilon) == name

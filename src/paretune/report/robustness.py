"""Accuracy against epsilon, and its mean: the expected robustness of each strategy.

    R = (1 / E) ∫ Acc(eps) d eps over [0, E],

by the trapezoid rule on the epsilons that were evaluated, where Acc(0) is clean accuracy and E the largest of them:
Ngnawe et al., 2025, https://arxiv.org/abs/2509.23325.

As with frontiers, what is chosen is not measured on the same examples: of each seed the checkpoint with the largest R
on the select split is measured on the report split.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from paretune._values import parse_number

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?:/255)?(?![\w.])")


@dataclass(frozen=True)
class RobustnessCurve:
    """One strategy under one attack at several epsilons, averaged over its training seeds."""

    task: str
    threat: str
    attack: str  # with ε for its radius
    strategy: str
    epsilons: tuple[float, ...]  # rising from 0
    accuracies: tuple[float, ...]  # on the report split
    low: tuple[float, ...]  # of the seeds
    high: tuple[float, ...]
    expected: float  # R
    steps: tuple[int, ...]  # of the checkpoint of each seed


def robustness_curves(points: pd.DataFrame) -> tuple[RobustnessCurve, ...]:
    """A curve for each strategy, under each task and each attack that was evaluated at several epsilons.

    Args:
        points: as :func:`paretune.report.drawing.as_points` gives them. Checkpoints that lack one of the epsilons
            are left out.
    """
    curves: list[RobustnessCurve] = []
    if "clean_select" not in points:
        return ()
    named = points.assign(family=[*map(family, points["attack"], points["epsilon"])])
    for (task, threat, attack), rows in named.groupby(["task", "threat", "family"], sort=True):
        epsilons = np.sort(rows["epsilon"].unique())
        if len(epsilons) < 2:
            continue
        for label, of_label in rows.groupby("label", sort=True):
            chosen = [
                choice for _, of_seed in of_label.groupby("seed") if (choice := _choose(of_seed, epsilons))
            ]
            if not chosen:
                continue
            measured = np.stack([accuracies for accuracies, _ in chosen])
            grid = np.append(0.0, epsilons)
            curves.append(
                RobustnessCurve(
                    str(task),
                    str(threat),
                    str(attack),
                    str(label),
                    epsilons=tuple(grid.tolist()),
                    accuracies=tuple(measured.mean(axis=0).tolist()),
                    low=tuple(measured.min(axis=0).tolist()),
                    high=tuple(measured.max(axis=0).tolist()),
                    expected=float(expected_robustness(grid, measured).mean()),
                    steps=tuple(step for _, step in chosen),
                )
            )
    return tuple(curves)


def expected_robustness(
    epsilons: NDArray[np.float64], accuracies: NDArray[np.float64] | NDArray[np.bool_]
) -> NDArray[np.float64]:
    """R of each row.

    Args:
        epsilons: rising from 0, shape ``(epsilons,)``.
        accuracies: shape ``(..., epsilons)``; or which examples are right, for the R of each, whose mean is R.

    >>> expected_robustness(np.array([0.0, 1.0, 3.0]), np.array([0.9, 0.5, 0.1])).round(4)  # (0.7 + 2 * 0.3) / 3
    np.float64(0.4333)
    """
    return np.asarray(np.trapezoid(np.asarray(accuracies, dtype=float), epsilons, axis=-1) / epsilons[-1])


def family(attack: str, epsilon: float) -> str:
    """The attack with ``ε`` wherever it names its radius, so that attacks which differ in nothing else agree."""

    def named(number: re.Match[str]) -> str:
        return "ε" if abs(parse_number("epsilon", number[0]) - epsilon) < 1e-9 else number[0]

    return _NUMBER.sub(named, attack)


def _choose(rows: pd.DataFrame, epsilons: NDArray[np.float64]) -> tuple[NDArray[np.float64], int] | None:
    """Report accuracies at 0 and each epsilon of the checkpoint chosen on select, and its step."""
    grid = np.append(0.0, epsilons)
    best: tuple[float, NDArray[np.float64], int] | None = None
    for _, checkpoint in rows.groupby(["run_index", "step"]):
        if len(checkpoint) < len(epsilons):
            continue
        ordered = checkpoint.sort_values("epsilon")
        select, report = (
            np.append(
                float(ordered["clean" + split].iloc[0]), ordered["robust" + split].to_numpy(dtype=float)
            )
            for split in ("_select", "")
        )
        chosen_by = float(expected_robustness(grid, select))
        if best is None or chosen_by > best[0]:
            best = (chosen_by, report, int(ordered["step"].iloc[0]))
    return best and best[1:]

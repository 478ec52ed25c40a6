"""Volumes and frontiers of three accuracies on points whose answer is known."""

import numpy as np
import pytest

from paretune.frontiers.pareto3d import frontier_mask_3d, volume


@pytest.mark.parametrize(
    ("points", "reference", "expected"),
    [
        ([], (0, 0, 0), 0.0),
        ([(0.5, 0.4, 0.2)], (0, 0, 0), 0.04),
        ([(1.0, 1.0, 1.0), (0.3, 0.2, 0.9)], (0, 0, 0), 1.0),
        ([(0.9, 0.4, 0.5), (0.5, 0.5, 0.6)], (0, 0, 0), 0.18 + 0.15 - 0.10),
        ([(0.9, 0.4, 0.5), (0.5, 0.5, 0.6)], (0.5, 0.2, 0.3), 0.4 * 0.2 * 0.2 / (0.5 * 0.8 * 0.7)),
        ([(0.5, 0.5, 0.5)] * 3, (0, 0, 0), 0.125),
        ([(0.5, 0.5, 0.0), (0.0, 0.5, 0.5)], (0, 0, 0), 0.0),  # on the reference's planes: nothing
    ],
)
def test_volumes_with_a_closed_form(points: list, reference: tuple, expected: float) -> None:  # type: ignore[type-arg]
    columns = np.array(points, dtype=float).reshape(-1, 3).T
    assert volume(*columns, reference) == pytest.approx(expected, abs=1e-15)


def test_equal_points_are_on_the_frontier_once_and_ties_in_one_accuracy_are_decided_by_the_others() -> None:
    points = np.array([(0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.5, 0.6, 0.5), (0.6, 0.1, 0.5), (0.6, 0.1, 0.4)])
    assert [*frontier_mask_3d(*points.T)] == [False, False, True, True, False]
    assert [*frontier_mask_3d(*points[:2].T)] == [True, False]
    assert frontier_mask_3d([], [], []).shape == (0,)
    assert [*frontier_mask_3d([0.0], [0.0], [0.0])] == [True]


def test_what_is_no_accuracy_is_named_and_never_dropped() -> None:
    with pytest.raises(ValueError, match="row 1: shifted must be a finite accuracy"):
        volume([0.9, 0.8], [0.1, 0.2], [0.5, np.nan])
    with pytest.raises(ValueError, match=r"row 0: robust .* divide by 100"):
        frontier_mask_3d([0.9], [45], [0.5])
    with pytest.raises(ValueError, match="clean and robust and shifted must be vectors of one length"):
        volume([0.9], [0.8], [0.1, 0.2])
    for reference in [(0, 0), (0, 0, 1), (0, -1, 0), (0, np.nan, 0)]:
        with pytest.raises(ValueError, match="reference must be three accuracies"):
            volume([0.9], [0.8], [0.7], reference)  # type: ignore[arg-type]

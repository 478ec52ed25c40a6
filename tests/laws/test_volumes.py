"""What must hold of volumes for every set of points; moocore as a witness."""

import itertools

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paretune.frontiers.pareto import area, frontier_mask
from paretune.frontiers.volumes import ordered_volume, volume

# A grid with few values makes ties; floats make the rest.
ACCURACY = st.one_of(st.integers(0, 8).map(lambda n: n / 8), st.floats(0, 1))
POINTS = st.lists(st.tuples(ACCURACY, ACCURACY, ACCURACY), min_size=1, max_size=20).map(np.array)
CORNER = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0, 0.9))
Points = NDArray[np.float64]
Corner = tuple[float, float, float]


@given(POINTS, CORNER)
def test_the_volume_is_the_hypervolume(points: Points, corner: Corner) -> None:
    whole = moocore.hypervolume(points, ref=np.array(corner), maximise=True)
    assert volume(*points.T, corner) == pytest.approx(whole / np.prod(1 - np.array(corner)), abs=1e-12)


@given(POINTS, CORNER)
def test_the_axes_are_alike(points: Points, corner: Corner) -> None:
    expected = volume(*points.T, corner)
    for order in itertools.permutations(range(3)):
        turned = (corner[order[0]], corner[order[1]], corner[order[2]])
        assert volume(*points.T[[*order]], turned) == pytest.approx(expected, abs=1e-12)


@given(POINTS, st.tuples(ACCURACY, ACCURACY, ACCURACY))
def test_a_further_point_never_lowers_the_volume_and_a_dominated_one_never_changes_it(
    points: Points, point: Corner
) -> None:
    before = volume(*points.T)
    assert volume(*np.vstack([points, point]).T) >= before - 1e-12
    assert volume(*np.vstack([points, points[0] * 0.7]).T) == pytest.approx(before, abs=1e-12)


@given(POINTS, CORNER)
def test_points_that_are_alike_under_shift_have_an_area_times_a_height(
    points: Points, corner: Corner
) -> None:
    a0, r0, s0 = corner
    flat = np.full(len(points), points[0, 2])
    expected = area(points[:, 0], points[:, 1], (a0, r0)) * max(0.0, points[0, 2] - s0) / (1 - s0)
    assert volume(points[:, 0], points[:, 1], flat, corner) == pytest.approx(expected, abs=1e-12)


@given(POINTS, CORNER)
def test_in_the_order_of_a_front_the_signed_volume_is_the_volume(points: Points, corner: Corner) -> None:
    front = points[frontier_mask(points[:, 0], points[:, 1])]
    front = front[(front[:, :2] > corner[:2]).all(axis=1)]
    front = front[np.argsort(-front[:, 0])]
    assert ordered_volume(*front.T, corner) == pytest.approx(volume(*front.T, corner), abs=1e-12)


@given(st.lists(POINTS.filter(lambda points: len(points) > 2).map(lambda points: points[:3]), min_size=1))
def test_many_signed_volumes_at_once_are_single_ones(sets: list[Points]) -> None:
    many = np.stack(sets)  # (sets, points, accuracies), in no order
    expected = [float(ordered_volume(*one.T, (0.1, 0.2, 0.3))) for one in many]
    assert ordered_volume(*np.moveaxis(many, -1, 0), (0.1, 0.2, 0.3)) == pytest.approx(expected, abs=1e-12)


@given(POINTS)
def test_the_signed_volume_is_linear_in_clean_and_robust_accuracy(points: Points) -> None:
    """So noise in them, of mean zero and apart from the rest, does not bias it."""
    a, r, s = points.T
    for shift in (0.1, -0.3):
        up, here, down = (ordered_volume(a + turn * shift, r, s) for turn in (1, 0, -1))
        assert up + down == pytest.approx(2 * here, abs=1e-9)
        up, here, down = (ordered_volume(a, r + turn * shift, s) for turn in (1, 0, -1))
        assert up + down == pytest.approx(2 * here, abs=1e-9)


def test_closed_forms() -> None:
    assert volume([1], [1], [1]) == 1
    assert volume([0.5], [0.4], [0.2]) == pytest.approx(0.04)
    assert volume([0.5], [0.4], [0.2], (0.25, 0.2, 0.1)) == pytest.approx(
        0.25 * 0.2 * 0.1 / (0.75 * 0.8 * 0.9)
    )
    assert volume([0.5], [0.4], [0.2], (0.0, 0.4, 0.0)) == 0
    assert volume([], [], []) == 0
    # Three boxes with a common corner: inclusion and exclusion.
    assert volume([0.9, 0.3, 0.3], [0.3, 0.9, 0.3], [0.3, 0.3, 0.9]) == pytest.approx(
        3 * 0.9 * 0.09 - 3 * 0.027 + 0.027
    )


@pytest.mark.parametrize(
    ("points", "reference", "message"),
    [
        (([0.5], [0.5], [1.5]), (0, 0, 0), "row 0: shifted must be a finite accuracy"),
        (([0.5], [0.5, 0.1], [0.5]), (0, 0, 0), "clean and robust and shifted must be vectors of one length"),
        (([0.5], [0.5], [0.5]), (0, 0), r"reference must be three accuracies in \[0, 1\)"),
        (([0.5], [0.5], [0.5]), (0, 1, 0), r"got \(0, 1, 0\)"),
    ],
)
def test_what_is_no_accuracy_is_refused(points, reference, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        volume(*points, reference)

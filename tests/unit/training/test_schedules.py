"""The strength of the attack over training, against the formula."""

import pytest

from paretune.training.schedules import EpsilonSchedule


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        (EpsilonSchedule(), 0.0, 0.0),
        (EpsilonSchedule(), 0.25, 0.0),
        (EpsilonSchedule(), 0.5, 0.5),  # divided by T2 - T1, so there is no jump at the end of the ramp
        (EpsilonSchedule(), 0.75, 1.0),
        (EpsilonSchedule(), 1.0, 1.0),
        (EpsilonSchedule.fixed(), 0.0, 1.0),
        (EpsilonSchedule.linear(), 0.3, 0.3),
        (EpsilonSchedule.linear(0.5), 0.25, 0.5),
        (EpsilonSchedule.two_hinge(0.5, 0.5), 0.49, 0.0),
        (EpsilonSchedule.two_hinge(0.5, 0.5), 0.5, 1.0),
    ],
)
def test_epsilon_follows_the_two_hinges(schedule: EpsilonSchedule, progress: float, factor: float) -> None:
    assert schedule.factor(progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.5), (0.6, 0.5), (0.5, 1.1)])
def test_hinges_out_of_order_are_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"start={start}, end={end}"):
        EpsilonSchedule(start=start, end=end)

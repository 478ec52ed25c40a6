"""Strength and learning rate over training, against the formulas."""

import math

import pytest

from paretune.training.optimizers import AdamW
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


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    rate = AdamW(1e-3, warmup=0.2)
    assert rate.factor(0.1) == pytest.approx(0.5)
    assert rate.factor(0.2) == pytest.approx(1.0)
    assert rate.factor(0.6) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert rate.factor(1.0) == pytest.approx(0.0)
    assert AdamW(decay="none").factor(1.0) == 1.0


@pytest.mark.parametrize(
    "fields", [{"lr": 0}, {"lr": 11}, {"warmup": 1.0}, {"weight_decay": -1}, {"decay": "step"}, {"clip": 0}]
)
def test_an_optimizer_out_of_range_names_the_field(fields) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        AdamW(**fields)

"""The strength of the attack over training, against the formulas."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

import paretune as pt
from paretune._values import from_dict, parse
from paretune.runs.progress import Status
from paretune.runs.rows import read_findings
from paretune.runs.store import load_runs
from paretune.training.schedules import SCHEDULES, EpsilonSchedule, Moment
from tests import tiny
from tests.unit.training.test_loop import same_run


def factors(schedule: EpsilonSchedule, total: int, **moment: Any) -> list[float]:
    return [schedule.factor(Moment(step=step, total=total, **moment)) for step in range(1, total + 1)]


@pytest.mark.parametrize(
    ("schedule", "first_four"),
    [
        (EpsilonSchedule.two_hinge(), [0, 0.25, 0.75, 1]),  # divided by T2 - T1, so there is no jump
        (EpsilonSchedule.two_hinge(0.5, 0.5), [0, 0, 1, 1]),
        (EpsilonSchedule.two_hinge(1.0, 1.0), [0, 0, 0, 0]),
        (EpsilonSchedule.fixed(), [1, 1, 1, 1]),
        (EpsilonSchedule.linear(), [0.125, 0.375, 0.625, 0.875]),
        (EpsilonSchedule.linear(0.5), [0.25, 0.75, 1, 1]),
        (EpsilonSchedule.linear(0.0), [1, 1, 1, 1]),
    ],
    ids=repr,
)
def test_epsilon_follows_its_schedule_in_the_middle_of_each_step(
    schedule: EpsilonSchedule, first_four: list[float]
) -> None:
    assert factors(schedule, 4) == pytest.approx(first_four, abs=1e-12)


def test_per_epoch_the_published_schedule_has_the_published_values() -> None:
    """T1 = 12 and T2 = 37 of 50 epochs; dividing by T2 instead of T2 - T1 would jump from 0.65 to 1 at the end."""
    steps = 7
    schedule = EpsilonSchedule.two_hinge(12 / 50, 37 / 50, per="epoch")
    found = factors(schedule, 50 * steps, per_epoch=steps)
    published = [0.0 if t < 12 else (t - 12) / (37 - 12) if t < 37 else 1.0 for t in range(50)]
    assert found == pytest.approx(np.repeat(published, steps).tolist(), abs=1e-12)
    assert found[36 * steps] == pytest.approx(24 / 25)


def test_a_random_factor_is_uniform_and_follows_from_seed_and_number_alone() -> None:
    schedule = EpsilonSchedule.uniform()
    drawn = factors(schedule, 2000, seed=3)
    assert kstest(drawn, "uniform").pvalue > 0.01
    assert drawn == factors(schedule, 2000, seed=3) != factors(schedule, 2000, seed=4)
    by_epoch = factors(EpsilonSchedule.uniform(per="epoch"), 40, per_epoch=10)
    assert len(set(by_epoch)) == 4
    assert by_epoch == np.repeat(by_epoch[::10], 10).tolist()


def first_attacked(clean: list[float], **fields: Any) -> int | None:
    """The epoch, of 20, in which the attack begins, if it is told of ``clean`` one by one."""
    schedule = EpsilonSchedule.auto(**fields, per="epoch")
    for epoch in range(1, 21):
        known = clean[: epoch - 1]
        asked = [schedule.waits(known[:number]) for number in range(len(known) + 1)]
        told = (
            known[: asked.index(False)] if False in asked else known
        )  # nobody measures what it does not ask for
        if schedule.factor(Moment(step=epoch, total=20, clean=told)) > 0:
            return epoch
    return None


@pytest.mark.parametrize(
    ("clean", "fields", "epoch"),
    [
        # 0.5 is the best for 2 epochs, so 3 are clean; the ramp is 0 in the 4th and begins there.
        ([0.5] * 20, {"patience": 2}, 5),
        ([0.5, 0.519, 0.519] + [0.9] * 17, {"patience": 2}, 5),  # 1.9 % is no improvement
        ([0.5, 0.53, 0.53, 0.53] + [0.9] * 16, {"patience": 2}, 6),  # 3 % is
        ([0.5, 0.515, 0.53, 0.53, 0.53] + [0.9] * 15, {"patience": 2}, 7),  # small ones add up
        ([0.5, 0.3, 0.55, 0.3, 0.55, 0.3], {"patience": 2}, 7),  # a dip alone is not the end
        ([0.5, 0.51], {"patience": 1, "tolerance": 0.0}, None),
        ([n / 20 for n in range(20)], {"patience": 1}, None),  # improves to the end
    ],
)
def test_auto_begins_when_clean_accuracy_has_not_risen(
    clean: list[float], fields: dict[str, Any], epoch: int | None
) -> None:
    assert first_attacked(clean, **fields) == epoch


def test_auto_is_linear_from_where_it_begins_to_the_end() -> None:
    found = factors(EpsilonSchedule.auto(2), 100, per_epoch=10, clean=[0.5, 0.5, 0.5])
    assert found[:30] == [0.0] * 30
    assert found[30:] == pytest.approx([(n + 0.5) / 70 for n in range(70)])


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.5), (0.6, 0.5), (0.5, 1.1)])
def test_hinges_out_of_order_are_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=f"start={start}, end={end}"):
        EpsilonSchedule.two_hinge(start, end)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear(1.1)", "end must be a fraction"),
        ("auto(0)", "patience must be a whole number"),
        ("auto(tolerance=2)", "tolerance must be a difference of accuracies"),
        ("uniform(per='batch')", "per must be 'step' or 'epoch'"),
        ("two_hinge(per='batch')", "per must be 'step' or 'epoch'"),
    ],
)
def test_a_schedule_out_of_range_names_the_field(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text, SCHEDULES)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("fixed", EpsilonSchedule.fixed()),
        ("two_hinge(0.1, 0.5)", EpsilonSchedule.two_hinge(0.1, 0.5)),
        ("linear(0.3, per='epoch')", EpsilonSchedule.linear(0.3, per="epoch")),
        ("auto(patience=2)", EpsilonSchedule.auto(2)),
        ("uniform", EpsilonSchedule.uniform()),
    ],
)
def test_a_schedule_is_read_from_its_name_and_from_its_text(text: str, schedule: EpsilonSchedule) -> None:
    assert parse(text, SCHEDULES) == parse(repr(schedule), SCHEDULES) == schedule
    assert from_dict(schedule.to_dict(), SCHEDULES) == schedule


def test_a_run_measures_clean_accuracy_each_epoch_until_auto_begins(tmp_path: Path) -> None:
    """Also between its evaluation points, of which there is one."""
    schedule = EpsilonSchedule.auto(patience=1, tolerance=0.5)
    tiny.run(tmp_path / "run", steps=20, eval_every=20, batch_size=50, epsilon=schedule)
    epsilon = epsilons(tmp_path / "run")
    (run,) = load_runs(tmp_path / "run")
    per_epoch = round(20 / run.points.epoch.iloc[-1])
    assert 2 * per_epoch < 20
    assert epsilon[: 2 * per_epoch] == [0.0] * (2 * per_epoch)
    rising = [(n + 0.5) / (20 - 2 * per_epoch) * 4 / 255 for n in range(20 - 2 * per_epoch)]
    assert epsilon[2 * per_epoch :] == pytest.approx(rising)


def epsilons(run: Path) -> list[float]:
    return [json.loads(line)["epsilon"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop", [6, 9, 13])
def test_a_stopped_run_knows_the_accuracies_that_auto_waits_for_again(tmp_path: Path, stop: int) -> None:
    fields = {"steps": 20, "eval_every": 8, "batch_size": 50, "epsilon": EpsilonSchedule.auto(1, 0.5)}

    def interrupt(status: Status) -> None:
        if status.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "stopped", progress=interrupt, **fields)
    tiny.run(tmp_path / "stopped", **fields)
    tiny.run(tmp_path / "whole", **fields)
    same_run(tmp_path / "stopped", tmp_path / "whole")
    assert max(epsilons(tmp_path / "whole")) > 0


def test_a_run_that_ends_before_its_attack_begins_says_so(tmp_path: Path) -> None:
    late, clean = EpsilonSchedule.two_hinge(1.0, 1.0), pt.training.Natural()
    tiny.run(tmp_path / "late", epsilon=late, steps=2)
    (finding,) = read_findings(tmp_path / "late")
    assert "never began: with TwoHinge(1.0, 1.0)" in finding["finding"]
    tiny.run(tmp_path / "clean", epsilon=late, steps=2, objective=clean)
    assert not read_findings(tmp_path / "clean")


def test_too_few_epochs_for_auto_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Auto\(\) the attack begins after 6 epochs at the earliest"):
        tiny.run(tmp_path / "run", epsilon=EpsilonSchedule.auto())
    assert not (tmp_path / "run").exists()
    clean = {"objective": pt.training.Natural(), "steps": 2}  # which no schedule concerns
    tiny.run(tmp_path / "run", epsilon=EpsilonSchedule.auto(), **clean)

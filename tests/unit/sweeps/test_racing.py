"""A race takes seeds from strategies that cannot be best any more, decides on the select split, and goes on where it was."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import paretune as pt
from paretune.frontiers import elimination
from paretune.frontiers.race import read_race
from paretune.frontiers.settings import Settings
from paretune.runs.store import Run, load_runs
from paretune.sweeps import racing
from paretune.sweeps.budgets import Budget
from paretune.sweeps.config import CompareConfig, RunConfig, Seeds, Strategies
from paretune.sweeps.costs import Cost, Work
from paretune.sweeps.grid import directory_name
from paretune.sweeps.racing import race
from tests import tiny
from tests.synthetic import STRATEGIES, write_run
from tests.unit.sweeps.test_entry import FEW, own

NAMES = ("LoRA(rank=8)", "Compacter()", "BitFit()", "FullFineTune()")  # in the order of their gains
GAINS = (0.06, 0.05, -0.02, -0.18)


def configs(seeds: Sequence[int] = (0, 1, 2, 3, 4), **options: Any) -> list[RunConfig]:
    strategies = Strategies.read(NAMES)
    return CompareConfig(limit=120, strategies=strategies, seeds=Seeds(seeds), **options).runs()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are written with known frontiers instead of trained; the names of those that were are here, in their order."""
    names: list[str] = []

    def run_all(wanted: Sequence[RunConfig], out: Path, *, resume: bool = True, **options: Any) -> list[Run]:
        runs = []
        for config in wanted:
            path = out / directory_name(config)
            text = f"{NAMES[[*Strategies.read(NAMES)].index(config.strategy)]}"
            gain = dict(zip(NAMES, GAINS, strict=True))[text]
            kind = next(one for one in STRATEGIES if one.name in text)
            if not ((path / "DONE").exists() and resume):
                names.append(f"{kind.name} {config.seed}")
                write_run(path, replace(kind, config=repr(config.strategy), gain=gain), config.seed, points=4)
            runs += load_runs(path)
        return runs

    monkeypatch.setattr(racing, "run_all", run_all)
    monkeypatch.setattr(elimination, "HARDLY", 0.0)  # go on, whatever the seeds that are left may tell
    return names


def test_those_that_are_behind_get_no_more_seeds(tmp_path: Path, made: list[str]) -> None:
    told: list[str] = []
    runs, raced = race(configs(), tmp_path, Settings(), tell=told.append)
    assert {*raced.out} == {"BitFit()", "FullFineTune()"}
    assert raced.stayed == ("LoRA()", "Compacter()")
    assert raced.ended == "seeds"
    assert len(runs) == len(made) == sum(len(each.runs) for each in raced.rounds) < 20
    seeds = {name: sum(each.startswith(name) for each in made) for name in ("LoRA", "FullFineTune")}
    assert seeds["LoRA"] == 5
    assert seeds["FullFineTune"] == 2
    # First one seed of all, then the second of the better half.
    assert [each.split()[1] for each in made[:6]] == ["0"] * 4 + ["1"] * 2
    assert {each.split()[0] for each in made[4:6]} == {"LoRA", "Compacter"}
    assert raced.gradient_evaluations < 0.9 * raced.grid
    assert read_race(tmp_path) == raced
    (lead,) = (each for one in raced.rounds for each in one.out if each.behind == "FullFineTune()")
    assert lead.difference > lead.low > 0
    assert any(line.startswith("round 3, 2 runs: out: ") for line in told)
    assert told[-1] == f"race: {raced.sentence}"
    assert "LoRA and Compacter stay" in raced.sentence


def test_the_report_split_has_no_part_in_it(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = race(configs(), tmp_path, Settings())
    original = Run.bits

    def spoilt(run: Run, row: Any) -> Any:
        return {name: bits ^ name.startswith("report/") for name, bits in original(run, row).items()}

    monkeypatch.setattr(Run, "bits", spoilt)
    _, second = race(configs(), tmp_path, Settings())
    assert second == first


@pytest.mark.slow
def test_a_race_that_was_stopped_takes_the_same_course(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = race(configs(), tmp_path / "whole", Settings())
    course, original = made.copy(), racing.run_all
    for stop in range(len(whole.rounds)):
        made.clear()
        out, calls = tmp_path / f"stopped-{stop}", 0

        def stopping(wanted: Any, *arguments: Any, stop: int = stop, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > stop:  # half of the round is made
                original(wanted[: len(wanted) // 2], *arguments, **options)
                raise KeyboardInterrupt
            return original(wanted, *arguments, **options)

        monkeypatch.setattr(racing, "run_all", stopping)
        with pytest.raises(KeyboardInterrupt):
            race(configs(), out, Settings())
        monkeypatch.setattr(racing, "run_all", original)
        _, again = race(configs(), out, Settings())
        assert made == course
        same = [replace(each, seconds=0.0) for each in whole.rounds]
        assert [replace(each, seconds=0.0) for each in again.rounds] == same
        assert again.ended == whole.ended


def test_called_again_nothing_runs_and_more_seeds_go_on(tmp_path: Path, made: list[str]) -> None:
    _, first = race(configs((0, 1)), tmp_path, Settings())
    before = made.copy()
    assert race(configs((0, 1)), tmp_path, Settings())[1] == first
    assert made == before
    _, more = race(configs((0, 1, 2)), tmp_path, Settings())
    assert made[: len(before)] == before
    assert more.rounds[: len(first.rounds)] == first.rounds
    assert {each.split()[1] for each in made[len(before) :]} == {"2"}


def test_a_budget_is_kept_and_a_larger_one_goes_on(tmp_path: Path, made: list[str]) -> None:
    every = configs()
    work = Work.of(every[0], every[0].check())
    of_run = work.training + work.evaluation
    budget = Budget.read(f"{6 * of_run + 1} gradients")  # two rounds
    _, raced = race(every, tmp_path, Settings(), budget=budget)
    assert raced.ended == "budget"
    assert (len(made), raced.gradient_evaluations) == (6, 6 * of_run)
    assert "the budget has nothing left for another round" in raced.sentence
    _, more = race(every, tmp_path, Settings(), budget=Budget.read("1e12 gradients"))
    assert more.ended == "seeds"
    assert more.rounds[:2] == raced.rounds


def test_a_budget_of_time_counts_what_rounds_took(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = Cost(
        trainable_parameters=1,
        parameters=1,
        setup=50.0,
        clean=0.0,
        attacked=0.0,
        evaluation=0.0,
        peak_memory_bytes=1,
    )
    monkeypatch.setattr(racing, "measured", lambda *_: each)
    with pytest.raises(ValueError, match="too small for one round: 4 runs"):
        race(configs(), tmp_path, Settings(), budget=Budget.read("2 min"), workers=1)
    assert not made
    now = iter(range(0, 10_000, 60))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    _, raced = race(configs(), tmp_path, Settings(), budget=Budget.read("4 min"), workers=1)
    assert [each.seconds for each in raced.rounds] == [60, 60, 60]
    assert raced.ended == "budget"
    assert race(configs(), tmp_path, Settings(), budget=Budget.read("4 min"), workers=1)[1] == raced


def test_a_budget_too_small_for_one_round_is_refused_before_anything_runs(
    tmp_path: Path, made: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"budget='1000 gradients' is too small for one round: 4 runs"):
        race(configs(), tmp_path / "out", Settings(), budget=Budget.read("1000 gradients"))
    assert not made
    assert not (tmp_path / "out").exists()


def test_a_directory_has_one_race(tmp_path: Path, made: list[str]) -> None:
    _, raced = race(configs(), tmp_path, Settings())
    for changed, settings, message in (
        (configs(), Settings(margin=0.1), "with other margin"),
        (configs((1, 0)), Settings(), "with other seeds"),
        (configs()[1:], Settings(), "with other strategies"),
        (configs(epochs=9.0), Settings(), "with other options of the runs"),
    ):
        with pytest.raises(ValueError, match=message):
            race(changed, tmp_path, settings)
    made.clear()
    _, again = race(configs(), tmp_path, Settings(margin=0.5), resume=False)
    assert again.margin == 0.5
    assert made
    (tmp_path / "race.json").write_text(json.dumps({"rounds": 3}))
    with pytest.raises(ValueError, match=r"race\.json is no record of a race"):
        race(configs(), tmp_path, Settings())
    assert raced.margin == 0.005


def test_strategies_within_the_margin_end_it(tmp_path: Path, made: list[str]) -> None:
    _, raced = race(configs(), tmp_path, Settings(margin=0.3))
    assert raced.ended == "equivalent"
    assert not raced.out
    assert len(made) < 20


def test_seeds_that_would_hardly_tell_more_are_not_run(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "HARDLY", 1.0)
    _, raced = race(configs(), tmp_path, Settings())
    assert raced.ended == "futile"
    assert len(made) == 6
    assert "more seeds would hardly tell more of them apart" in raced.sentence


@pytest.mark.parametrize(
    ("text", "gradients", "seconds"),
    [
        ("2h", None, 7200),
        ("90 min", None, 5400),
        ("1.5 hours", None, 5400),
        ("3e6 gradients", 3e6, None),
        ("2,000,000 gradient evaluations", 2e6, None),
    ],
)
def test_budgets_are_read(text: str, gradients: float | None, seconds: float | None) -> None:
    budget = Budget.read(text)
    none = float("inf")
    assert (budget.gradient_evaluations, budget.seconds) == (gradients or none, seconds or none)
    assert Budget.read(budget.plain()) == budget


@pytest.mark.parametrize("text", ["2", "h", "-2h", "0h", "2 weeks", "nan h", "1e99 gradients", "1..2h", None])
def test_other_budgets_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="budget must be a time or a number of gradient evaluations above 0"):
        Budget.read(text)


def raced(out: Path, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = own(10)
    return pt.compare_until(
        tiny.data(), "BitFit,LoRA(rank=2)", (0, 1), backbone=backbone, out=out, **FEW | options
    )


def test_one_call_races_and_judges(tmp_path: Path) -> None:
    outcome = raced(tmp_path)
    assert outcome == raced(tmp_path)
    (condition,) = outcome.conditions
    assert condition.race is not None
    assert condition.race.strategies == ("BitFit", "LoRA(rank=2)")
    runs = len(load_runs(tmp_path))
    assert f"race, by areas on the select split: {runs} of 4 runs" in repr(outcome)
    assert pt.compare(tmp_path) == outcome


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": "bored"}, "until must be 'certain', got 'bored'"),
        ({"budget": "1 gradients"}, "too small for one round"),
        ({"budget": "soon"}, "budget must be a time"),
        ({"by": "volume", "shifts": "Grey()"}, "goes by areas"),
        ({"seeds": (0,)}, "at least two seeds, got 1"),
        ({"strategies": "BitFit"}, "at least two strategies, got 1"),
    ],
)
def test_what_cannot_be_raced_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"strategies": "BitFit,LoRA(rank=2)", "seeds": (0, 1)} | FEW | options
    with pytest.raises(ValueError, match=message):
        pt.compare_until(tiny.data(), backbone=own(10), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_gradient_evaluations_are_those_recorded(tmp_path: Path) -> None:
    raced(tmp_path)
    race_of = read_race(tmp_path)
    assert race_of is not None
    points = pd.concat([run.points for run in load_runs(tmp_path)])
    images = len(tiny.data().select) + len(tiny.data().report)
    evaluation = len(points) * FEW["eval_steps"] * images
    assert race_of.gradient_evaluations == points["gradient_evaluations"].sum() + evaluation

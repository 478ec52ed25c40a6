"""The search for learning rates: the same budget for every strategy, and a choice that the report split has no part in."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import paretune as pt
from paretune._values import LAST_SEED
from paretune.commands.cli import main
from paretune.runs.store import Run, load_runs
from paretune.sweeps import searching
from paretune.sweeps.config import CompareConfig, RunConfig, Seeds, Strategies
from paretune.sweeps.grid import directory_name
from paretune.sweeps.searching import configured, trials, with_rates
from paretune.training.guards import TrainingDiverged, check_divergence
from tests import tiny
from tests.unit.commands.test_cli import SMALL, weights  # noqa: F401
from tests.unit.sweeps.test_entry import FEW, own

TWO = Strategies((pt.BitFit(), pt.LoRA(rank=2)))
SEARCH = FEW | {"epochs": 2, "lr": "auto", "lr_trials": 3}


def swept(out: Path, seeds: Sequence[int] = (0,), **options: Any) -> Any:
    """A sweep of two strategies on the tiny network, in this process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = own(10)
    return pt.sweep(tiny.data(), TWO, seeds, backbone=backbone, out=out, **(SEARCH | options))


def written(out: Path) -> dict[str, Any]:
    return json.loads((out / "lr-search/lr-search.json").read_text())


def test_every_strategy_gets_the_same_trials_and_the_runs_their_rate(tmp_path: Path) -> None:
    outcome = swept(tmp_path)
    tried, runs = load_runs(tmp_path / "lr-search"), load_runs(tmp_path)
    assert len(tried) == 2 * 3
    assert len({run.config["steps"] for run in tried}) == 1
    assert tried[0].config["steps"] * 2 == runs[0].config["steps"]
    assert {run.config["seed"] for run in tried} == {LAST_SEED}
    assert {len(run.points) for run in tried} == {1}
    found = written(tmp_path)
    for strategy in TWO:
        own_rate = strategy.learning_rate
        rates = [
            run.config["optimizer"]["lr"] for run in tried if run.config["strategy_config"] == repr(strategy)
        ]
        assert sorted(rates) == [own_rate / 2, own_rate, own_rate * 2]
        (run,) = (run for run in runs if run.config["strategy_config"] == repr(strategy))
        assert run.config["optimizer"]["lr"] == found["chosen"][repr(strategy)]
        areas = {
            run.config["optimizer"]["lr"]: pt.area(run.points["clean_select"], run.points["robust_select"])
            for run in tried
            if run.config["strategy_config"] == repr(strategy)
        }
        assert areas[found["chosen"][repr(strategy)]] == max(areas.values())
    # Whoever reads the directory finds the comparison alone.
    assert {run.config["seed"] for run in runs} == {0}
    assert pt.compare(tmp_path) == outcome
    assert set(pt.load_points(tmp_path)["seed"]) == {0}


def test_called_again_no_trial_is_repeated_and_the_rates_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, found = swept(tmp_path), written(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("DONE")}
    assert swept(tmp_path) == outcome
    assert written(tmp_path) == found
    swept(tmp_path, seeds=(0, 1))  # more seeds have the same rates
    assert written(tmp_path) == found
    assert len(load_runs(tmp_path)) == 4
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_search_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, begun = RunConfig.run, []

    def run(config: RunConfig, *arguments: Any, **options: Any) -> Run:
        begun.append(config)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return original(config, *arguments, **options)

    monkeypatch.setattr(RunConfig, "run", run)
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "stopped")
    with pytest.raises(FileNotFoundError, match="no run directory"):
        load_runs(tmp_path / "stopped")  # what there is are trials
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("DONE")}
    assert len(times) == 2
    swept(tmp_path / "stopped")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    swept(tmp_path / "whole")
    assert written(tmp_path / "stopped") == written(tmp_path / "whole")


def pretended(
    monkeypatch: pytest.MonkeyPatch, out: Path, results: Sequence[tuple[float, float, float, float] | None]
) -> list[RunConfig]:
    """What a search for BitFit's rate makes of trials with these accuracies: clean and robust on report, then on select."""

    def run_all(configs: Sequence[RunConfig], *_: Any, **__: Any) -> list[Run]:
        names = ("clean", "robust", "clean_select", "robust_select")
        rows = [pd.DataFrame([dict(zip(names, each, strict=True))] if each else []) for each in results]
        return [
            Run(out / directory_name(config), {}, row, done=len(row) > 0)
            for config, row in zip(configs, rows, strict=True)
        ]

    monkeypatch.setattr(searching, "run_all", run_all)
    config = CompareConfig(
        limit=120, strategies=Strategies((pt.BitFit(),)), lr="auto", lr_trials=len(results)
    )
    return with_rates(config.runs(), config, out)


OWN = pt.BitFit().learning_rate


@pytest.mark.parametrize(
    ("results", "factor"),
    [
        # The report split alone would take the first.
        ([(1.0, 1.0, 0.5, 0.1), (0.1, 0.1, 0.5, 0.4), (1.0, 0.9, 0.5, 0.2)], 1.0),
        ([(0.5, 0.1, 0.5, 0.1), (0.5, 0.2, 0.5, 0.2), (0.5, 0.3, 0.5, 0.3)], 2.0),
        # Of equal ones the smaller; what diverged is worse than nothing.
        ([(0.5, 0.2, 0.5, 0.2), (0.5, 0.2, 0.5, 0.2), (0.5, 0.1, 0.5, 0.1)], 0.5),
        ([None, (0.5, 0.0, 0.0, 0.0), None], 1.0),
        # None withstands the attack: clean accuracy decides.
        ([(0.5, 0.0, 0.2, 0.0), (0.5, 0.0, 0.6, 0.0), (0.5, 0.0, 0.3, 0.0)], 1.0),
    ],
)
def test_the_rate_is_chosen_on_the_select_split(
    results: list[Any], factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in pretended(monkeypatch, tmp_path, results):
        assert (config.optimizer.lr or OWN) == OWN * factor
    assert written(tmp_path)["chosen"] == {"BitFit()": OWN * factor}


def test_what_was_tried_and_the_edge_of_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="paretune.sweeps.searching")
    middle = [(0.5, 0.1, 0.5, 0.1), (0.5, 0.4, 0.5, 0.4), (0.5, 0.2, 0.5, 0.2)]
    pretended(monkeypatch, tmp_path / "a", middle)
    steps = round(2.5 * (len(CompareConfig(limit=120).load_data().train) // 32))
    assert f"3 trials of each strategy, each of {steps} steps" in caplog.text
    assert (
        f"BitFit(): {OWN:.2g} is the best of 3 learning rates from {OWN / 2:.2g} to {OWN * 2:.2g}"
        in caplog.text
    )
    assert "clean 0.500 and robust 0.400 on the select split" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    pretended(monkeypatch, tmp_path / "b", sorted(middle))
    (warned,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "a larger one may be better still: it is at the edge of what was tried" in warned


def test_a_strategy_that_diverges_always_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"BitFit\(\) diverged with all of 3 learning rates from .* give a smaller"
    ):
        pretended(monkeypatch, tmp_path, [None] * 3)


def test_a_trial_that_diverges_stops_nothing_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(values: Any, step: int, lr: float, *rest: Any, **options: Any) -> None:
        check_divergence([torch.tensor(float("nan"))] if lr > OWN else values, step, lr, *rest, **options)

    monkeypatch.setattr("paretune.training.measuring.check_divergence", diverging)
    original, begun = RunConfig.run, []

    def run(config: RunConfig, *arguments: Any, **options: Any) -> Run:
        begun.append(config.optimizer.lr)
        return original(config, *arguments, **options)

    monkeypatch.setattr(RunConfig, "run", run)
    outcome = swept(tmp_path)
    assert {area.strategy for area in outcome.areas} == {"BitFit", "LoRA(rank=2)"}
    found = written(tmp_path)
    diverged = [each["lr"] for each in found["trials"].values() if "diverged" in each]
    assert OWN * 2 in diverged
    assert found["chosen"]["BitFit()"] <= OWN
    begun.clear()
    assert swept(tmp_path) == outcome
    assert OWN * 2 not in begun
    assert written(tmp_path) == found


def test_the_seed_of_the_trials_is_none_that_is_compared() -> None:
    config = CompareConfig(strategies=TWO, seeds=Seeds((0, LAST_SEED)), lr="auto")
    tried = trials(config.runs(), config)
    assert {trial.seed for trial in tried} == {LAST_SEED - 1}
    assert len(tried) == 2 * 5
    assert [(trial.optimizer.lr or OWN) / OWN for trial in tried[:5]] == [0.25, 0.5, 1, 2, 4]


def test_a_rate_that_is_given_is_that_of_the_optimizer() -> None:
    config = CompareConfig(strategies=TWO, lr=0.003)
    runs = with_rates(config.runs(), config, "nowhere")
    given = CompareConfig(strategies=TWO, optimizer=pt.training.AdamW(0.003)).runs()
    assert [*map(directory_name, runs)] == [*map(directory_name, given)]
    assert not Path("nowhere").exists()
    own_rates = {strategy: strategy.learning_rate for strategy in TWO}
    plain = CompareConfig(strategies=TWO).runs()
    assert configured(plain, own_rates) == plain  # one run does not get two directories


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1, "optimizer": pt.training.AdamW(0.2)}, "give either lr or that of the optimizer"),
        ({"lr": "fast"}, "lr must be a number, 'auto', or null"),
        ({"lr": 20.0}, "lr must be above 0 and below 10"),
        ({"lr": "auto", "lr_trials": 4}, "lr_trials must be odd"),
        ({"lr": "auto", "lr_trials": 1}, "lr_trials must be a whole number from 3 to 9"),
        ({"lr": "auto", "lr_fraction": 0.0}, "lr_fraction must be above 0 and at most 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)


@pytest.mark.slow
def test_train_searches_in_its_run_directory(
    tmp_path: Path,
    weights: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0}, raising=False)
    out = tmp_path / "run"
    command = ["train", *SMALL, "--weights", weights, "--strategy", "bitfit", "--out", str(out)]
    assert main([*command, "--lr", "auto", "--lr-trials", "3"]) == 0
    (run,) = load_runs(out)
    assert run.config["optimizer"]["lr"] == written(out)["chosen"]["BitFit()"]
    assert main(["runs", "remove", str(out), "--yes"]) == 0
    assert not out.exists()

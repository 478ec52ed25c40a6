"""The study under ``benchmarks/study``: what it runs, what it keeps, and that its page says what its rows say."""

import importlib
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import paretune as pt
from paretune.runs.store import load_runs
from paretune.runs.verifying import problems
from paretune.sweeps.config import RunConfig
from tests import tiny
from tests.synthetic import write_runs

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks/study"


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(STUDY)
    return importlib.import_module("_cells")


@pytest.fixture
def answers(cells: ModuleType) -> ModuleType:
    return importlib.import_module("answers")


def test_every_strategy_of_a_cell_gets_the_same_and_no_two_cells_are_one(cells: ModuleType) -> None:
    every = [*cells.cells(cells.read_study(), Path("there"))]
    assert len({cell.name for cell in every}) == len(every) > 20
    for cell in every:
        comparison, runs = cell.configs()
        assert comparison.lr == "auto"
        assert {(run.strategy, run.seed) for run in runs} == {
            (strategy, seed) for strategy in comparison.strategies for seed in (0, 1, 2)
        }
        assert len({replace(run, strategy=runs[0].strategy, seed=0) for run in runs}) == 1
        assert {cell.confirmed(run).confirm is not None for run in runs if run.seed} == {False}
    for cell in every:
        rival = cell.rival
        if rival is not None:
            assert rival.name in {other.name for other in every} or cell.objective.startswith("ATTA")
            before, after = (some.configs()[1] for some in (rival, cell))
            assert next(replace(run, schedule=after[0].schedule) for run in before) == after[0]


RATES = {"LoRA(rank=8)": 0.02}


def a_cell(cells: ModuleType, out: Path) -> Any:
    """The first cell, as if it had been tuned, and its runs measured at several radii, in ``out``."""
    cell = next(cells.cells(cells.read_study(), Path("there")))
    searched = cells.search_directory(out / cell.name)
    searched.mkdir(parents=True)
    (searched / cells.SEARCH).write_text(json.dumps({"trials": {}, "chosen": RATES}))
    (out / cell.name / cells.RADII).mkdir()
    for seed in range(2):
        (out / cell.name / cells.RADII / f"{seed}.json").write_text(json.dumps({"0": "ff", "1/255": "f0"}))
    return cell


def test_what_is_kept_of_a_cell_is_read_back_and_says_the_same(
    cells: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    runs = [tiny.run(tmp_path / "runs" / str(seed), seed=seed) for seed in range(2)]
    cell = a_cell(cells, tmp_path / "runs")
    about = {"cores": 2, "processor": "of a test"}
    first = cell.keep(tmp_path / "runs", {cells.TUNED: runs}, about).read_bytes()
    assert cell.keep(tmp_path / "runs", {cells.TUNED: runs}, about).read_bytes() == first
    (kept,) = cells.read_all(tmp_path / "unpacked", tmp_path / "results")
    assert kept.told["machine"] == about
    assert kept.told["radii"] == {name: {"0": "ff", "1/255": "f0"} for name in ("0", "1")}
    # Another machine, which has the archive alone, tunes scheduled cells under fixed by the same rates.
    assert cell.rates(tmp_path / "runs") == cell.rates(tmp_path / "elsewhere") == RATES
    with pytest.raises(FileNotFoundError):
        replace(cell, epsilon="1/255").rates(tmp_path / "elsewhere")
    for before, after in zip(runs, kept.runs[cells.TUNED], strict=True):
        pd.testing.assert_frame_equal(before.points, after.points)
        assert not (after.path / "adapter").exists()
        assert problems(after) == []
        for _, row in after.points.iterrows():
            assert {name: right.tolist() for name, right in after.bits(row).items()} == {
                name: right.tolist() for name, right in before.bits(row).items()
            }
    assert str(pt.compare(kept.runs[cells.TUNED])) == str(pt.compare(runs))


@pytest.mark.thorough
def test_what_is_set_aside_of_a_cell_is_not_trained_again(
    cells: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RESULTS", "UNFINISHED"):
        monkeypatch.setattr(cells, name, tmp_path / name)
    shared = {"data": "digits", "img_size": 16, "limit": 200, "points": 1, "train_steps": 1, "eval_steps": 2}
    options = shared | {
        "lr": "auto",
        "lr_trials": 3,
        "epsilon": "2/255",
        "strategies": cells.Strategies.read("BitFit"),
    }
    cell = cells.Cell(
        task="digits",
        objective="AdversarialTraining()",
        schedule="fixed",
        epsilon="2/255",
        options=options | {"seeds": cells.Seeds.read("0"), "epochs": 2},
        confirm={"steps": 2, "queries": 2, "targets": 1},
        radii=["1/255", "2/255"],
    )
    about = {"cores": 2, "processor": "of a test"}
    cell.set_aside(tmp_path / "one", about)
    assert not cell.unfinished.exists()  # nothing is finished
    (before,) = cell.make(tmp_path / "one", 1)[cells.TUNED]
    cell.set_aside(tmp_path / "one", about)
    with tarfile.open(cell.unfinished) as archive:
        assert f"{cells.RADII}/{before.path.name}.json" in archive.getnames()
    whole = replace(cell, options=cell.options | {"seeds": cells.Seeds.read("0, 1")})
    runs = whole.make(tmp_path / "other", 1)
    again = {run.path.name: run for run in runs[cells.TUNED]}
    assert len(again) == 2
    after = again[before.path.name]
    pd.testing.assert_frame_equal(before.points, after.points)  # and the seconds that it took
    assert not (after.path / "adapter").exists()
    assert whole.rates(tmp_path / "one") == whole.rates(tmp_path / "other")
    # A search that was killed has not chosen yet, and what nobody can measure later is not kept.
    searched = cells.search_directory(tmp_path / "one" / cell.name) / cells.SEARCH
    searched.write_text(json.dumps({"trials": {}}))
    (tmp_path / "one" / cell.name / cells.RADII / f"{before.path.name}.json").unlink()
    cell.set_aside(tmp_path / "one", about)
    with tarfile.open(cell.unfinished) as archive:
        assert not [name for name in archive.getnames() if before.path.name in name]
    whole.keep(tmp_path / "other", runs, about)
    assert not cell.unfinished.exists()
    (kept,) = cells.read_all(tmp_path / "unpacked", tmp_path / "RESULTS")
    assert kept.told["radii"].keys() == again.keys()
    assert all(problems(run) == [] for run in kept.runs[cells.TUNED])


def test_a_run_that_diverged_stays_in_without_its_weights(
    cells: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    runs = [tiny.run(tmp_path / "runs" / str(seed), seed=seed) for seed in range(2)]
    (runs[0].path / "DONE").unlink()
    runs[0] = replace(runs[0], done=False)
    a_cell(cells, tmp_path / "runs").keep(
        tmp_path / "runs", {cells.TUNED: runs}, {"cores": 2, "processor": "of a test"}
    )
    (kept,) = cells.read_all(tmp_path / "unpacked", tmp_path / "results")
    first, second = kept.runs[cells.TUNED]
    assert (first.done, second.done) == (False, True)
    assert len(first.points) == len(runs[0].points)
    assert {file.parent.name for file in first.path.rglob("*.safetensors")} == {"bits"}
    assert not (first.path / "adapter").exists()


@pytest.mark.slow
def test_the_model_of_a_run_is_right_at_each_radius_where_its_rows_say_so(
    answers: ModuleType, tmp_path: Path
) -> None:
    radii = importlib.import_module("_radii")
    config = RunConfig(
        data="digits",
        img_size=16,
        limit=200,
        epochs=2,
        points=1,
        strategy=pt.BitFit(),
        epsilon="2/255",
        train_steps=1,
    )
    (run,) = config.run(tmp_path / "run", progress=False)
    packed = radii.measure(config, run, ["1/255", "2/255", "8/255"])
    last = run.points.loc[run.points["step"].idxmax()]
    grid, right = radii.unpack(packed, int(last["examples"]))
    assert grid.tolist() == pytest.approx([0, 1 / 255, 2 / 255, 8 / 255])
    assert right[:, 0].tolist() == run.bits(last)["report/clean"].tolist()
    assert right[:, 2].mean() == pytest.approx(last["robust"], abs=0.02)  # from other random starts
    assert (np.diff(right.astype(int)) <= 0).all()
    assert right[:, 0].any()
    assert not right[:, 3].all()
    kept = answers.Kept(
        dict.fromkeys(("task", "objective", "epsilon", "schedule"), "some") | {"radii": {"run": packed}},
        {answers.TUNED: [run]},
    )
    (row,) = answers.over_epsilon(answers.Study([kept])).to_dict("records")
    means = right.mean(axis=0)
    assert [row["0"], row["8/255"]] == pytest.approx([means[0], means[3]])
    assert row["expected"] == pytest.approx(np.trapezoid(means, [0, 1 / 8, 2 / 8, 1]))
    assert row["low"] <= row["expected"] <= row["high"]


def test_a_run_fails_where_its_last_accuracies_do_not_leave_chance(
    answers: ModuleType, tmp_path: Path
) -> None:
    run = tiny.run(tmp_path)
    last = run.points["step"].idxmax()

    def ending(clean: float, robust: float) -> bool:
        points = run.points.copy()
        points.loc[last, ["clean", "robust", "examples"]] = [clean, robust, 250]
        return answers.failed(replace(run, points=points))

    assert ending(0.11, 0.1)  # of ten classes
    assert ending(0.5, 0.04)
    assert not ending(0.5, 0.2)
    assert answers.failed(replace(run, done=False))


def test_gains_are_after_minus_before_whichever_is_larger(answers: ModuleType, tmp_path: Path) -> None:
    write_runs(tmp_path, points=3)
    runs = load_runs(tmp_path)
    names = answers.strategies(runs)
    one, other = (answers.of(runs, name) for name in names[:2])
    there, back = answers.paired(one, other), answers.paired(other, one)
    assert there.difference == pytest.approx(there.first.area - there.second.area)
    assert (there.difference, there.low, there.high) == pytest.approx(
        (-back.difference, -back.high, -back.low)
    )
    assert there.p_unadjusted == back.p_unadjusted
    assert there.low <= there.difference <= there.high


def test_the_race_over_runs_that_are_there_leaves_who_is_best_and_spends_less(
    answers: ModuleType, tmp_path: Path
) -> None:
    write_runs(tmp_path, points=3)
    runs = [replace(run, points=run.points.assign(gradient_evaluations=100)) for run in load_runs(tmp_path)]
    race = answers.raced(runs)
    assert race.ended is not None or not answers.next_round(race)
    assert race.grid == 100 * len(runs)
    assert 0 < race.gradient_evaluations <= race.grid
    assert "LoRA" in race.stayed


def test_a_panel_that_lacks_strategies_shows_the_others_beside_their_names(answers: ModuleType) -> None:
    shared = {"runs": 3, "quiet": 0, "low": 0.0, "high": 1.0}
    rows = [
        {"schedule": schedule, "strategy": name, "failed": failed, **shared}
        for schedule, names in (("fixed", "ABC"), ("auto", "C"))
        for failed, name in enumerate(names)
    ]
    figure = answers._figures.failures(pd.DataFrame(rows))
    whole, part = figure.axes
    names = [label.get_text() for label in whole.get_yticklabels()]
    assert [*reversed(names)] == ["A", "B", "C"]
    assert [names[round(place)] for _, place in whole.collections[1].get_offsets()] == ["A", "B", "C"]
    assert [names[round(place)] for _, place in part.collections[1].get_offsets()] == ["C"]


def test_numbers_that_are_not_there_are_empty_in_a_table(answers: ModuleType) -> None:
    lines = answers.markdown(pd.DataFrame({"a_b": [0.12345, np.nan], "ok": [True, False]}))
    assert lines == ["| a b | ok |", "| --- | --- |", "| 0.123 | yes |", "|  | no |"]


def test_a_table_with_a_row_for_a_cell_has_a_column_for_a_strategy(answers: ModuleType) -> None:
    cell = dict.fromkeys(answers.IDENTITY, "some")
    frame = pd.DataFrame(
        [
            cell | {"strategy": "A", "slope": 0.123, "low": 0.1, "high": 0.2},
            cell | {"strategy": "B", "slope": np.nan, "low": np.nan, "high": np.nan},
            cell | {"schedule": "other", "strategy": "B", "slope": 1.0, "low": 0.9, "high": 1.1},
        ]
    )
    wide = answers.beside(frame, answers.with_interval("slope"))
    assert wide[["A", "B"]].to_numpy().tolist() == [["0.12 [0.10, 0.20]", ""], ["", "1.00 [0.90, 1.10]"]]


def test_the_cells_are_listed_from_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, str(STUDY / "run.py"), "--cells"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    assert {line.split()[-1] for line in lines} <= {"whole", "begun", "missing"}


@pytest.mark.slow
def test_the_page_tells_what_the_rows_say(answers: ModuleType, tmp_path: Path) -> None:
    study = answers.Study(answers.read_all(tmp_path))
    page = answers.PAGE.read_text("utf-8")
    assert answers.told(page, study) == page
    with pytest.raises(ValueError, match="no place for Q2"):
        answers.told(page.replace("<!-- Q2 -->", ""), study)
    assert len(study.cells) == 6
    assert answers.winners(study)["agree"].all()
    assert answers.races(study)["best_stayed"].all()
    assert not answers.orders(study)[["BitFit", "Compacter"]].any(axis=None)
    failures = answers.failures(study)
    by_schedule = failures.groupby("schedule")[["runs", "failed", "quiet"]].sum()
    assert by_schedule.loc["fixed"].tolist() == [48, 41, 2]
    assert by_schedule.loc["two_hinge"].tolist() == [48, 10, 10]
    gains = answers.scheduling(study)
    rescued = {
        epsilon: [*rows["strategy"][rows["rescued"]]]
        for epsilon, rows in gains.groupby("epsilon", sort=False)
    }
    assert rescued == {
        "2/255": ["FullFineTune", "BitFit", "LoRA", "Compacter", "IA3", "SSF"],
        "4/255": ["FullFineTune", "BitFit", "LoRA", "IA3", "SSF"],
    }
    first = gains[gains["epsilon"] == "2/255"].set_index("strategy")
    assert (first["p"] < 0.05).all()
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    areas = "LoRA has an area of {LoRA:.2f} at 2/255 and full fine-tuning {FullFineTune:.2f}."
    assert areas.format(**first["scheduled"]) in readme
    strict = answers.strict(study)
    assert (strict["gap"] >= 0).all()
    scheduled = strict[strict["schedule"] == "two_hinge"].set_index("strategy")
    for _, of_epsilon in scheduled.groupby("epsilon"):
        assert [*of_epsilon["PGD"].nlargest(4).index] == [*of_epsilon["AutoAttack"].nlargest(4).index]
    small, large = (scheduled[scheduled["epsilon"] == epsilon] for epsilon in ("2/255", "4/255"))
    assert small["gap"].round(3).loc[["FullFineTune", "IA3"]].tolist() == [0.137, 0.016]
    lost = large["gap"] / large["PGD"]
    assert lost["LoRA"].round(2) == 0.28
    assert lost.drop("LoRA").min() > 0.45
    attacked = [
        run
        for cell in study.cells
        if cell.told["objective"] != answers.NATURAL
        for run in cell.runs[answers.TUNED]
    ]
    silent = [answers.failed(run) and not answers.alarms(run) for run in attacked]
    named = [answers.not_robust(run) for run in attacked]
    assert [sum(silent), sum(named)] == [12, 25]
    assert all(now for before, now in zip(silent, named, strict=True) if before)
    quiet = failures[failures["quiet"] > 0]
    assert {*zip(quiet["schedule"], quiet["strategy"], quiet["quiet"], strict=True)} == {
        ("fixed", "LinearProbe", 2),
        ("two_hinge", "LinearProbe", 4),
        ("two_hinge", "Adapter", 3),
        ("two_hinge", "Compacter", 3),
    }
    slopes = answers.tracking(study).dropna()
    odd = slopes[slopes["low"] <= 0]
    assert {*zip(odd["epsilon"], odd["schedule"], odd["strategy"], strict=True)} == {
        *(("4/255", "fixed", name) for name in ("FullFineTune", "LoRA", "SSF", "Compacter")),
        ("4/255", "two_hinge", "LinearProbe"),
    }
    ends = answers.over_epsilon(study).set_index(["schedule", "strategy"])
    alike = ends.loc["fixed"].drop("LinearProbe")
    assert (alike["0"] == alike["8/255"]).all()
    assert {*alike["expected"].round(2)} == {0.10}
    learnt = ends.loc["two_hinge"]["expected"].round(2)
    assert learnt[["LoRA", "SSF", "FullFineTune"]].tolist() == [0.54, 0.44, 0.34]

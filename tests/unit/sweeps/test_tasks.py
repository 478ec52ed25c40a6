"""Several data sets in one sweep: each run learns all, and each has its own frontier, cost and directory."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.runs.progress import Status
from paretune.runs.rows import read_json
from paretune.runs.store import load_runs
from paretune.strategies import trainable_parameters
from paretune.sweeps import costs
from paretune.sweeps.announcing import data_lines
from paretune.sweeps.config import CompareConfig, Strategies
from paretune.sweeps.costs import Work, measured
from paretune.sweeps.entry import GivenRun
from paretune.sweeps.executors.job import steps_done
from paretune.sweeps.grid import directory_name, run_all
from paretune.sweeps.planning import plan
from paretune.sweeps.sources import DataSets, PerTask
from paretune.training.tasks import Tasks
from paretune.watch.progress import Watcher
from tests import tiny
from tests.together import backbone, both, noise
from tests.unit.sweeps.test_costs import Counted, passes

FEW: dict[str, Any] = {"epochs": 1, "points": 2, "train_steps": 1, "eval_steps": 2, "batch_size": 16}
HERE: dict[str, Any] = {"workers": 1, "progress": False}
SIZES = {"digits": 16, "noise": 9}


def bare(*after: nn.Module) -> pt.Backbone:
    """A network for ten and three classes, not adapted."""
    layers = [*pt.remove_adapter(backbone(pt.LinearProbe(), dropout=0.0)).module, *after]
    return pt.Backbone(nn.Sequential(*layers).eval(), image_size=8, sites=["1.norm"], head="5")


def tasks(data: Mapping[str, pt.data.ImageData] | None = None) -> Tasks:
    return Tasks(both() if data is None else data, {"digits": 1.0, "noise": 0.5}, SIZES)


def given(strategy: pt.strategies.Strategy, *after: nn.Module, **options: Any) -> GivenRun:
    """A run of them as a sweep makes it."""
    fields = {
        "data": DataSets.read(["digits", "noise"]),
        "task_weights": PerTask.read("digits=1,noise=0.5"),
        "task_batch_sizes": PerTask.read(SIZES),
        "img_size": 8,
    }
    return GivenRun(**(fields | FEW | options), strategy=strategy, objects=(tasks(), bare(*after)))


def swept(out: Path, data: Any = None, strategies: Any = "BitFit,LoRA(rank=2)", **options: Any) -> Any:
    fields = FEW | HERE | {"seeds": [0], "backbone": bare()} | options
    return pt.sweep(both() if data is None else data, strategies, out=out, **fields)


def test_each_task_is_judged_by_its_own_frontiers_and_nothing_is_repeated(tmp_path: Path) -> None:
    outcome = swept(tmp_path)
    assert [condition.task for condition in outcome.conditions] == ["digits", "noise"]
    for condition in outcome.conditions:
        assert {area.strategy for area in condition.areas} == {"BitFit", "LoRA(rank=2)"}
        assert any("Learnt at once by one model: digits, noise" in note for note in condition.notes)
    runs = load_runs(tmp_path)
    assert len(runs) == 4
    assert all(run.done for run in runs)
    assert pt.compare(tmp_path) == outcome
    times = {run.path: (run.path / "DONE").stat().st_mtime_ns for run in runs}
    assert swept(tmp_path, [both()["digits"], both()["noise"]]) == outcome
    assert {run.path: (run.path / "DONE").stat().st_mtime_ns for run in load_runs(tmp_path)} == times
    assert {*read_json(tmp_path / "sweep.json")["runs"]} == {
        run.path.relative_to(tmp_path).as_posix() for run in runs
    }


def test_a_finished_run_on_other_images_of_one_task_is_refused(tmp_path: Path) -> None:
    config = given(pt.BitFit())
    assert [run.done for run in run_all([config], tmp_path, **HERE)] == [True, True]
    other = replace(config, objects=(tasks({"digits": tiny.data(), "noise": noise(count=120)}), bare()))
    with pytest.raises(ValueError, match="noise has a finished run on other images than noise holds now"):
        run_all([other], tmp_path, **HERE)


def test_the_runs_are_those_that_train_tasks_makes(tmp_path: Path) -> None:
    options = {"task_weights": {"digits": 1, "noise": 0.5}, "task_batch_sizes": SIZES}
    swept(tmp_path / "swept", strategies="BitFit", seeds=[3], **options)
    runs = pt.training.train_tasks(
        pt.adapt(bare(), pt.BitFit(), seed=3),
        both(),
        pt.AdversarialTraining(pt.PGD(pt.Linf(2 / 255), steps=1)),
        out=tmp_path / "trained",
        weights={"digits": 1.0, "noise": 0.5},
        batch_sizes=SIZES,
        steps=given(pt.BitFit()).steps(tasks()),
        attacks=[pt.PGD(pt.Linf(2 / 255), steps=2)],
        batch_size=16,
        points=2,
        seed=3,
        progress=False,
    )
    by_task = {str(run.config["task"]): run for run in load_runs(tmp_path / "swept")}
    for name, run in runs.items():
        assert run.key == by_task[name].key
        assert run.points["robust"].tolist() == by_task[name].points["robust"].tolist()


@pytest.mark.parametrize("awp", [None, 0.01])
def test_gradient_evaluations_are_those_of_all_tasks(
    awp: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in a real run: exact in training, an upper bound in evaluation; and the rows have the same."""
    config = given(pt.BitFit(), Counted(), awp=awp)
    work = Work.of(config, tasks())
    original, evaluated = pt.training.loop.measure, 0

    def measure(*arguments: object) -> object:
        nonlocal evaluated
        before = sum(passes)
        status = original(*arguments)  # type: ignore[arg-type]
        evaluated += sum(passes) - before
        return status

    monkeypatch.setattr("paretune.training.loop.measure", measure)
    passes.clear()
    runs = config.run(tmp_path, progress=False)
    assert sum(passes) - evaluated == work.training == runs[0].points.gradient_evaluations.iloc[-1]
    assert 0 < evaluated <= work.evaluation
    assert work.steps == config.steps(tasks()) == max(len(d.train) // SIZES[n] for n, d in both().items())
    assert work.batch_size == sum(SIZES.values())


def test_costs_are_those_of_a_batch_of_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_ENOUGH", 0.0)
    config = given(pt.BitFit(), Counted(), awp=0.01)
    cost = measured(config, tasks())
    model = pt.adapt(bare(), pt.BitFit())
    assert cost.trainable_parameters == sum(value.numel() for value in trainable_parameters(model).values())
    assert min(cost.clean, cost.attacked, cost.evaluation) > 0
    passes.clear()
    measured(config, tasks())
    assert {16, 9} <= {*passes}


def test_a_run_that_was_stopped_goes_on_and_is_planned_so(tmp_path: Path) -> None:
    config = given(pt.BitFit(), epochs=2.0)
    place = tmp_path / directory_name(config)

    class Stop(BaseException):
        pass

    def stop(status: Status) -> None:
        if status.step == config.steps(tasks()) // 2 + 1:
            raise Stop

    assert steps_done(place, config.places(place)) == 0
    with pytest.raises(Stop):
        config.run(place, progress=stop)
    done = steps_done(place, config.places(place))
    assert done == config.steps(tasks()) // 2
    left = Work.of(config, tasks(), int(done))
    assert left.steps == config.steps(tasks()) - done
    seen = Watcher(tmp_path).look().runs
    assert [run.name for run in seen] == [f"{place.name}/{name}" for name in ("digits", "noise")]
    assert {run.step for run in seen} == {done + 1}  # of the log that both share
    assert {run.state for run in seen} == {"running"}
    config.run(place, progress=False)
    config.run(tmp_path / "whole", progress=False)
    for name in ("digits", "noise"):
        stopped, whole = (load_runs(run / name)[0].points for run in (place, tmp_path / "whole"))
        assert stopped["robust"].tolist() == whole["robust"].tolist()
    assert steps_done(place, config.places(place)) == math.inf
    assert {run.state for run in Watcher(place).look().runs} == {"done"}


def test_what_is_learnt_of_each_is_told_in_a_line() -> None:
    lines = data_lines(tasks(), given(pt.BitFit()))
    assert lines[0] == (
        "2 tasks are learnt at once, by one adapter with a head for each: digits (16 images a step, weight 1), "
        "noise (9 images a step, weight 0.5)"
    )
    assert [line.partition(":")[0] for line in lines[1:]] == ["digits", "noise"]
    assert "3 classes (grey 0, grey 1, grey 2) of 30 images" in lines[2]


def test_learning_rates_are_chosen_by_the_mean_over_the_tasks(tmp_path: Path) -> None:
    options: dict[str, Any] = {"strategies": "BitFit", "epochs": 2, "points": 1, "lr": "auto", "lr_trials": 3}
    swept(tmp_path, **options)
    tried = json.loads((tmp_path / "lr-search/lr-search.json").read_text())["trials"]
    assert len(tried) == 3
    for name, outcome in tried.items():
        runs = load_runs(tmp_path / "lr-search" / name)
        assert len(runs) == 2
        areas = [pt.area(run.points["clean_select"], run.points["robust_select"]) for run in runs]
        assert outcome["area"] == pytest.approx(sum(areas) / 2, abs=1e-12)
        clean = [run.points["clean_select"].iloc[-1] for run in runs]
        assert outcome["clean_select"] == pytest.approx(sum(clean) / 2, abs=1e-12)
    assert len(load_runs(tmp_path)) == 2


def test_one_task_that_fails_ends_the_run_of_all(tmp_path: Path) -> None:
    """Its labels have nothing to do with its images; the finding names it, and the rows of both end there."""
    torch.manual_seed(0)
    blind = noise(count=300, kinds=10, name="blind")
    images = torch.rand(300, 3, 8, 8)
    blind = pt.data.ImageData.from_tensors(images, torch.arange(300) % 10, blind.classes, "blind")
    easy = noise(count=300)
    fields = {"stop_on_failure": True, "epochs": 10, "points": 5, "schedule": pt.EpsilonSchedule.fixed()}
    swept(tmp_path, [easy, blind], "FullFineTune", backbone=bare(), **fields | {"lr": 0.02})
    easy_run, blind_run = sorted(load_runs(tmp_path), key=lambda run: run.config["task"], reverse=True)
    assert easy_run.config["task"] == "noise"
    stopped = [json.loads((run.path / "DONE").read_text())["stopped"] for run in (easy_run, blind_run)]
    assert stopped[0] == stopped[1]
    assert "transfer failure" in stopped[0]["why"]
    assert stopped[0]["why"].endswith("(in the task blind)")
    assert easy_run.points.step.tolist() == blind_run.points.step.tolist()
    assert easy_run.points.clean.iloc[-1] > 0.5
    assert easy_run.points.step.max() == stopped[0]["step"] < easy_run.config["steps"]


def test_images_of_other_sizes_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one shape .*noise \(3, 16, 16\).*same img_size"):
        swept(tmp_path / "out", {"digits": tiny.data(), "noise": noise(size=16)})
    with pytest.raises(ValueError, match=r"13 logits, digits \+ noise 14 classes"):
        swept(tmp_path / "out", {"digits": tiny.data(), "noise": noise(kinds=4)})
    with pytest.raises(ValueError, match="task_weights must name each task once: digits, noise"):
        swept(tmp_path / "out", task_weights={"digits": 1})
    assert not (tmp_path / "out").exists()


def test_alone_and_together_are_told_apart(tmp_path: Path) -> None:
    """A strategy that learnt a task alone, and with others, is two rows of its table."""
    alone = bare()
    alone.module[-1] = nn.Linear(32, 3)
    alone = pt.Backbone(alone.module, image_size=8, sites=["1.norm"])
    swept(tmp_path / "together", strategies="BitFit")
    swept(tmp_path / "alone", noise(), "BitFit", backbone=alone)
    assert {area.strategy for area in pt.compare(tmp_path).conditions[0].areas} == {"BitFit"}  # of digits
    labels = [{area.strategy for area in condition.areas} for condition in pt.compare(tmp_path).conditions]
    assert labels[1] == {"BitFit alone", "BitFit with digits"}


@pytest.mark.thorough
def test_a_comparison_of_several_tasks_is_planned(tmp_path: Path) -> None:
    config = CompareConfig(
        data=["digits", "again=digits"],  # type: ignore[arg-type]
        strategies=Strategies((pt.BitFit(),)),
        img_size=24,
        limit=120,
        **{name: value for name, value in FEW.items() if name != "epochs"},
        epochs=0.5,
    )
    planned = plan(config, tmp_path, workers=1)
    assert planned.data.splitlines()[0].startswith("2 tasks are learnt at once")
    (bitfit,) = planned.strategies
    data = config.runs()[0].check()
    assert bitfit.runs[0].work == Work.of(config.runs()[0], data)
    assert bitfit.runs[0].work.batch_size == 32
    assert planned.seconds > 0

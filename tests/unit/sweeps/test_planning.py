"""What a comparison would run is said before it runs, and nothing is written."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune._values import LAST_SEED
from paretune.commands.cli import main
from paretune.runs.disk import write_json
from paretune.sweeps import planning
from paretune.sweeps.config import CompareConfig, RunConfig, Seeds, Strategies
from paretune.sweeps.costs import Cost, makespan
from paretune.sweeps.grid import directory_name
from paretune.sweeps.planning import plan
from paretune.sweeps.searching import trials
from tests.unit.commands.test_cli import SMALL, weights  # noqa: F401

TWO = Strategies((pt.BitFit(), pt.LoRA(rank=2)))


def cost(config: RunConfig, threads: int) -> tuple[Cost, float]:
    """A second for each image and each gradient evaluation, ten times that for LoRA."""
    each = 10.0 if isinstance(config.strategy, pt.LoRA) else 1.0
    made = Cost(
        trainable_parameters=10,
        parameters=1000,
        setup=0.0,
        clean=each,
        attacked=each,
        evaluation=each,
        peak_memory_bytes=10**9,
    )
    return made, 7.0


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are known without a measurement."""
    monkeypatch.setattr(planning, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
    monkeypatch.setattr(planning, "_measured", cost)


def task(weights: str, **options: Any) -> CompareConfig:  # noqa: F811
    small = {"backbone": "timm:test_resnet", "weights": weights, "img_size": 32, "limit": 120, "epochs": 1.0}
    small |= {"points": 2, "eval_steps": 1, "train_steps": 1, "batch_size": 16, "strategies": TWO}
    return CompareConfig(**(small | {"seeds": Seeds((0, 1))} | options))


def test_what_is_finished_or_begun_is_not_planned_again(
    tmp_path: Path,
    weights: str,  # noqa: F811
    pretended: None,
) -> None:
    config, out = task(weights), tmp_path / "out"
    fresh = plan(config, out, workers=2)
    assert not out.exists()
    bitfit, lora = fresh.strategies
    assert (bitfit.strategy, lora.strategy) == ("BitFit()", "LoRA(rank=2)")
    # 4 steps of 16 images, and 20 + 30 images at each of two points.
    assert [run.seconds for run in bitfit.runs] == [4 * 16 + 2 * 50] * 2
    assert fresh.seconds == 7 + makespan([164, 1640, 164, 1640], 2)

    runs = config.runs()
    paths = [out / directory_name(run) for run in runs]
    runs[0].run(paths[0], progress=False)
    stop = KeyError("stopped")

    def stopped(status: Any) -> None:
        if status.step == 3:
            raise stop

    with pytest.raises(KeyError):
        runs[1].run(paths[1], progress=stopped)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    begun = plan(config, out, workers=2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    bitfit, lora = (planned.to_dict() for planned in begun.strategies)
    assert [run["finished"] for run in bitfit["runs"]] == [True, False]
    assert [run["done_steps"] for run in lora["runs"]] == [2, 0]
    assert (bitfit["steps"], lora["steps"]) == (4, 6)
    assert [run["seconds"] for run in bitfit["runs"]] == [0, 164]
    assert [run["seconds"] for run in lora["runs"]] == [820, 1640]
    assert begun.seconds == 7 + makespan([820, 164, 1640], 2)
    over = plan(config, out, workers=2, resume=False)
    assert over.seconds == fresh.seconds
    (paths[0] / "DONE").write_text("{")
    with pytest.raises(ValueError, match="DONE"):
        plan(config, out)


def test_trials_of_a_search_are_planned_before_the_runs(
    tmp_path: Path,
    weights: str,  # noqa: F811
    pretended: None,
) -> None:
    config = task(weights, strategies=Strategies((pt.BitFit(),)), lr="auto", lr_trials=3)
    search, runs = plan(config, tmp_path, workers=1).strategies
    assert (search.trials, len(search.runs), runs.trials, len(runs.runs)) == (True, 3, False, 2)
    assert {run.steps for run in search.runs} == {2}
    assert all(f"seed{LAST_SEED}" in run.directory.name for run in search.runs)
    tried = [directory_name(trial) for trial in trials(config.runs(), config)]
    rate = pt.BitFit().learning_rate
    known = {
        name: {
            "strategy": "BitFit()",
            "lr": rate * factor,
            "area": area,
            "clean_select": 0.5,
            "robust_select": 0.1,
        }
        for name, factor, area in zip(tried, (0.5, 1.0, 2.0), (0.1, 0.1, 0.2), strict=True)
    }
    known[tried[0]] = {"strategy": "BitFit()", "lr": rate / 2, "diverged": True}
    write_json(tmp_path / "lr-search/lr-search.json", {"trials": known})
    search, runs = plan(config, tmp_path, workers=1).strategies
    assert [run.seconds > 0 for run in search.runs] == [False, True, True]  # which are not on the disk
    found = task(weights, strategies=Strategies((pt.BitFit(),)), lr=2 * rate)
    assert [run.directory for run in runs.runs] == [
        run.directory for run in plan(found, tmp_path, workers=1).strategies[0].runs
    ]


def test_the_command_prints_a_table_or_json(
    tmp_path: Path,
    weights: str,  # noqa: F811
    pretended: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["plan", *SMALL, "--weights", weights, "--strategies", "BitFit,LoRA(rank=2)", "--workers", "2"]
    assert main(command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("digits: 120 images at 32x32: 70 to train on")
    assert "BitFit 10 1.00% 2 8 224 400" in told
    assert "all 4 16 448 800" in told
    # 64 + 2 * 100 seconds of BitFit, ten times that for LoRA: the second of both go to the worker that is free first.
    assert told.endswith(f"2 runs at once: about {round((7 + 264 + 264 + 2640) / 60)} minutes")
    assert main([*command, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [each["strategy"] for each in made["strategies"]] == ["BitFit()", "LoRA(rank=2)"]
    assert made["strategies"][1]["training_gradients"] == 224
    assert made["seconds"] == 7 + 264 + 264 + 2640
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]

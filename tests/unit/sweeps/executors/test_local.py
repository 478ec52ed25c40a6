from pathlib import Path

import pytest

from paretune.runs.store import load_runs
from paretune.strategies import BitFit, LinearProbe
from paretune.sweeps.config import RunConfig
from paretune.sweeps.executors import Job, local

SMALL = {"limit": 60, "epochs": 1, "points": 1, "train_steps": 0, "eval_steps": 1}


@pytest.mark.slow
def test_a_worker_loads_the_data_of_a_task_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int | str | None] = []
    load = RunConfig.load_data

    def counted(config: RunConfig) -> object:
        loaded.append(config.limit)
        return load(config)

    monkeypatch.setattr(RunConfig, "load_data", counted)
    monkeypatch.setattr(local, "_loaded", None)
    runs = [
        RunConfig(**SMALL, strategy=LinearProbe(), seed=0),
        RunConfig(**SMALL, strategy=BitFit(), seed=1),
        RunConfig(**SMALL | {"limit": 80}, strategy=LinearProbe(), seed=0),
    ]
    for number, config in enumerate(runs):
        local._make(Job(config=config, path=tmp_path / str(number)))
    assert loaded == [60, 80]
    first, second, other = (load_runs(tmp_path / str(number))[0].config["data"] for number in range(3))
    assert first == second != other

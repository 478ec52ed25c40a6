"""Runs are called what tells them apart."""

from pathlib import Path

from paretune.report.runs import run_names, run_settings
from paretune.runs.store import load_runs
from tests.synthetic import STRATEGIES, write_run


def test_names_are_paths_below_what_all_share(tmp_path: Path) -> None:
    for name in ("a/seed0", "a/seed1", "b/seed0"):
        write_run(tmp_path / "runs" / name, STRATEGIES[0], points=1, where=name)
    runs = load_runs(tmp_path)
    assert run_names(runs) == ["a/seed0", "a/seed1", "b/seed0"]
    assert run_names(runs[:1]) == ["seed0"]


def test_settings_that_differ_within_a_task_are_told(tmp_path: Path) -> None:
    for number, rate in enumerate((0.01, 0.02)):
        optimizer = {"name": "AdamW", "lr": rate}
        write_run(tmp_path / f"{number}", STRATEGIES[0], points=1, optimizer=optimizer, steps=7)
    write_run(tmp_path / "other", STRATEGIES[1], points=1, task="other", optimizer={"lr": 0.5}, steps=9)
    assert run_settings(load_runs(tmp_path)) == [
        "LoRA(rank=8), optimizer.lr=0.01",
        "LoRA(rank=8), optimizer.lr=0.02",
        "Compacter()",
    ]

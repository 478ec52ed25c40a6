"""A run that tries first what broke the model at its evaluation point before."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from torch import Tensor

import paretune as pt
from paretune.attacks import Attack
from paretune.frontiers.comparing import compare
from paretune.runs.progress import Status
from paretune.runs.store import load_runs
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name
from tests import tiny
from tests.unit.training.test_resuming import Stop

ATTACKS = [pt.PGD(pt.Linf(radius), steps=3) for radius in (8 / 255, 16 / 255)]
OPTIONS: dict[str, Any] = {
    "attacks": ATTACKS,
    "steps": 60,
    "eval_every": 15,
    "objective": pt.training.Natural(),
    "optimizer": pt.training.AdamW(5e-3),
    "shifts": [pt.shifts.Rotation(30)],
    "attack_elsewhere": True,
}


def test_fewer_examples_are_attacked_and_none_passes_that_is_broken_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the same but for the bits; what it keeps is in its checkpoint, and gone at the end."""
    counts, attacked = {}, [0]
    whole = Attack.on_set

    def on_set(self: Attack, model: Any, images: Tensor, *arguments: Any, **options: Any) -> Tensor:
        attacked[0] += len(images)
        return whole(self, model, images, *arguments, **options)

    monkeypatch.setattr(Attack, "on_set", on_set)
    for reuse in (False, True):
        attacked[0] = 0
        tiny.run(tmp_path / str(reuse), reuse=reuse, **OPTIONS)
        counts[reuse] = attacked[0]
    assert counts[True] < 0.9 * counts[False]
    plain, reusing = (load_runs(tmp_path / str(reuse))[0] for reuse in (False, True))
    assert [*plain.points["step"]] == [*reusing.points["step"]]
    assert (plain.path / "adapter/adapter_model.safetensors").read_bytes() == (
        reusing.path / "adapter/adapter_model.safetensors"
    ).read_bytes()
    names = {path.name for path in plain.path.iterdir()}
    assert names == {path.name for path in reusing.path.iterdir()}
    for (_, row), (_, other) in zip(plain.points.iterrows(), reusing.points.iterrows(), strict=True):
        bits = reusing.bits(other)
        assert {key.rpartition("/")[0] for key in bits} > {"report", "select"}
        for key, right in plain.bits(row).items():
            if key.endswith("/clean"):
                assert np.array_equal(bits[key], right)
            else:
                assert not (bits[key] & ~right).any()
    assert "reuse" not in plain.config  # as before there was such an option
    assert reusing.config["reuse"] is True


def test_candidates_are_in_the_checkpoint_of_the_point_that_they_are_of(tmp_path: Path) -> None:
    def stop(status: Status) -> None:
        if status.step == 16:
            raise Stop

    for reuse in (False, True):
        with contextlib.suppress(Stop):
            tiny.run(tmp_path / str(reuse), **OPTIONS, reuse=reuse, progress=stop)
        with safe_open(tmp_path / str(reuse) / "checkpoint.safetensors", "numpy") as file:
            kept = {name: file.get_tensor(name) for name in file.keys() if name.startswith("replays/")}  # noqa: SIM118
        splits = {name.split("/")[1] for name in kept}
        assert splits == ({"report", "select", "elsewhere-0"} if reuse else set())
        (run,) = load_runs(tmp_path / str(reuse))
        assert [*run.points["step"].unique()] == [15]
        if reuse:
            for attack, row in zip(ATTACKS, run.points.to_dict("records"), strict=True):
                bits = run.bits(row)
                for split in ("report", "select"):
                    broken = bits[f"{split}/clean"] & ~bits[f"{split}/robust"]
                    assert np.array_equal(kept[f"replays/{split}/{attack!r}/largest"] > 0, broken)
                    changes = kept[f"replays/{split}/{attack!r}/changes"]
                    assert changes.dtype == np.int8
                    assert len(changes) == broken.sum() > 0


def test_the_name_of_a_run_says_so_only_where_it_is_so() -> None:
    names = [directory_name(RunConfig(strategy=pt.LoRA(), reuse=reuse)) for reuse in (False, True)]
    assert names[0] == "lora-seed0-cea9ba22"  # as before there was such an option
    assert names[1] != names[0]


def test_a_comparison_says_where_only_some_runs_tried_earlier_examples_first(tmp_path: Path) -> None:
    for seed, reuse in ((0, False), (1, True)):
        tiny.run(tmp_path / str(seed), pt.BitFit(), seed=seed, reuse=reuse)
    notes = {
        runs: [
            note
            for note in compare(tmp_path / runs, resamples=100).conditions[0].notes
            if "Some runs tried" in note
        ]
        for runs in ("0", "1", ".")
    }
    assert [len(some) for some in notes.values()] == [0, 0, 1]

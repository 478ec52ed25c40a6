"""Whatever a run keeps from step to step, it has again when it goes on."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.runs.progress import Status
from paretune.training import EWC, L2SP, FeatureDistillation
from tests import tiny
from tests.unit.training.test_loop import same_run

MEMORY = pt.training.ATTA(pt.PGD(pt.Linf(4 / 255), steps=1), reset=2)
AT = pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=2))
VARIANTS: dict[str, dict[str, Any]] = {
    "ema": {"ema": 0.9},
    "awp": {"awp": 0.01},
    "parts": {"accumulate": 4},
    "bf16": {"mixed_precision": "bf16"},
    "best": {"keep": "clean"},
    "best of averages": {"keep": "robust", "ema": 0.5, "optimizer": pt.training.AdamW(0.5)},
    "patience": {"keep": "harmonic", "patience": 1, "optimizer": pt.training.AdamW(0.5), "steps": 24},
    "reuse": {"reuse": True, "attacks": [pt.PGD(pt.Linf(r), steps=3) for r in (2 / 255, 8 / 255)]},
    "memory": {"objective": MEMORY, "steps": 24, "augmentation": "flip+crop"},
    "L2-SP": {"objective": AT + L2SP(alpha=5), "strategy": pt.LoRA(rank=2)},
    "EWC": {"objective": AT + 50 * EWC(examples=20), "strategy": pt.Adapter(reduction=4, bn="adapt")},
    "features": {"objective": AT + FeatureDistillation(), "strategy": pt.LoRA(rank=2)},
    "all": {"ema": 0.9, "awp": 0.01, "accumulate": 2, "keep": "area", "patience": 5},
}


class Stop(BaseException):
    """As a kill: nothing after it runs."""


@pytest.mark.some(6)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_run_ends_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    options = {"eval_every": 3, "epsilon": pt.EpsilonSchedule.fixed()} | VARIANTS[name]
    tiny.run(tmp_path / "whole", **options)
    for last in (2, 3, 5, 8):

        def stop(status: Status, last: int = last) -> None:
            if status.step == last:
                raise Stop

        assert not (tmp_path / "stopped/DONE").exists()
        with contextlib.suppress(Stop):  # some end before
            tiny.run(tmp_path / "stopped", progress=stop, **options)
    tiny.run(tmp_path / "stopped", **options)
    same_run(tmp_path / "whole", tmp_path / "stopped")
    assert not [*tmp_path.rglob("best.safetensors")]

"""Losses in half precision; weights, attacks and measurements stay in float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import paretune as pt
from paretune.training.checkpoints import Kept
from paretune.training.precision import MixedPrecision
from tests import tiny


def config(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((path / "config.json").read_text())
    return read


def test_only_the_losses_are_rounded(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    model.module[-1].register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    run = tiny.run(tmp_path / "half", model=model, mixed_precision="bf16")
    assert torch.bfloat16 in seen
    assert "forward" not in model.__dict__
    seen.clear()
    scores = pt.evaluate(model, tiny.data().report, [pt.PGD(pt.Linf(4 / 255), steps=3)])
    assert torch.bfloat16 not in seen
    assert scores.clean_accuracy == run.points.clean.iloc[-1]
    assert next(iter(scores.robust.values())).mean() == run.points.robust.iloc[-1]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert set(run.points.precision) == {"bf16"}
    # The same process trains in float32 next, and near by.
    whole = tiny.run(tmp_path / "whole")
    assert set(whole.points.precision) == {"fp32"}
    losses = [
        [json.loads(line)["loss"] for line in (each.path / "log.jsonl").read_text().splitlines()]
        for each in (run, whole)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_what_the_launcher_says_counts_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    tiny.run(tmp_path / "run", steps=2)
    assert config(tmp_path / "run")["mixed_precision"] == "bf16"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    with pytest.raises(ValueError, match="mixed_precision: 'bf16' there, 'no' here"):
        tiny.run(tmp_path / "run", steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of"),
        ({"mixed_precision": "fp16"}, "needs a CUDA device"),
        ({"ema": 1.0}, "ema is the decay"),
        ({"ema": -0.1}, "ema is the decay"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if torch.cuda.is_available() and "fp16" in options.values():
        return
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_scale_of_float16_gradients_goes_into_checkpoints_and_back() -> None:
    """As on a GPU: the scaler alone runs on a CPU too."""
    first, second = (MixedPrecision(torch.device("cpu")) for _ in range(2))
    for precision in (first, second):
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loss = torch.zeros((), requires_grad=True) * 1.0
    first.scaler.scale(loss)
    first.scaler.update(4.0)
    kept: Kept = first
    second.scaler.scale(loss)
    second.load(kept.tensors())
    assert second.scaler.get_scale() == first.scaler.get_scale() == 4.0

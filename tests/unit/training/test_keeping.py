"""A run ends with the point that its rule prefers on the select split, and may stop waiting for a better one."""

import json
from pathlib import Path

import pytest
import torch

import paretune as pt
from paretune.training.keeping import Keep
from tests import tiny

FALLS = {"optimizer": pt.training.AdamW(2.0, warmup=0.99), "steps": 24, "eval_every": 2, "seed": 3}


@pytest.mark.some(2)
@pytest.mark.parametrize("rule", ["clean", "robust", "harmonic", "area"])
def test_the_model_is_that_of_the_best_point_on_the_select_split(rule, tmp_path: Path) -> None:
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    run = tiny.run(tmp_path / "run", model=model, keep=rule, **FALLS)
    points = run.points
    a, b = points.clean_select, points.robust_select
    scores = {"clean": a, "robust": b, "harmonic": 2 * a * b / (a + b), "area": a * b}[rule].fillna(0)
    best = points.loc[scores.idxmax()]  # the earliest of equal ones
    done = json.loads((run.path / "DONE").read_text())
    assert done["kept_step"] == best.step
    assert "stopped" not in done
    assert best.step < 24  # or the test would show nothing
    assert pt.evaluate(model, tiny.data().report).clean_accuracy == best.clean
    other = tiny.backbone(pt.FullFineTune(bn="adapt"))
    pt.remove_adapter(other)
    pt.load_adapter(other, run.path / "adapter")
    images = tiny.data().report[:8][0]
    assert torch.equal(other.eval()(images), model.eval()(images))
    assert run.examples().pictures.step == best.step


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", keep="clean", patience=2, **FALLS)
    points, done = run.points, json.loads((run.path / "DONE").read_text())
    best = points.step.loc[points.clean_select.idxmax()]
    assert points.step.iloc[-1] == best + 4 < 24
    assert "no point after step" in done["stopped"]["why"]
    assert len((run.path / "log.jsonl").read_text().splitlines()) == points.step.iloc[-1]


@pytest.mark.parametrize(
    ("keep", "patience", "message"),
    [
        ("last", 1, "needs a rule"),
        ("clean", 0, "patience must be a whole number"),
        ("best", None, "rule must be"),
    ],
)
def test_wrong_rules_are_refused(keep, patience, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keep(keep, patience)

"""What shifts make of the report split is measured at each point, kept, and chooses nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paretune as pt
from paretune.interchange.files import read_adapter
from paretune.runs.rows import elsewhere_of
from paretune.runs.store import Run, load_runs
from tests import tiny
from tests.unit.evaluation.test_shifts import Both

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=3)


def train(out: Path, **changes: Any) -> Run:
    options: dict[str, Any] = {"steps": 6, "eval_every": 3, "attacks": [ATTACK], "progress": False} | changes
    data = pt.load_data("digits", img_size=8, limit=200)
    objective = pt.AdversarialTraining(pt.PGD(pt.Linf(4 / 255), steps=2))
    return pt.train(tiny.backbone(pt.BitFit()), data, objective, out=out, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shifts")
    train(root / "shifted", shifts=[Both()], shift_limit=20, attack_elsewhere=True)
    train(root / "plain")
    return root


def test_bits_are_those_of_an_evaluation_of_the_saved_adapter(finished: Path) -> None:
    (run,) = load_runs(finished / "shifted")
    data, model = pt.load_data("digits", img_size=8, limit=200), pt.remove_adapter(tiny.backbone(pt.BitFit()))
    pt.load_adapter(model, run.path / "adapter")
    last = run.points.iloc[-1]
    bits, said = run.bits(last), elsewhere_of(last)
    assert [*said] == ["inverted", "noisy 1"]
    scores = pt.evaluate(model, data.report.first(20), [ATTACK], shifts=[Both()], attack_elsewhere=True)
    for name, there in scores.elsewhere.items():
        np.testing.assert_array_equal(bits[f"elsewhere/{name}/clean"], there.clean)
        np.testing.assert_array_equal(bits[f"elsewhere/{name}/robust"], there.robust[ATTACK])
        assert said[name]["examples"] == 20
        assert said[name]["shift"] == there.shift
        assert said[name]["paired"] is True


def test_shifts_change_nothing_else(finished: Path) -> None:
    """Neither the adapter, nor the rows of the splits, nor what is said of the data."""
    (with_shifts,), (plain,) = load_runs(finished / "shifted"), load_runs(finished / "plain")
    for field in ("clean", "robust", "clean_select", "robust_select", "report_id", "data"):
        assert [*with_shifts.points.get(field, [])] == [*plain.points.get(field, [])]
    assert with_shifts.config["data"] == plain.config["data"]
    assert with_shifts.key != plain.key
    assert with_shifts.config["shift_limit"] == 20
    assert "shifts" not in plain.config
    adapters = [read_adapter(finished / name / "adapter") for name in ("shifted", "plain")]
    (config, tensors), (other, expected) = adapters
    assert config["notes"]["data"] == other["notes"]["data"]
    for name in expected:
        np.testing.assert_array_equal(tensors[name].numpy(), expected[name].numpy())


def test_other_shifts_are_another_run(finished: Path) -> None:
    with pytest.raises(ValueError, match="another configuration: shift_limit: 20 there, 10 here"):
        train(finished / "shifted", shifts=[Both()], shift_limit=10, attack_elsewhere=True)

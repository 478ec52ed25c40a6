"""Sweeps and commands take any objective: by its text, from a file or as it is."""

from pathlib import Path

import pytest

import paretune as pt
from paretune.commands import parser
from paretune.runs.store import load_runs
from paretune.strategies import LoRA
from paretune.sweeps.config import RunConfig
from paretune.sweeps.grid import directory_name
from paretune.training import FARE, TRADES, AdversarialTraining, Natural
from tests.unit.sweeps.test_entry import FEW, Pixels, own

TASK = pt.PGD(pt.Linf(2 / 255), steps=3)  # of the defaults


def chosen(*arguments: str) -> RunConfig:
    called = parser.read(["train", *arguments])
    assert called is not None
    assert isinstance(called[0], RunConfig)
    return called[0]


def test_without_one_it_follows_from_train_steps() -> None:
    assert chosen().minimised == chosen("--objective", "null").minimised == AdversarialTraining(TASK)
    assert chosen("--train-steps", "0").minimised == Natural()


def test_it_takes_the_attack_of_the_task_unless_it_has_its_own(tmp_path: Path) -> None:
    mixed = chosen("--objective", "TRADES(beta=3) + 0.1*FARE()")
    assert mixed.minimised == TRADES(TASK, beta=3) + 0.1 * FARE(TASK)
    (tmp_path / "c.yaml").write_text("objective: TRADES(beta=3) + 0.1*FARE()\nbalance: weights\n")
    assert chosen("--config", str(tmp_path / "c.yaml")).minimised == mixed.minimised
    named = chosen("--objective", "AdversarialTraining(PGD(L2(0.5), steps=1))", "--train-steps", "0")
    assert named.minimised == AdversarialTraining(pt.PGD(pt.L2(0.5), steps=1))
    with pytest.raises(
        ValueError, match=r"objective=TRADES\(\) trains against an attack, but train_steps is 0"
    ):
        RunConfig(objective=TRADES(), train_steps=0)
    with pytest.raises(TypeError, match="objective must be an objective"):
        RunConfig(objective="TRADES()")  # type: ignore[arg-type]


def test_each_objective_and_balance_has_its_own_directory() -> None:
    names = [
        directory_name(RunConfig(strategy=LoRA(), **changes))  # type: ignore[arg-type]
        for changes in (
            {},
            {"objective": TRADES()},
            {"objective": TRADES(beta=3)},
            {"objective": TRADES(label_smoothing=0.1)},
            {"balance": "weights"},
            {"balance": "sampling"},
        )
    ]
    assert len(set(names)) == len(names)


def test_a_sweep_takes_it_as_a_text_or_as_it_is(tmp_path: Path) -> None:
    arguments = {
        "strategies": "BitFit",
        "seeds": "0",
        "backbone": own(4),
        "out": tmp_path,
        "epsilon": 2 / 255,
        **FEW,
    }
    first = pt.sweep(Pixels(), objective="TRADES(beta=3)", balance="sampling", **arguments)  # type: ignore[arg-type]
    again = pt.sweep(Pixels(), objective=TRADES(beta=3), balance="sampling", **arguments)  # type: ignore[arg-type]
    assert again == first
    (run,) = load_runs(tmp_path)
    assert run.config["objective"] == TRADES(pt.PGD(pt.Linf(2 / 255), steps=1), beta=3).to_dict()
    assert run.config["balance"] == "sampling"
    with pytest.raises(ValueError, match="did you mean TRADES"):
        pt.sweep(Pixels(), objective="TRADS", **arguments)  # type: ignore[arg-type]

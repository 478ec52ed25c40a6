"""The failures are named when they happen and not otherwise, and end a run where that is wanted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.runs.rows import read_findings
from paretune.training import record
from paretune.training.guards import (
    TrainingDiverged,
    catastrophic_overfitting,
    check_divergence,
    no_robustness,
    transfer_failure,
)
from tests import tiny
from tests.unit.training.test_loop import same_run


def test_nan_stops_and_names_step_and_remedy() -> None:
    check_divergence([torch.tensor(1.0), torch.tensor([2.0, 3.0])], 3, 0.1)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(TrainingDiverged, match=r"at step 3 with learning rate 0\.1.*AdamW\(0\.03\)"):
            check_divergence([torch.tensor(1.0), torch.tensor([2.0, bad])], 3, 0.1)


def test_catastrophic_overfitting_is_a_gap_between_the_two_attacks() -> None:
    assert "catastrophic overfitting" in (catastrophic_overfitting(0.8, 0.02, 0.1) or "")
    assert catastrophic_overfitting(0.8, 0.5, 0.1) is None  # robust
    assert catastrophic_overfitting(0.2, 0.02, 0.1) is None  # not yet trained


def test_transfer_failure_is_chance_under_attack() -> None:
    assert "transfer failure" in (transfer_failure(0.11, 0.1, 400, 4 / 255) or "")
    assert transfer_failure(0.11, 0.1, 400, 0.0) is None  # the attack has not started
    assert transfer_failure(0.5, 0.1, 400, 4 / 255) is None


def test_no_robustness_is_what_a_constant_answer_has_where_clean_images_are_told_apart() -> None:
    assert "no robustness: of the select split 30% are right without an attack, but 4% under PGD" in (
        no_robustness(0.3, 0.04, 0.1, 400, "PGD") or ""
    )
    assert no_robustness(0.3, 0.12, 0.1, 400, "PGD")  # two standard errors are 0.03
    assert no_robustness(0.3, 0.14, 0.1, 400, "PGD") is None
    assert no_robustness(0.11, 0.04, 0.1, 400, "PGD") is None  # a transfer failure


SHORT: dict[str, Any] = {"steps": 20, "eval_every": 8}


def findings(run: Path) -> dict[int, list[str]]:
    """The first words of what was found, by step."""
    found: dict[int, list[str]] = {}
    for noted in read_findings(run):
        if not noted["finding"].startswith("frozen batch norms"):  # as all networks here have
            found.setdefault(noted["step"], []).append(noted["finding"].partition(":")[0])
    return found


def failing_to_transfer() -> dict[str, Any]:
    """An attack under which nothing is learnt."""
    objective = pt.AdversarialTraining(pt.PGD(pt.Linf(0.9), steps=2))
    return {"objective": objective, "epsilon": pt.EpsilonSchedule.fixed(), **SHORT}


def test_transfer_failure_is_found_when_a_tenth_of_training_is_over(tmp_path: Path) -> None:
    tiny.run(tmp_path / "run", **failing_to_transfer())
    assert min(findings(tmp_path / "run")) == 2 == math.ceil(20 / 10)
    assert findings(tmp_path / "run")[2] == ["transfer failure"]
    later = failing_to_transfer() | {"epsilon": pt.EpsilonSchedule.two_hinge(0.3, 0.3)}
    tiny.run(tmp_path / "later", **later)  # the attack is not on yet
    assert 2 not in findings(tmp_path / "later")


def test_a_run_that_fails_is_measured_and_finished_there_if_that_is_wanted(tmp_path: Path) -> None:
    model = tiny.backbone(pt.FullFineTune())
    run = tiny.run(tmp_path / "run", model=model, stop_on_failure=True, **failing_to_transfer())
    assert run.done
    assert list(run.points.step) == [2]
    assert findings(tmp_path / "run") == {2: ["transfer failure", "stopped after 2 of 20 steps"]}
    stopped = json.loads((tmp_path / "run/DONE").read_text())["stopped"]
    assert stopped["step"] == 2
    assert stopped["why"] == run.points.stopped.iloc[-1]
    assert stopped["why"].startswith("transfer failure: clean accuracy")
    assert run.examples().pictures.step == 2
    notes = json.loads((tmp_path / "run/adapter/paretune.json").read_text())["notes"]
    assert (notes["steps"], notes["stopped"]) == (2, stopped["why"])
    assert [row["clean"] for row in notes["results"]] == list(run.points.clean)
    scores = pt.evaluate(model, tiny.data().report)  # the adapter is that of the step
    assert scores.clean_accuracy == run.points.clean.iloc[-1]
    again = tiny.run(
        tmp_path / "run",
        model=tiny.backbone(pt.FullFineTune()),
        stop_on_failure=True,
        **failing_to_transfer(),
    )
    assert list(again.points.step) == [2]
    with pytest.raises(ValueError, match="stop_on_failure"):
        tiny.run(tmp_path / "run", **failing_to_transfer())


@pytest.mark.parametrize("where", ["save_adapter", "save_checkpoint"])
def test_a_run_that_is_interrupted_while_it_stops_ends_the_same(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(record, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(tmp_path / "stopped", stop_on_failure=True, **failing_to_transfer())
    assert not (tmp_path / "stopped/DONE").exists()
    run = tiny.run(tmp_path / "stopped", stop_on_failure=True, **failing_to_transfer())
    assert list(run.points.step) == [2]
    tiny.run(tmp_path / "whole", stop_on_failure=True, **failing_to_transfer())
    same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_that_only_clean_images_show_to_have_learnt_is_named_at_its_end(tmp_path: Path) -> None:
    probe: dict[str, Any] = {"strategy": pt.LinearProbe(), "steps": 60, "eval_every": 30}
    probe["optimizer"] = pt.training.AdamW(5e-2)
    trained = {"at": pt.Linf(0.1), "beyond": pt.Linf(0.05), "elsewhere": pt.L2(0.5)}
    for name, threat in trained.items():
        attacks = [pt.PGD(pt.Linf(0.1), steps=3)]
        objective = pt.AdversarialTraining(pt.PGD(threat, steps=2))
        run = tiny.run(tmp_path / name, objective=objective, attacks=attacks, stop_on_failure=True, **probe)
        assert list(run.points.step) == [30, 60]
        assert findings(tmp_path / name) == ({60: ["no robustness"]} if name == "at" else {})
        assert run.points.robust_select.iloc[-1] < 0.15 < 0.2 < run.points.clean_select.iloc[-1]
    tiny.run(tmp_path / "natural", **probe | {"objective": pt.training.Natural()})
    assert not findings(tmp_path / "natural")


def test_a_sound_run_is_not_stopped(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", steps=60, eval_every=30, stop_on_failure=True)
    assert list(run.points.step) == [30, 60]
    assert not findings(tmp_path / "run")
    assert "stopped" not in run.points


class Scaled(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def with_layer(layer: nn.Module, place: int, strategy: Any) -> pt.Backbone:
    """The tiny network with a layer before its layer ``place``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [*tiny.network().eval()]
    network = nn.Sequential(*layers[:place], layer, *layers[place:])
    return pt.adapt(pt.Backbone(network, image_size=8), strategy)


def test_gradients_that_vanish_are_found_at_an_evaluation_point(tmp_path: Path) -> None:
    """Logits so large that the softmax saturates withstand a gradient attack without being robust."""
    model = with_layer(Scaled(1e4), 5, pt.FullFineTune(bn="adapt"))
    natural = {"objective": pt.training.Natural(), "optimizer": pt.training.AdamW(1e-6), "steps": 60}
    run = tiny.run(tmp_path / "run", model=model, stop_on_failure=True, eval_every=30, **natural)
    assert run.points.robust.iloc[-1] == run.points.clean.iloc[-1] > 0
    (found,) = findings(tmp_path / "run").values()
    assert found[0].startswith("zero gradients for")
    assert found[1].startswith("stopped after")


class Rounding(nn.Module):
    """Leaves a few grey levels, and no gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.detach() * 4).round() / 4


def test_a_model_without_gradients_of_its_images_can_be_measured_and_is_named(tmp_path: Path) -> None:
    model = with_layer(Rounding(), 0, pt.FullFineTune(bn="adapt"))
    changes = {"objective": pt.training.Natural(), "attacks": [pt.attacks.Square(pt.Linf(0.1), queries=5)]}
    tiny.run(tmp_path / "run", model=model, **changes, **SHORT)
    assert all(found[0].startswith("zero gradients for") for found in findings(tmp_path / "run").values())
    assert list(findings(tmp_path / "run")) == [8, 16, 20]


@pytest.mark.parametrize(
    ("strategy", "factor", "rate"),
    [
        (pt.LoRA(rank=2), 0.0, 1e-2),  # no gradient but zeros; weight decay still changes the factors
        (pt.IA3(), 1.0, 1e-12),  # steps too short to change a float32
    ],
    ids=["zeros", "short"],
)
def test_an_adapter_that_does_not_move_is_found_at_the_first_point(
    tmp_path: Path, strategy: Any, factor: float, rate: float
) -> None:
    model = with_layer(Scaled(factor), 5, strategy)
    changes = {"optimizer": pt.training.AdamW(rate), "objective": pt.training.Natural(), **SHORT}
    tiny.run(tmp_path / "run", model=model, **changes)
    found = findings(tmp_path / "run")
    assert "no adapter parameter moved" in found.pop(8)
    assert not any("no adapter parameter moved" in later for later in found.values())


def test_catastrophic_overfitting_is_found_where_one_step_attacks_train(tmp_path: Path) -> None:
    """FGSM with a random start at a large radius withstands itself, and nothing else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 64, 3, padding=1), *(nn.Conv2d(64, 64, 3, 2, 1) for _ in range(2))]
        convolutions = [part for layer in layers for part in (layer, nn.ReLU())]
        network = nn.Sequential(
            *convolutions, nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )
    model = pt.adapt(pt.Backbone(network.eval(), image_size=8), pt.FullFineTune())
    threat = pt.Linf(0.3)
    run = tiny.run(
        tmp_path / "run",
        model=model,
        objective=pt.AdversarialTraining(pt.attacks.FGSM(threat)),
        epsilon=pt.EpsilonSchedule.linear(0.3),
        steps=300,
        eval_every=50,
        optimizer=pt.training.AdamW(5e-3, schedule="constant"),
        attacks=[pt.PGD(threat, steps=10)],
        stop_on_failure=True,
    )
    ((step, found),) = findings(tmp_path / "run").items()
    assert found == ["catastrophic overfitting", f"stopped after {step} of 300 steps"]
    assert run.points.step.iloc[-1] == step < 300


def test_a_probe_and_an_adapter_that_waits_for_it_are_no_failure(tmp_path: Path) -> None:
    natural = {"objective": pt.training.Natural(), **SHORT}
    tiny.run(tmp_path / "probe", strategy=pt.LinearProbe(), **natural)
    tiny.run(tmp_path / "waits", freezing=pt.training.LPFT(0.5), **natural)
    assert not findings(tmp_path / "probe")
    assert not findings(tmp_path / "waits")
    model = with_layer(Scaled(0.0), 5, pt.LoRA(rank=2))
    tiny.run(tmp_path / "never", model=model, freezing=pt.training.LPFT(0.5), **natural)
    assert "no adapter parameter moved" in findings(tmp_path / "never")[16]

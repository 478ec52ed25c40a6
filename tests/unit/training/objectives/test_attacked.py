"""What the objectives share: texts, the attack of the task, label smoothing, and what they cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.attacks import APGD
from paretune.attacks.copy.twin import Twin
from paretune.training import FARE, MART, OBJECTIVES, TRADES, AdversarialTraining, Natural, Objective
from paretune.training.objectives import Sum, read_objective
from tests import tiny
from tests.unit.training.objectives.batches import (
    ATTACK,
    THREAT,
    batch,
    close,
    loss_and_gradient,
    network,
    without_dropout,
)

EACH = [AdversarialTraining(ATTACK), TRADES(ATTACK), MART(ATTACK), Natural() + 0.5 * FARE(ATTACK)]
PLAIN = [Natural(), AdversarialTraining(ATTACK), TRADES(ATTACK)]


@pytest.mark.parametrize(
    "objective", [*EACH, TRADES(ATTACK, beta=2.5, label_smoothing=0.1), MART(ATTACK, beta=3), TRADES()]
)
def test_they_print_as_the_text_that_makes_them(objective: Objective) -> None:
    assert read_objective(repr(objective)) == objective
    assert read_objective(objective.to_dict()) == objective
    assert hash(read_objective(objective.to_dict())) == hash(objective)


def test_texts_are_read_without_an_attack_and_take_that_of_the_task() -> None:
    made = read_objective("TRADES(beta=6) + 0.1*fare + 2*Natural()")
    assert repr(made) == "TRADES() + 0.1 * FARE() + 2.0 * Natural()"
    assert made.lacks_attack
    filled = made.against(THREAT, 3)
    assert filled == TRADES(ATTACK) + 0.1 * FARE(ATTACK) + 2 * Natural()
    assert not filled.lacks_attack
    assert filled.against(pt.L2(1), 9) == filled
    own = read_objective("MART(PGD(L2(0.5), steps=4))")
    assert own.against(THREAT, 3) is own
    assert set(OBJECTIVES) >= {"TRADES", "MART", "FARE", "AdversarialTraining", "Natural"}
    assert "Attacked" not in OBJECTIVES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PGD(Linf(4/255))", "is no objective; there are: .*TRADES"),
        ("TRADS()", "did you mean TRADES"),
        ("TRADES(lam=3)", "did you mean beta"),
        ("TRADES(attack=PGD(Linf(4/255)))", "did you mean inner"),
        ("TRADES(beta=-1)", "beta must be a number of at least 0"),
        ("Natural(label_smoothing=1)", "label_smoothing must be a number of at least 0 and below 1"),
        ("TRADES(FAB(Linf(4/255)))", "stops at the first success"),
        ("MART(3)", "inner must be an attack"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_objective(text)


@pytest.mark.parametrize("objective", [TRADES(), Natural() + 0.1 * FARE()])
def test_training_without_an_attack_that_is_wanted_is_refused(objective: Objective, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names no attack to train against; name it, e\.g\. inner=PGD"):
        tiny.run(tmp_path / "run", objective=objective)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", [Natural, AdversarialTraining, TRADES])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_is_that_of_torch(objective: Any, smoothing: float) -> None:
    model, examples = network(), batch(epsilon=0.0)
    made = objective(label_smoothing=smoothing)
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)(model(examples.images), examples.labels)
    expected = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
    assert close(loss_and_gradient(made, model, examples, examples.images), expected)


def test_the_accuracy_in_the_log_is_that_of_the_attacked_term_of_a_sum() -> None:
    model, examples = network(), batch()
    made: Any = (Natural() + TRADES(ATTACK)).begin(None, None, 0)  # type: ignore[arg-type]
    moved = examples.images.flip(0)
    _, logits = made.loss(model, examples, [None, moved])
    assert torch.equal(logits, model(moved))


@pytest.mark.parametrize(
    ("objective", "evaluations", "clean"),
    [
        (Natural(), 1, 1),
        (AdversarialTraining(ATTACK), 4, 1),
        (AdversarialTraining(pt.FGSM(THREAT)), 2, 1),
        (TRADES(ATTACK), 5, 1),
        (MART(ATTACK), 5, 1),
        (Natural() + FARE(ATTACK), 5, 2),
        (0.5 * TRADES(ATTACK) + 0.5 * MART(ATTACK), 10, 2),
    ],
)
def test_the_cost_is_what_the_model_sees(
    objective: Objective, evaluations: int, clean: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: images that go forward through the network or its attack copy with a gradient."""
    from tests.unit.training.objectives.batches import copies

    counted = 0
    logits = Twin.logits

    def count(number: int) -> None:
        nonlocal counted
        counted += number * torch.is_grad_enabled()

    monkeypatch.setattr(Twin, "logits", lambda self, images: count(len(images)) or logits(self, images))
    model = without_dropout(pt.LoRA(rank=2))
    for epsilon, expected in ((8 / 255, evaluations), (0.0, clean)):
        examples, term = batch(6, epsilon=epsilon, classes=10), objective.begin(model, tiny.data(), 0)
        fresh = copies(model)
        term.attacked(fresh, examples)  # the first look at a model takes passes of its own
        counted = 0
        attacked = term.attacked(fresh, examples)
        handle = model.register_forward_hook(lambda _, inputs, __: count(len(inputs[0])))
        term.loss(model, examples, attacked)
        handle.remove()
        assert counted == 6 * expected
        assert objective.gradient_evaluations(10, attacked=epsilon > 0) == expected


def test_rows_have_the_cost_so_far(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", objective=TRADES(pt.PGD(THREAT, steps=2)), steps=10, batch_size=20)
    attacked = {4: 1, 8: 5, 10: 7}  # steps, as the schedule (0.25, 0.75) attacks from the fourth on
    for step, cost in zip(run.points.step, run.points.gradient_evaluations, strict=True):
        assert cost == 20 * (4 * attacked[step] + (step - attacked[step]))


def test_apgd_trains_too() -> None:
    assert AdversarialTraining(APGD(THREAT, steps=4)).gradient_evaluations(10) == 5


def test_a_sum_is_at_work_only_after_begin() -> None:
    assert isinstance(Natural() + FARE(ATTACK), Sum)
    with pytest.raises(NotImplementedError, match="begin"):
        FARE(ATTACK).loss(network(), batch(), None)

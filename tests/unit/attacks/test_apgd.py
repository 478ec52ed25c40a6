from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paretune.attacks import APGD, L1, L2, Linf, Threat
from paretune.attacks.apgd import _checkpoints
from paretune.attacks.base import Oracle
from paretune.attacks.copy.options import CopyOptions
from tests.unit.attacks.victims import Counting, Liar, Linear, batch, exact_copy, from_logits, right


class Passes(Oracle):
    """Remembers the oracles, so that a test can read what they counted."""

    made: list["Passes"]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        type(self).made.append(self)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> type[Passes]:
    Passes.made = []
    monkeypatch.setattr("paretune.attacks.base.Oracle", Passes)
    return Passes


def test_checkpoints_are_those_of_the_paper() -> None:
    # 0.22, then each interval 0.03 shorter, down to 0.06 (Croce & Hein 2020, section 3.2), for 100 steps.
    assert list(_checkpoints(100, False)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _checkpoints(100, False)[57] == 16
    assert list(_checkpoints(100, True)) == list(range(4, 101, 4))
    assert _checkpoints(1, False) == {1: 1}


def test_the_step_is_halved_and_the_best_point_taken_up_again_where_the_loss_stops_growing() -> None:
    # One pixel, a hill at 0.52: steps of 2 · epsilon jump over it, so only halving finds the top.
    model = from_logits(lambda x: torch.cat([0 * x + 5, -((x - 0.52) ** 2)], dim=1))
    attack = APGD(Linf(0.2), steps=60)
    found = attack(model, torch.tensor([[0.4], [0.5], [0.6]]), torch.tensor([0, 0, 0]))
    # Every look back that halves the step also halves how far from the top it can end.
    finest = 2 * 0.2 / 2 ** len(_checkpoints(60, False))
    torch.testing.assert_close(found, torch.full((3, 1), 0.52), rtol=0, atol=finest)


@pytest.mark.parametrize(("loss", "classes"), [("ce", 2), ("dlr-targeted", 5)])
@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.2)], ids=repr)
def test_a_linear_model_is_fooled_wherever_it_can_be(threat: Threat, loss: Any, classes: int) -> None:
    model = Linear(classes, 3, 4, 4)
    images, _ = batch(200, low=0.3, high=0.7)
    logits = model(images).detach()
    labels = logits.argmax(dim=1)
    # With no pixel near its bound, z_k - z_y can change by epsilon times the dual norm of w_k - w_y.
    differences = (model.weight[None] - model.weight[labels][:, None]).detach()
    dual = 1 if isinstance(threat, Linf) else 2
    gains = threat.epsilon * torch.linalg.vector_norm(differences, ord=dual, dim=2)
    leads = logits - logits.gather(1, labels[:, None]) + gains
    leads = leads.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    clear = leads.abs() > 0.05 * gains.amax(dim=1)
    assert (leads > 0)[clear].sum() > 10
    assert (leads < 0)[clear].sum() > 10
    found = APGD(threat, loss=loss, steps=50)(model, images, labels)
    assert torch.equal(~right(model, found, labels)[clear], (leads > 0)[clear])


@pytest.mark.parametrize(("loss", "runs"), [("ce", 1), ("dlr-targeted", 3)])
@pytest.mark.parametrize("threat", [Linf(1e-6), L2(1e-6)], ids=repr)
def test_a_run_makes_one_forward_pass_more_than_steps_and_one_backward_pass_a_step(
    passes: type[Passes], threat: Threat, loss: Any, runs: int
) -> None:
    model, (images, _) = Linear(4, 3, 4, 4), batch(8)
    labels = model(images).argmax(dim=1)
    APGD(threat, loss=loss, steps=7, targets=3)(exact_copy(model), images, labels)
    (oracle,) = passes.made
    assert oracle.forwards == 8 + runs * 8 * (7 + 1)  # the clean images once
    assert oracle.backwards == runs * 8 * 7


def test_solved_images_leave_the_batch(passes: type[Passes]) -> None:
    model, (images, _) = Linear(4, 3, 4, 4), batch(16)
    labels = model(images).argmax(dim=1)
    APGD(Linf(0.5), steps=50)(exact_copy(model), images, labels)
    (oracle,) = passes.made
    assert oracle.forwards < 16 * 6
    assert oracle.backwards < 16 * 5


@pytest.mark.parametrize("eot", [1, 3])
def test_last_takes_every_step_and_nothing_else(passes: type[Passes], eot: int) -> None:
    model, (images, labels) = Linear(4, 3, 4, 4), batch(8)
    APGD(Linf(0.5), steps=5, keep="last", eot=eot)(exact_copy(model), images, labels)
    (oracle,) = passes.made
    assert oracle.forwards == oracle.backwards == 8 * 5 * eot


def test_l1_runs_start_in_wider_balls_and_end_in_the_asked_one(passes: type[Passes]) -> None:
    model, (images, _) = Linear(4, 3, 4, 4), batch(8)
    labels = model(images).argmax(dim=1)
    found = APGD(L1(1e-4), steps=20)(exact_copy(model), images, labels)
    (oracle,) = passes.made
    assert oracle.backwards == 8 * (6 + 6 + 8)
    assert L1(1e-4).distance(found, images).max() <= 1e-4 + images[0].numel() * 2**-24


def test_averaging_over_passes_finds_the_way_through_noise() -> None:
    class Noisy(Linear):
        def forward(self, images: Tensor) -> Tensor:
            noise = 6 * torch.randn_like(self.weight).expand(len(images), *self.weight.shape)
            return torch.einsum("bp,bcp->bc", images.flatten(1), self.weight + noise)

    noisy, images = Noisy(2, 3, 4, 4), torch.full((64, 3, 4, 4), 0.5)
    labels = torch.zeros(64).long()
    towards = (noisy.weight[1] - noisy.weight[0]).detach().view(3, 4, 4).sign()

    def progress(eot: int) -> float:
        found = APGD(Linf(0.1), steps=10, eot=eot, keep="last")(noisy, images, labels)
        return float(((found - images) * towards).mean())

    assert progress(40) > progress(1) + 0.005  # means over 3072 pixels, each with a spread below 0.1


def test_unsolved_images_come_back_with_the_highest_loss_of_all_runs() -> None:
    model = from_logits(
        lambda x: torch.cat([0 * x[:, :1] + 4, torch.sin(40 * x).sum(1, keepdim=True)], dim=1)
    )
    images, labels = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(50).long()

    def losses(restarts: int) -> Tensor:
        found = APGD(Linf(0.05), steps=4, restarts=restarts)(model, images, labels)
        return F.cross_entropy(model(found), labels, reduction="none")

    assert (losses(4) >= losses(1)).all()
    assert losses(4).mean() > losses(1).mean()


def test_a_claim_that_float32_does_not_confirm_is_searched_on() -> None:
    Counting.batches = []
    model, (images, _) = Counting(4, 3, 4, 4), batch()
    labels = model(images).argmax(dim=1)
    victim = Liar(model, CopyOptions())
    victim.exact(images[:1])  # at its first batch a copy tries one image
    Counting.batches = []
    found = APGD(Linf(1e-6), steps=3)(victim, images, labels)
    assert Counting.batches == [16] + [16, 16] * 4
    assert right(model, found, labels).all()


@pytest.mark.parametrize(
    ("classes", "loss", "message"),
    [
        (2, "dlr", r"loss='dlr' needs a model with at least 3 classes, got 2; use loss='ce'"),
        (
            2,
            "dlr-targeted",
            r"needs a model with at least 4 classes, got 2; use loss='ce', or FAB and Square",
        ),
        (3, "dlr-targeted", r"at least 4 classes, got 3; use loss='ce' or loss='dlr', or FAB and Square"),
    ],
)
def test_a_loss_for_more_classes_is_named_with_what_to_use(classes: int, loss: Any, message: str) -> None:
    images, labels = batch(classes=2)
    with pytest.raises(ValueError, match=message):
        APGD(Linf(0.1), loss=loss)(Linear(classes, 3, 4, 4), images, labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "cw"}, "loss must be 'ce', 'dlr' or 'dlr-targeted', got 'cw'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"eot": 0}, "eot must be a whole number of at least 1, got 0"),
        ({"targets": 0}, "targets must be a whole number"),
        ({"rho": 1.0}, "rho must lie between 0 and 1, got 1.0"),
        ({"keep": "first"}, "keep must be 'best' or 'last', got 'first'"),
        ({"keep": "last", "restarts": 2}, "keep='last' makes a single run"),
        ({"keep": "last", "loss": "dlr-targeted"}, "keep='last' makes a single run"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        APGD(Linf(0.1), **fields)


def test_an_image_that_stopped_climbing_halves_its_step_and_goes_back_to_its_best_point() -> None:
    from dataclasses import replace

    from paretune.attacks import apgd

    images = torch.full((2, 3, 2, 2), 0.5)
    labels = torch.zeros(2, dtype=torch.long)
    run = apgd._Run(APGD(Linf(0.1)), None, Linf(0.1), 100)  # type: ignore[arg-type]  # no oracle is asked
    lanes = run.begin(images, labels, labels, images)
    # One image climbed in one of 22 steps, the other in all of them.
    lanes = replace(
        lanes,
        rises=torch.tensor([1.0, 22.0]),
        highest=torch.ones(2),
        highest_then=torch.zeros(2),
        best=images + 0.1,
    )
    after = run.halve(lanes, 22)
    torch.testing.assert_close(after.step.flatten(), torch.tensor([0.1, 0.2]))
    assert torch.equal(after.images_adv[0], images[0] + 0.1)
    assert torch.equal(after.images_adv[1], images[1])
    assert after.halved_then.tolist() == [True, False]
    assert after.rises.tolist() == [0, 0]

from typing import Any

import pytest
import torch

from paretune.attacks import FAB, L1, L2, Linf, Threat
from paretune.attacks.copy.options import CopyOptions
from paretune.attacks.projections import onto_plane
from tests.unit.attacks.test_apgd import Passes, passes
from tests.unit.attacks.victims import Liar, Linear, batch, exact_copy, from_logits, right

__all__ = ["passes"]  # a fixture


@pytest.mark.parametrize("targets", [4, None])
@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.2), L1(0.8)], ids=repr)
def test_a_linear_model_is_fooled_exactly_where_its_nearest_boundary_lies_in_the_ball(
    threat: Threat, targets: int | None
) -> None:
    model = Linear(5, 3, 4, 4)
    images, _ = batch(200)  # pixels up to the bounds: the distance respects [0, 1]
    logits = model(images).detach()
    labels = logits.argmax(dim=1)
    distances = []
    for other in range(5):
        normal = (model.weight[other] - model.weight[labels]).detach().view_as(images)
        gap = logits.gather(1, labels[:, None]).squeeze(1) - logits[:, other]
        way = onto_plane(threat, images, normal, gap)
        reached = (way * normal).flatten(1).sum(dim=1) >= gap - 1e-4
        distance = threat.distance(way, torch.zeros_like(way))
        distances.append(distance.where(reached & (labels != other), torch.tensor(torch.inf)))
    nearest = torch.stack(distances).amin(dim=0)
    # FAB steps over the boundary by 5 % and comes back; within 2 % of the radius both answers are right.
    clear = (nearest / threat.epsilon - 1).abs() > 0.02
    assert (nearest < threat.epsilon)[clear].sum() > 20
    assert (nearest > threat.epsilon)[clear].sum() > 20
    found = FAB(threat, steps=40, targets=targets)(model, images, labels)
    assert torch.equal(~right(model, found, labels)[clear], (nearest < threat.epsilon)[clear])


def test_an_image_without_an_adversarial_point_in_the_ball_comes_back_clean() -> None:
    model, (images, _) = Linear(5, 3, 4, 4), batch()
    labels = model(images).argmax(dim=1)
    found = FAB(L2(1e-3), steps=5)(model, images, labels)
    survived = right(model, found, labels)
    assert survived.any()
    assert torch.equal(found[survived], images[survived])


def test_a_plateau_is_left_by_a_restart() -> None:
    # Flat at the image, so its gradient is zero; on either side of the plateau the way to the other class is clear.
    model = from_logits(lambda x: torch.cat([0 * x, (x - 0.5).abs().clamp(min=0.01) - 0.05], dim=1))
    images, labels = torch.full((20, 1), 0.5), torch.zeros(20).long()
    assert right(model, FAB(Linf(0.1), steps=10)(model, images, labels), labels).all()
    assert not right(model, FAB(Linf(0.1), steps=10, restarts=4)(model, images, labels), labels).any()


@pytest.mark.parametrize("beyond", [0.52, 0.9, 5.0], ids=["near", "outside the ball", "out of reach"])
def test_a_step_takes_one_forward_and_one_backward_pass(passes: type[Passes], beyond: float) -> None:
    model = from_logits(lambda x: torch.cat([0 * x + beyond, x], dim=1))
    FAB(Linf(0.01), steps=6, targets=1)(exact_copy(model), torch.full((8, 1), 0.5), torch.zeros(8).long())
    (oracle,) = passes.made
    assert oracle.forwards == 8 + 8 * (6 + 1)  # the clean images once, and a last look
    assert oracle.backwards == 8 * 6


def test_all_classes_at_once_take_a_backward_pass_for_each(passes: type[Passes]) -> None:
    model, (images, _) = Linear(5, 3, 4, 4), batch(8)
    FAB(Linf(1e-6), steps=6, targets=None)(exact_copy(model), images, model(images).argmax(dim=1))
    (oracle,) = passes.made
    assert oracle.forwards == 8 + 8 * (6 + 1)
    assert oracle.backwards == 8 * 6 * 5


def test_solved_images_leave_the_batch(passes: type[Passes]) -> None:
    model, (images, _) = Linear(5, 3, 4, 4), batch()
    FAB(Linf(0.5), steps=50)(exact_copy(model), images, model(images).argmax(dim=1))
    assert passes.made[-1].forwards < 16 * 8


def test_a_claim_that_float32_does_not_confirm_is_not_returned() -> None:
    model, (images, _) = Linear(4, 3, 4, 4), batch()
    labels = model(images).argmax(dim=1)
    found = FAB(Linf(1e-6), steps=3)(Liar(model, CopyOptions()), images, labels)
    assert torch.equal(found, images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"restarts": 0}, "restarts must be a whole number"),
        ({"targets": 0}, "targets must be a whole number"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAB(Linf(0.1), **fields)

from typing import Any

import pytest
import torch

from paretune.attacks import L1, L2, Linf, Square, Threat
from paretune.attacks.copy.options import CopyOptions
from paretune.attacks.square import _bump, _propose
from paretune.attacks.streams import Streams
from tests.unit.attacks.test_apgd import Passes, passes
from tests.unit.attacks.victims import Liar, Linear, batch, exact_copy, from_logits, right

__all__ = ["passes"]  # a fixture
THREATS = [Linf(0.1), L2(1.0), L1(4.0)]


def test_sides_follow_the_schedule_of_the_paper() -> None:
    images, attack = torch.zeros(1, 3, 32, 32), Square(Linf(0.1))
    # sqrt(0.8 / 2^halvings · 32 · 32), rounded.
    assert [attack.side(query, images) for query in (0, 10, 11, 51, 201, 4999)] == [29, 29, 20, 14, 10, 3]
    rescaled = Square(Linf(0.1), queries=100, schedule=100)
    assert rescaled.side(99, images) == attack.side(9900, images) == 1
    assert Square(L2(1.0)).side(4999, images) == 3
    assert Square(L2(1.0)).side(11, images) == 21  # odd


@pytest.mark.parametrize("side", [1, 3, 5, 8, 9])
@pytest.mark.parametrize("threat", [L2(1.0), L1(1.0)], ids=repr)
def test_a_bump_has_norm_one_and_two_signs(threat: Threat, side: int) -> None:
    bump = _bump(threat, side, True, torch.zeros(1))
    assert bump.shape == (side, side)
    length = threat.distance(bump[None], torch.zeros(1, side, side))
    torch.testing.assert_close(length, torch.ones(1))
    assert torch.equal(bump[: side // 2] > 0, torch.ones(side // 2, side, dtype=torch.bool))
    assert (bump[side // 2 :] < 0).all()
    assert torch.equal(_bump(threat, side, False, torch.zeros(1)), bump.T)
    if side == 5:
        # Each half has norm 1 before both are scaled together (eta in the code of the authors).
        halves = (
            threat.distance(bump[:2][None], torch.zeros(1, 2, 5)),
            threat.distance(bump[2:][None], torch.zeros(1, 3, 5)),
        )
        torch.testing.assert_close(*halves)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_proposals_stay_in_the_ball_and_change_little(threat: Threat) -> None:
    images = batch(5, side=12)[0]
    generator = torch.Generator().manual_seed(0)
    points = threat.random_start(images, Streams(0, torch.arange(5)))
    for _ in range(30):
        colour = torch.randint(2, (5, 3, 1, 1), generator=generator) * 2.0 - 1
        proposed = _propose(threat, images, points, colour, 3, generator)
        assert threat.distance(proposed, images).max() <= threat.epsilon * (1 + 1e-5) + 2**-20
        assert proposed.min() >= 0
        assert proposed.max() <= 1
        if isinstance(threat, Linf):
            assert ((proposed != points).flatten(1).sum(dim=1) <= 3 * 3 * 3).all()
        points = proposed


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_it_needs_no_gradient(passes: type[Passes], threat: Threat) -> None:
    weight = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
    blind = from_logits(lambda x: (x.detach().flatten(1) - 0.5) @ weight.T)
    images, _ = batch(64, side=8)
    labels = blind(images).argmax(dim=1)
    found = Square(threat, queries=100, schedule=100)(exact_copy(blind), images, labels)
    assert right(blind, found, labels).float().mean() < 0.6
    assert passes.made[-1].backwards == 0


def test_a_query_is_one_forward_pass_and_solved_images_leave(passes: type[Passes]) -> None:
    model, (images, _) = Linear(4, 3, 4, 4), batch()
    labels = model(images).argmax(dim=1)
    Square(Linf(1e-6), queries=9)(exact_copy(model), images, labels)
    assert passes.made[-1].forwards == 16 + 16 * (9 + 1)
    Square(Linf(0.5), queries=200)(exact_copy(model), images, labels)
    assert passes.made[-1].forwards < 16 * 50


def test_more_queries_and_restarts_never_lose_a_success() -> None:
    model, (images, _) = Linear(4, 3, 8, 8), batch(64, side=8)
    labels = model(images).argmax(dim=1)
    victim = exact_copy(model)

    def solved(**fields: Any) -> torch.Tensor:
        return ~right(model, Square(Linf(0.04), **fields)(victim, images, labels), labels)

    few, many, again = solved(queries=10), solved(queries=60), solved(queries=10, restarts=4)
    assert (many | ~few).all()
    assert (again | ~few).all()
    assert many.sum() > few.sum()
    assert again.sum() > few.sum()


def test_a_claim_that_float32_does_not_confirm_is_not_counted() -> None:
    model, (images, _) = Linear(4, 3, 4, 4), batch()
    labels = model(images).argmax(dim=1)
    found = Square(Linf(1e-6), queries=5)(Liar(model, CopyOptions()), images, labels)
    assert right(model, found, labels).all()


def test_what_is_not_an_image_is_refused() -> None:
    model = Linear(2, 4)
    labels = model(torch.full((2, 4), 0.5)).argmax(dim=1)
    with pytest.raises(
        ValueError, match=r"Square needs images \(batch, channels, height, width\), got shape \(2, 4\)"
    ):
        Square(Linf(0.1))(model, torch.full((2, 4), 0.5), labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": 0}, "queries must be a whole number of at least 1, got 0"),
        ({"p_init": 0.0}, r"p_init must lie in \(0, 1\], got 0.0"),
        ({"schedule": 0}, "schedule must be a whole number"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Square(Linf(0.1), **fields)

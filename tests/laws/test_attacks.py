"""What holds for every threat, image and radius."""

import math
from typing import Literal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks import L1, L2, PGD, Linf, Threat
from paretune.attacks.streams import Streams

DENSE = st.one_of(st.floats(1e-3, 1.0).map(Linf), st.floats(1e-2, 5.0).map(L2))
THREATS = st.one_of(DENSE, st.floats(1e-2, 50.0).map(L1))
SEEDS = st.integers(0, 2**31)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
FEW = settings(max_examples=40)


def random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    """Images in [0, 1] with a fair share of pixels exactly at 0 and 1, where clamping happens."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.2).clamp(0, 1)


def random_points(shape: tuple[int, ...], seed: int) -> Tensor:
    """Points inside and far outside [0, 1]."""
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))


def slack(threat: Threat, images: Tensor) -> float:
    """Rounding: every pixel of a result by half a unit in the last place of 1, and a length by four of its own."""
    if isinstance(threat, Linf):
        return 2**-24
    if isinstance(threat, L1):
        return images[0].numel() * 2**-24 + 4 * 2**-23 * threat.epsilon
    return math.sqrt(images[0].numel()) * 2**-24 + 4 * 2**-23 * threat.epsilon


def assert_allowed(result: Tensor, images: Tensor, threat: Threat) -> None:
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert threat.distance(result, images).max() <= threat.epsilon + slack(threat, images)


class Linear(nn.Module):
    def __init__(self, classes: int, pixels: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(classes, pixels, generator=torch.Generator().manual_seed(seed))
        )

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight)


@FEW
@given(THREATS, SHAPES, SEEDS)
def test_a_projection_is_allowed_and_projecting_again_changes_nothing(
    threat: Threat, shape: tuple[int, ...], seed: int
) -> None:
    images = random_images(shape, seed)
    once = threat.project(random_points(shape, seed), images)
    assert_allowed(once, images, threat)
    twice = threat.project(once, images)
    if isinstance(threat, Linf):
        assert torch.equal(twice, once)
    assert threat.distance(twice, once).max() <= slack(threat, images)


@FEW
@given(THREATS, SHAPES, SEEDS)
def test_what_is_allowed_stays(threat: Threat, shape: tuple[int, ...], seed: int) -> None:
    images = random_images(shape, seed)
    inside = images + 0.999 * (threat.project(random_points(shape, seed), images) - images)
    inside = inside.clamp(0, 1)
    assert torch.equal(threat.project(inside, images), inside)


@FEW
@given(THREATS, SHAPES, SEEDS)
def test_a_projection_never_moves_away_from_the_image(
    threat: Threat, shape: tuple[int, ...], seed: int
) -> None:
    images, points = random_images(shape, seed), random_points(shape, seed)
    before, after = threat.distance(points, images), threat.distance(threat.project(points, images), images)
    assert (after <= before + slack(threat, images)).all()


@FEW
@given(THREATS, SHAPES, SEEDS)
def test_a_random_start_is_allowed(threat: Threat, shape: tuple[int, ...], seed: int) -> None:
    images = random_images(shape, seed)
    assert_allowed(threat.random_start(images, Streams(seed, torch.arange(len(images)))), images, threat)


@FEW
@given(DENSE, SHAPES, SEEDS, st.floats(1e-3, 2.0))
def test_a_step_has_its_length(threat: Threat, shape: tuple[int, ...], seed: int, step_size: float) -> None:
    images, gradient = random_images(shape, seed), random_points(shape, seed)
    moved = threat.distance(threat.step(images, gradient, step_size), images)
    torch.testing.assert_close(
        moved, torch.full_like(moved, step_size), rtol=1e-5, atol=2 * slack(threat, images)
    )


@FEW
@given(st.floats(1e-2, 50.0), SHAPES, SEEDS, st.floats(1e-3, 20.0))
def test_an_l1_step_has_its_length_unless_the_image_has_no_room(
    epsilon: float, shape: tuple[int, ...], seed: int, step_size: float
) -> None:
    threat, images, gradient = L1(epsilon), random_images(shape, seed), random_points(shape, seed)
    moved = threat.step(images, gradient, step_size)
    assert moved.min() >= 0
    assert moved.max() <= 1 + 2**-23
    room = torch.where(gradient > 0, 1 - images, images).flatten(1).sum(dim=1)
    expected = room.clamp(max=step_size)
    torch.testing.assert_close(
        threat.distance(moved, images), expected, rtol=1e-5, atol=2 * slack(threat, images)
    )
    assert ((moved - images) * gradient >= 0).all()


@FEW
@given(st.floats(1e-2, 50.0), SHAPES, SEEDS)
def test_an_l1_projection_is_no_farther_than_other_allowed_points(
    epsilon: float, shape: tuple[int, ...], seed: int
) -> None:
    threat, images, points = L1(epsilon), random_images(shape, seed), random_points(shape, seed)
    nearest = threat.project(points, images)
    other = threat.project(random_points(shape, seed + 7), images)
    toward = nearest + 0.01 * (other - nearest)  # allowed, because ball and box are convex
    for allowed in (other, toward):
        gain = L2(1.0).distance(nearest, points) - L2(1.0).distance(allowed, points)
        assert (gain <= 1e-5 * L2(1.0).distance(nearest, points) + 1e-6).all()


@settings(max_examples=25)
@given(THREATS, SHAPES, SEEDS, st.sampled_from(["best", "last"]), st.integers(1, 4))
def test_attacked_images_are_allowed(
    threat: Threat, shape: tuple[int, ...], seed: int, keep: Literal["best", "last"], steps: int
) -> None:
    images = random_images(shape, seed)
    model = Linear(3, images[0].numel(), seed)
    labels = torch.arange(len(images)) % 3
    attacked = PGD(threat, steps=steps, keep=keep)(model, images, labels, seed=seed)
    assert_allowed(attacked, images, threat)


@settings(max_examples=25)
@given(st.sampled_from([Linf, L2]), st.floats(0.01, 0.2), st.floats(1.0, 4.0), SEEDS)
def test_a_larger_ball_never_lowers_the_loss_of_a_linear_victim(
    kind: type[Linf] | type[L2], epsilon: float, factor: float, seed: int
) -> None:
    # Two classes, so that the way up is the same everywhere; and for L2 no pixel near 0 or 1, where clamping bends it.
    images = random_images((4, 1, 4, 4), seed)
    if kind is L2:
        images = 0.45 + 0.1 * images
        epsilon /= 2
        factor = min(factor, 0.45 / epsilon)
    model, labels = Linear(2, 16, seed), torch.tensor([0, 1, 0, 1])
    losses = []
    for threat in (kind(epsilon), kind(epsilon * factor)):
        attack = PGD(threat, steps=4, step_size=10 * threat.epsilon, random_start=False, keep="last")
        attacked = attack(model, images, labels, seed=seed)
        logits = model(attacked).double().detach()
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    # The two logits are sums of 16 products of a weight, at most 5, with a pixel that is off by at most 2^-24.
    assert (losses[1] >= losses[0] - 2 * 16 * 5 * 2**-24).all()

import math

import pytest
import torch
from torch import Tensor

from paretune._values import from_dict, parse
from paretune.attacks import L1, L2, THREATS, Linf, Threat
from paretune.attacks.streams import Streams

HALF_ULP_OF_1 = 2.0**-24


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        (Linf(8 / 255), "Linf(8/255)"),
        (Linf(0.03), "Linf(0.03)"),
        (L2(1.5), "L2(1.5)"),
        (L1(12.0), "L1(12.0)"),
    ],
)
def test_prints_and_reads_back_as_the_call_that_makes_it(threat: Threat, text: str) -> None:
    assert repr(threat) == text
    assert parse(repr(threat), THREATS) == threat
    assert from_dict(threat.to_dict(), THREATS) == threat


def test_an_integer_epsilon_is_the_same_threat_as_the_float() -> None:
    assert repr(Linf(1)) == repr(Linf(1.0)) == "Linf(1.0)"


def test_epsilon_in_grey_levels_is_refused_with_the_value_that_was_meant() -> None:
    with pytest.raises(ValueError, match=r"epsilon must lie in \(0, 1\].*got 8, did you mean 8/255\?"):
        Linf(8)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
@pytest.mark.parametrize("epsilon", [0, -0.1, math.nan, math.inf])
def test_epsilon_must_be_finite_and_above_zero(kind: type[Threat], epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be"):
        kind(epsilon)
    with pytest.raises(ValueError, match="epsilon must be"):
        kind(0.1).with_epsilon(epsilon)


def test_epsilon_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="epsilon must be a number, got '8/255'"):
        Linf("8/255")


def test_with_epsilon_keeps_the_norm() -> None:
    assert L2(0.5).with_epsilon(2) == L2(2.0)


def test_linf_random_start_is_uniform_in_the_ball() -> None:
    x = torch.full((200, 1, 10, 10), 0.5)
    noise = (Linf(0.1).random_start(x, Streams(0, torch.arange(len(x)))) - x) / 0.1
    # A uniform variable on [-1, 1] has mean 0 and variance 1/3; 20,000 draws: standard errors 0.0041 and 0.0021.
    assert abs(float(noise.mean())) < 5 * 0.0041
    assert abs(float(noise.var()) - 1 / 3) < 5 * 0.0021


def test_l2_random_start_has_a_uniform_radius_and_direction() -> None:
    x = torch.full((20_000, 1, 1, 3), 0.5)
    change = (L2(0.4).random_start(x, Streams(0, torch.arange(len(x)))) - x).flatten(1) / 0.4
    radius = change.norm(dim=1)
    # Uniform on [0, 1]: mean 1/2, variance 1/12; standard errors 0.0020 and 0.0005.
    assert abs(float(radius.mean()) - 1 / 2) < 5 * 0.0020
    assert abs(float(radius.var()) - 1 / 12) < 5 * 0.0005
    assert float(radius.max()) <= 1 + 1e-6
    # A coordinate of a uniform direction in space is uniform on [-1, 1]: mean 0, variance 1/3.
    direction = change / radius[:, None]
    assert float(direction.mean(0).abs().max()) < 5 * 0.0041
    assert float((direction.var(0) - 1 / 3).abs().max()) < 5 * 0.0021


@pytest.mark.parametrize("threat", [Linf(0.3), L2(2.0), L1(8.0)], ids=repr)
def test_random_start_depends_on_its_streams_only(threat: Threat) -> None:
    x = images(4, 3, 5, 5)
    state = torch.random.get_rng_state()
    first = threat.random_start(x, Streams(1, torch.arange(len(x))))
    torch.rand(1)
    assert torch.equal(first, threat.random_start(x, Streams(1, torch.arange(len(x)))))
    assert not torch.equal(first, threat.random_start(x, Streams(2, torch.arange(len(x)))))
    torch.random.set_rng_state(state)
    threat.random_start(x, Streams(1, torch.arange(len(x))))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_linf_step_follows_the_sign() -> None:
    gradient = torch.tensor([[[[-3.0, 0.0, 1e-20]]]])
    moved = Linf(0.1).step(torch.zeros(1, 1, 1, 3), gradient, 0.25)
    assert moved.flatten().tolist() == [-0.25, 0.0, 0.25]


def test_l2_step_has_the_length_asked_for_at_every_scale_of_the_gradient() -> None:
    gradient = images(4, 3, 8, 8) - 0.5
    for scale in (1e-30, 1e-6, 1.0, 1e30):
        moved = L2(1.0).step(torch.zeros_like(gradient), gradient * scale, 0.7)
        lengths = moved.flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full((4,), 0.7))
        direction = gradient.flatten(1) / gradient.flatten(1).norm(dim=1, keepdim=True)
        torch.testing.assert_close(moved.flatten(1) / 0.7, direction)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1), L1(0.1)], ids=repr)
def test_a_zero_gradient_moves_nothing(threat: Threat) -> None:
    x = images(2, 3, 4, 4)
    gradient = torch.zeros_like(x)
    gradient[1] = 1
    moved = threat.step(x, gradient, 0.05)
    assert torch.equal(moved[0], x[0])
    assert moved.isfinite().all()
    assert not torch.equal(moved[1], x[1])


def test_linf_projection_is_the_nearest_point_pixel_by_pixel() -> None:
    x = torch.tensor([[0.0, 0.5, 0.5, 0.95]])
    far = torch.tensor([[-1.0, 0.9, 0.55, 2.0]])
    torch.testing.assert_close(Linf(0.1).project(far, x), torch.tensor([[0.0, 0.6, 0.55, 1.0]]))


def test_l2_projection_shrinks_the_change_and_keeps_its_direction() -> None:
    x = torch.full((2, 2), 0.5)
    far = torch.tensor([[0.5 + 0.6, 0.5 + 0.8], [0.5, 0.6]])
    torch.testing.assert_close(L2(0.25).project(far, x), torch.tensor([[0.65, 0.7], [0.5, 0.6]]))


@pytest.mark.parametrize("threat", [Linf(0.2), L2(1.0), L1(6.0)], ids=repr)
def test_projection_leaves_what_is_inside_bit_for_bit(threat: Threat) -> None:
    x = images(3, 3, 6, 6)
    inside = threat.project(x + 0.01 * (images(3, 3, 6, 6, seed=1) - 0.5), x)
    assert torch.equal(threat.project(inside, x), inside)


def test_l2_projection_of_the_image_itself_is_the_image() -> None:
    x = images(2, 3, 4, 4)
    assert torch.equal(L2(0.5).project(x.clone(), x), x)


def test_l2_projection_stays_in_the_ball_where_pixels_are_clamped() -> None:
    x = images(8, 3, 16, 16).round()  # every pixel on the border of [0, 1]
    result = L2(2.0).project(x + 3 * (images(8, 3, 16, 16, seed=1) - 0.5), x)
    assert result.min() >= 0
    assert result.max() <= 1
    assert (L2(2.0).distance(result, x) <= 2.0 + math.sqrt(x[0].numel()) * HALF_ULP_OF_1).all()


def l1_projection(point: Tensor, image: Tensor, epsilon: float) -> Tensor:
    """The nearest point of ball and box by sorting the amounts at which a pixel stops shrinking or starts to: float64."""
    change, image = (point - image).double().flatten(), image.double().flatten()
    room = torch.where(change > 0, 1 - image, image)

    def kept(amount: Tensor) -> Tensor:
        return torch.minimum((change.abs() - amount).clamp(min=0), room)

    if kept(torch.tensor(0.0)).sum() <= epsilon:
        return (image + change.sign() * kept(torch.tensor(0.0))).view_as(point)
    corners = torch.cat([change.abs(), (change.abs() - room).clamp(min=0), torch.zeros(1)]).sort().values
    sums = torch.stack([kept(corner).sum() for corner in corners])
    right = int((sums > epsilon).sum())  # sums fall
    low, high = corners[right - 1], corners[right]
    share = (sums[right - 1] - epsilon) / (sums[right - 1] - sums[right])
    return (image + change.sign() * kept(low + share * (high - low))).view_as(point)


@pytest.mark.parametrize("epsilon", [0.3, 4.0, 20.0, 60.0])
def test_l1_projection_is_the_nearest_point_of_ball_and_box(epsilon: float) -> None:
    x = (images(6, 3, 6, 6) * 1.4 - 0.2).clamp(0, 1)
    far = x + 2 * (images(6, 3, 6, 6, seed=1) - 0.5)
    nearest = torch.stack([l1_projection(*pair, epsilon) for pair in zip(far, x, strict=True)]).float()
    torch.testing.assert_close(L1(epsilon).project(far, x), nearest, rtol=0, atol=2**-22)


def test_no_allowed_point_is_nearer_than_the_l1_projection() -> None:
    x, far = images(1, 1, 5, 5), images(1, 1, 5, 5) + images(1, 1, 5, 5, seed=1) - 0.3
    nearest = L1(2.0).project(far, x)
    others = L1(2.0).project(
        x + 0.5 * torch.randn(2000, 1, 5, 5, generator=torch.Generator().manual_seed(3)), x
    )
    others = torch.cat([others, nearest + 0.05 * (others - nearest)])
    distance = (others - far).flatten(1).norm(dim=1)
    assert (distance >= (nearest - far).norm() - 1e-6).all()


def test_l1_step_moves_the_steepest_pixels_to_their_bounds_first() -> None:
    x = torch.tensor([[0.5, 0.2, 0.9, 1.0]])
    gradient = torch.tensor([[0.1, -3.0, 2.0, 5.0]])
    # The last pixel cannot rise; 0.2 down to 0, 0.1 up to 1, and the rest of the step on the first.
    moved = L1(1.0).step(x, gradient, 0.45)
    torch.testing.assert_close(moved, torch.tensor([[0.65, 0.0, 1.0, 1.0]]))
    lengths = torch.tensor([[0.1], [0.3]])
    each = L1(1.0).step(x.expand(2, 4), gradient.expand(2, 4), lengths)
    torch.testing.assert_close(each, torch.tensor([[0.5, 0.1, 0.9, 1.0], [0.5, 0.0, 1.0, 1.0]]))


def test_l1_random_start_lies_on_the_surface_of_the_ball() -> None:
    x = torch.full((50, 3, 8, 8), 0.5)
    start = L1(5.0).random_start(x, Streams(0, torch.arange(len(x))))
    torch.testing.assert_close(L1(5.0).distance(start, x), torch.full((50,), 5.0))


def test_distances() -> None:
    a, b = torch.zeros(2, 1, 1, 2), torch.tensor([[[[0.3, -0.4]]], [[[0.0, 0.0]]]])
    torch.testing.assert_close(Linf(0.1).distance(a, b), torch.tensor([0.4, 0.0]))
    torch.testing.assert_close(L2(0.1).distance(a, b), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(L1(0.1).distance(a, b), torch.tensor([0.7, 0.0]))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.1), L1(0.1)], ids=repr)
def test_an_empty_batch_passes_through(threat: Threat) -> None:
    empty = torch.zeros(0, 3, 4, 4)
    assert threat.random_start(empty, Streams(0, torch.arange(0))).shape == empty.shape
    assert threat.step(empty, empty, 0.1).shape == empty.shape
    assert threat.project(empty, empty).shape == empty.shape
    assert threat.distance(empty, empty).shape == (0,)

"""The plain PyTorch step is the threats' step, and its random numbers are the published ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.attacks.threats import L2, Linf
from paretune.kernels import pgd_step, random_start, reference
from paretune.kernels.reference import Norm
from paretune.selftest.checks import PHILOX_ANSWERS
from paretune.selftest.comparing import NORMS


def batch(seed: int = 0, shape: tuple[int, ...] = (3, 3, 7, 5)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=generator)
    images_adv = (images + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
    return torch.randn(shape, generator=generator), images, images_adv


@given(seed=st.integers(0, 10**6), epsilon=st.floats(1e-3, 1), share=st.floats(1e-2, 3))
@settings(max_examples=30)
def test_a_linf_step_is_bit_for_bit_that_of_the_threat(seed: int, epsilon: float, share: float) -> None:
    gradient, images, images_adv = batch(seed)
    threat = Linf(epsilon)
    wanted = threat.project(threat.step(images_adv, gradient, share * epsilon), images)
    for amounts in ((share * epsilon, epsilon), (torch.tensor(share * epsilon), torch.tensor(epsilon))):
        found, _ = pgd_step(
            gradient, images, images_adv, norm="Linf", step_size=amounts[0], epsilon=amounts[1]
        )
        assert torch.equal(found, wanted)


@given(seed=st.integers(0, 10**6), epsilon=st.floats(1e-2, 5), share=st.floats(1e-2, 3))
@settings(max_examples=30)
def test_an_l2_step_is_that_of_the_threat(seed: int, epsilon: float, share: float) -> None:
    gradient, images, images_adv = batch(seed)
    threat = L2(epsilon)
    wanted = threat.project(threat.step(images_adv, gradient, share * epsilon), images)
    found, _ = pgd_step(gradient, images, images_adv, norm="L2", step_size=share * epsilon, epsilon=epsilon)
    assert torch.allclose(found, wanted, rtol=0, atol=2e-7 * max(1, share * epsilon))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_at_the_normalised_input_gives_the_step_of_the_images(
    layout: torch.memory_format,
) -> None:
    gradient, images, images_adv = (each.contiguous(memory_format=layout) for each in batch())
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.4])
    at_images = gradient / std.view(1, 3, 1, 1)
    for norm in NORMS:
        wanted, same = pgd_step(at_images, images, images_adv, norm=norm, step_size=0.3, epsilon=0.2)
        assert same is wanted
        found, model_input = pgd_step(
            gradient, images, images_adv, norm=norm, step_size=0.3, epsilon=0.2, mean=mean, std=std
        )
        assert torch.equal(found, wanted)
        assert torch.equal(model_input, (found - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        assert found.is_contiguous(memory_format=layout)
        assert model_input.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("norm", NORMS)
def test_an_amount_an_image_is_the_step_of_each_image_alone(norm: Norm) -> None:
    gradient, images, images_adv = batch()
    amounts = torch.tensor([0.05, 0.1, 0.2])
    together, _ = pgd_step(gradient, images, images_adv, norm=norm, step_size=amounts, epsilon=2 * amounts)
    for i, amount in enumerate(amounts.tolist()):
        alone, _ = pgd_step(
            *(each[i : i + 1] for each in (gradient, images, images_adv)),
            norm=norm,
            step_size=amount,
            epsilon=2 * amount,
        )
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_gradient_is_widened_before_anything_is_computed(norm: Norm, dtype: torch.dtype) -> None:
    gradient, images, images_adv = batch()
    half = gradient.to(dtype)
    found, model_input = pgd_step(
        half, images, images_adv, norm=norm, step_size=0.1, epsilon=0.2, out_dtype=dtype
    )
    wanted, _ = pgd_step(half.float(), images, images_adv, norm=norm, step_size=0.1, epsilon=0.2)
    assert torch.equal(found, wanted)
    assert torch.equal(model_input, wanted.to(dtype))


@pytest.mark.parametrize("norm", NORMS)
def test_arguments_keep_their_values_and_results_carry_no_graph(norm: Norm) -> None:
    tensors = batch()
    before = [each.clone() for each in tensors]
    tensors[2].requires_grad_()
    moved, model_input = pgd_step(*tensors, norm=norm, step_size=0.1, epsilon=0.1, out_dtype=torch.bfloat16)
    assert not moved.requires_grad
    assert not model_input.requires_grad
    assert all(torch.equal(each, was) for each, was in zip(tensors, before, strict=True))


def test_a_nan_gradient_leaves_its_pixel_with_linf_and_spoils_its_image_with_l2() -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    gradient = torch.ones_like(images)
    gradient[0, 0, 0, 0] = math.nan
    linf, _ = pgd_step(gradient, images, images, norm="Linf", step_size=0.25, epsilon=0.5)
    assert linf[0, 0].flatten().tolist() == [0.5, 0.75, 0.75, 0.75]
    l2, _ = pgd_step(gradient, images, images, norm="L2", step_size=0.25, epsilon=0.5)
    assert l2[0].isnan().all()
    assert torch.allclose(l2[1], torch.tensor(0.625))


def test_what_is_inside_the_l2_ball_is_not_rounded() -> None:
    images, images_adv = batch()[1:]
    moved, _ = pgd_step(torch.zeros_like(images), images, images_adv, norm="L2", step_size=0.1, epsilon=50.0)
    assert torch.equal(moved, images_adv)


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, int, int, int], key: int, words: tuple[int, ...]
) -> None:
    signed = torch.tensor(key - (1 << 64) if key >= 1 << 63 else key)
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in reference.philox(c0, c1, c2, c3, signed)) == words


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_is_the_same_in_each_layout_and_alone_as_first_of_a_batch(norm: Norm) -> None:
    images = batch(shape=(4, 3, 6, 5))[1]
    seed = torch.tensor(11)
    start = random_start(images, 0.2, seed, norm=norm)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(random_start(last, 0.2, seed, norm=norm), start, rtol=0, atol=2.0**-23)
    assert torch.equal(random_start(images[:1], 0.2, seed, norm=norm), start[:1])
    assert not torch.equal(random_start(images, 0.2, torch.tensor(12), norm=norm), start)


def test_a_linf_start_is_uniform_in_the_ball() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    noise = (random_start(images, 0.25, torch.tensor(0), norm="Linf") - images) / 0.25
    assert noise.abs().max() <= 1
    counts = torch.histc(noise, bins=16, min=-1, max=1)
    expected = noise.numel() / 16
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 50  # 15 degrees of freedom: one in 100 000, for this fixed seed
    correlation = torch.corrcoef(noise.flatten(1))
    assert (correlation - torch.eye(4)).abs().max() < 0.05


def test_an_l2_start_has_a_normal_direction_and_a_uniform_radius() -> None:
    images = torch.full((2000, 1, 4, 4), 0.5)
    change = (random_start(images, 0.4, torch.tensor(0), norm="L2") - images).flatten(1)
    radius = change.norm(dim=1)
    assert radius.max() <= 0.4 * (1 + 1e-6)
    assert abs(radius.mean() - 0.2) < 0.01
    assert abs(radius.std() - 0.4 / math.sqrt(12)) < 0.01
    direction = change / radius[:, None]
    covariance = direction.T @ direction / len(direction)
    assert (covariance - torch.eye(16) / 16).abs().max() < 0.01
    kurtosis = (direction**4).mean() / (direction**2).mean() ** 2
    assert abs(kurtosis - 3 * 16 / 18) < 0.1  # of a coordinate of a uniform direction in 16 dimensions

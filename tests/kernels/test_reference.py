"""The plain PyTorch step is the threats' step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.attacks.threats import L2, Linf
from paretune.kernels import Norm, Step, pgd_step
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
        found, _ = pgd_step(Step(gradient, images, images_adv, "Linf", *amounts))
        assert torch.equal(found, wanted)


@given(seed=st.integers(0, 10**6), epsilon=st.floats(1e-2, 5), share=st.floats(1e-2, 3))
@settings(max_examples=30)
def test_an_l2_step_is_that_of_the_threat(seed: int, epsilon: float, share: float) -> None:
    gradient, images, images_adv = batch(seed)
    threat = L2(epsilon)
    wanted = threat.project(threat.step(images_adv, gradient, share * epsilon), images)
    found, _ = pgd_step(Step(gradient, images, images_adv, "L2", share * epsilon, epsilon))
    assert torch.allclose(found, wanted, rtol=0, atol=2e-7 * max(1, share * epsilon))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_at_the_normalised_input_gives_the_step_of_the_images(
    layout: torch.memory_format,
) -> None:
    gradient, images, images_adv = (each.contiguous(memory_format=layout) for each in batch())
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.4])
    at_images = gradient / std.view(1, 3, 1, 1)
    for norm in NORMS:
        wanted, same = pgd_step(Step(at_images, images, images_adv, norm, 0.3, 0.2))
        assert same is wanted
        found, model_input = pgd_step(
            Step(gradient, images, images_adv, norm, 0.3, 0.2, mean, std, torch.float32)
        )
        assert torch.equal(found, wanted)
        assert torch.equal(model_input, (found - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
        assert found.is_contiguous(memory_format=layout)
        assert model_input.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_gradient_is_widened_before_anything_is_computed(norm: Norm, dtype: torch.dtype) -> None:
    gradient, images, images_adv = batch()
    half = gradient.to(dtype)
    found, model_input = pgd_step(Step(half, images, images_adv, norm, 0.1, 0.2, out_dtype=dtype))
    wanted, _ = pgd_step(Step(half.float(), images, images_adv, norm, 0.1, 0.2))
    assert torch.equal(found, wanted)
    assert torch.equal(model_input, wanted.to(dtype))


@pytest.mark.parametrize("norm", NORMS)
def test_arguments_keep_their_values_and_results_carry_no_graph(norm: Norm) -> None:
    tensors = batch()
    before = [each.clone() for each in tensors]
    tensors[2].requires_grad_()
    moved, model_input = pgd_step(Step(*tensors, norm, 0.1, 0.1, out_dtype=torch.bfloat16))
    assert not moved.requires_grad
    assert not model_input.requires_grad
    assert all(torch.equal(each, was) for each, was in zip(tensors, before, strict=True))


def test_a_nan_gradient_leaves_its_pixel_with_linf_and_spoils_its_image_with_l2() -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    gradient = torch.ones_like(images)
    gradient[0, 0, 0, 0] = math.nan
    linf, _ = pgd_step(Step(gradient, images, images, "Linf", 0.25, 0.5))
    assert linf[0, 0].flatten().tolist() == [0.5, 0.75, 0.75, 0.75]
    l2, _ = pgd_step(Step(gradient, images, images, "L2", 0.25, 0.5))
    assert l2[0].isnan().all()
    assert torch.allclose(l2[1], torch.tensor(0.625))


def test_what_is_inside_the_l2_ball_is_not_rounded() -> None:
    images, images_adv = batch()[1:]
    moved, _ = pgd_step(Step(torch.zeros_like(images), images, images_adv, "L2", 0.1, 50.0))
    assert torch.equal(moved, images_adv)

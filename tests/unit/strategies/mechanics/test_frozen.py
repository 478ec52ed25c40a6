"""Linear layers of frozen weights under autocast, against those of torch."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import paretune as pt
from paretune.strategies.mechanics.frozen import frozen_linear

WIDTH, OUT = 24, 16


def tensors(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(*shape, WIDTH).requires_grad_(), torch.randn(OUT, WIDTH), torch.randn(OUT)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", ["none", "frozen", "trained"])
def test_outputs_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, bias: str
) -> None:
    inputs, weight, b = tensors(*shape)
    inputs = inputs.detach().to(dtype).requires_grad_()
    given = None if bias == "none" else b.requires_grad_(bias == "trained")
    found = []
    for linear in (frozen_linear, F.linear):
        with autocast():
            outputs = linear(inputs, weight, given)
        wanted = [inputs, b] if bias == "trained" else [inputs]
        gradients = torch.autograd.grad(outputs, wanted, torch.ones_like(outputs) * 3)
        assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in wanted]
        found.append((outputs, *gradients))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_its_output_may_be_changed_in_place() -> None:
    inputs, weight, bias = tensors(2, 3)
    found = []
    for linear in (frozen_linear, F.linear):
        with autocast():
            outputs = linear(inputs, weight, bias).relu_()
        found.append(torch.autograd.grad(outputs.float().square().sum(), inputs)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_gradients_of_gradients_and_torch_func_work() -> None:
    inputs, weight, bias = tensors(3)

    def loss(inputs: Tensor) -> Tensor:
        with autocast():
            return frozen_linear(inputs, weight, bias).float().pow(3).sum()

    (gradient,) = torch.autograd.grad(loss(inputs), inputs, create_graph=True)
    torch.testing.assert_close(torch.func.grad(loss)(inputs.detach()), gradient.detach(), rtol=0, atol=0)
    (again,) = torch.autograd.grad(gradient.sum(), inputs)
    half = weight.bfloat16().float()
    z = inputs.detach().bfloat16().float() @ half.t() + bias
    expected = (6 * z * half.sum(1)) @ half
    # From numbers of 8 bits, each with a relative error of 2^-9, and sums of OUT and WIDTH of them.
    torch.testing.assert_close(again, expected, rtol=0, atol=2**-7 * float(expected.abs().max()))


def test_a_weight_that_trains_gets_its_gradient() -> None:
    inputs, weight, bias = tensors(3)
    weight.requires_grad_()
    with autocast():
        outputs = frozen_linear(inputs, weight, bias)
    (gradient,) = torch.autograd.grad(outputs.float().sum(), weight)
    assert bool(gradient.any())


@pytest.mark.parametrize("strategy", [pt.LoRA(rank=2), pt.IA3()], ids=["LoRA", "IA3"])
def test_training_keeps_no_cast_weight(strategy: Any) -> None:
    module = timm.create_model("test_vit", num_classes=5, img_size=32)
    model = pt.adapt(pt.Backbone(module, image_size=32), strategy).train()
    frozen = [weight for name, weight in model.named_parameters() if name.endswith("weight.original")]
    cast = [
        each for weight in frozen if weight.ndim == 2 for each in (weight.bfloat16(), weight.bfloat16().t())
    ]
    assert cast
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast():
        loss = F.cross_entropy(model(torch.rand(7, 3, 32, 32)), torch.zeros(7, dtype=torch.long))
    assert any(tensor.dtype == torch.bfloat16 for tensor in kept)
    assert not [tensor for tensor in kept if any(torch.equal(tensor, each) for each in cast)]
    loss.backward()

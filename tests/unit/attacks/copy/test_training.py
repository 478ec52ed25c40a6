"""The copy of an adapted model while it trains."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune import Backbone, BitFit, Compacter, FullFineTune, LoRA, adapt
from paretune.attacks import attack_copy
from paretune.strategies import SSF
from tests.unit.attacks.copy.test_engine import (
    _own_randomness,
    assert_same_function,
    timm_model,
    train_a_step,
)

__all__ = ["_own_randomness"]  # fixtures


@pytest.mark.some(6)
@pytest.mark.parametrize(
    "strategy",
    [LoRA(rank=2), SSF(), Compacter(reduction=8, train_norms=True), BitFit(), FullFineTune(bn="adapt")],
    ids=repr,
)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_copy_and_adapted_model_agree_in_logits_and_input_gradients_while_training(
    name: str, strategy: Any
) -> None:
    options = {"img_size": 32} if name == "test_vit" else {}
    model = adapt(Backbone(timm_model(name, **options), image_size=32), strategy)
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6) % 5
    victim = attack_copy(model, precision="fp32")

    def gradient(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        leaf = images.clone().requires_grad_()
        (found,) = torch.autograd.grad(F.cross_entropy(function(leaf), labels), leaf)
        return found

    for _ in range(2):
        train_a_step(model, images)
        victim.refresh()
        assert_same_function(victim, model, images)
        twin = copy.deepcopy(model).eval()
        exact = gradient(copy.deepcopy(twin).double(), images.double())
        # As for the logits: twice the error that the model itself has in float32.
        allowed = 2 * float((gradient(twin, images) - exact).norm()) + 2**-20 * float(exact.norm())
        assert float((gradient(victim, images) - exact).norm()) <= allowed


@pytest.mark.parametrize(
    ("make", "written"),
    [
        # One batch norm's statistics: the weight and bias of the convolution it is folded into.
        (
            lambda model: model.module.bn1.running_mean.add_(1),
            {"module.conv1.6.weight", "module.conv1.6.bias"},
        ),
        (lambda model: model.module.fc.bias.data.add_(1), {"module.fc.bias"}),
        (lambda model: None, set()),
    ],
    ids=["statistics", "bias", "nothing"],
)
def test_a_refresh_after_a_small_change_copies_little(
    make: Callable[[nn.Module], Any], written: set[str]
) -> None:
    model = Backbone(timm_model("test_resnet"), image_size=32).requires_grad_(False)
    model.module.fc.bias.requires_grad_(True)  # a trainable tensor is copied at each refresh
    victim, images = attack_copy(model, precision="fp32"), torch.rand(2, 3, 32, 32)
    victim(images)
    before = {name: tensor._version for name, tensor in victim._any.module.named_parameters()}
    make(model)
    victim.refresh()
    after = {name: tensor._version for name, tensor in victim._any.module.named_parameters()}
    assert {name for name in after if after[name] != before[name]} == written | {"module.fc.bias"}
    assert_same_function(victim, model, images)


def test_a_refresh_of_inserted_modules_leaves_the_base_alone() -> None:
    model = adapt(Backbone(timm_model("test_resnet"), image_size=32), Compacter(reduction=8))
    victim, images = attack_copy(model, precision="fp32"), torch.rand(6, 3, 32, 32)
    victim(images)
    before = {name: tensor._version for name, tensor in victim._any.module.named_parameters()}
    train_a_step(model, images)
    victim.refresh()
    after = {name: tensor._version for name, tensor in victim._any.module.named_parameters()}
    written = {name for name in after if after[name] != before[name]}
    assert written == {name for name in after if ".compacter." in name or name.startswith("module.fc.")}


def test_tied_weights_that_come_apart_are_copied_apart() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[2].weight = model[1].weight
    images = torch.rand(2, 6, 1, 1)
    victim = attack_copy(model, precision="fp32")
    assert torch.equal(victim(images), model(images))
    model[2].weight = nn.Parameter(torch.rand(6, 6))
    victim.refresh()
    assert torch.equal(victim(images), model(images))

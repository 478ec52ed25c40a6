"""A refreshed copy is what a fresh one would be, whatever has changed in the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretune import Backbone, Compacter, LoRA, adapt, remove_adapter
from paretune.attacks import attack_copy
from paretune.attacks.copy import twin
from tests.unit.attacks.copy.test_engine import (
    _own_randomness,
    assert_same_function,
    shake,
    timm_model,
    train_a_step,
)

__all__ = ["_own_randomness"]  # fixtures


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm_model("test_efficientnet"),
        lambda: timm_model("test_resnet").requires_grad_(False).train(),  # only the statistics move
        lambda: adapt(Backbone(timm_model("test_vit", img_size=32), image_size=32), LoRA(rank=2)),
        lambda: adapt(Backbone(timm_model("test_resnet"), image_size=32), LoRA(rank=2, bn="adapt")),
        lambda: adapt(Backbone(timm_model("test_resnet"), image_size=32), Compacter(reduction=8)),
    ],
    ids=["all", "statistics", "lora-vit", "lora-resnet", "compacter"],
)
def test_a_refreshed_copy_equals_a_fresh_one_bit_for_bit(make: Callable[[], nn.Module]) -> None:
    model, images = make(), torch.rand(6, 3, 32, 32)
    victim = attack_copy(model)
    before = victim(images)
    for _ in range(3):
        if any(parameter.requires_grad for parameter in model.parameters()):
            train_a_step(model, images)
        else:
            model(images)
        stale = victim(images)
        victim.refresh()
        fresh = attack_copy(model)
        found = victim(images)
        assert torch.equal(found, fresh(images))
        assert victim.folded == fresh.folded
        assert not torch.equal(found, stale)
    assert not torch.equal(found, before)


def test_a_refresh_writes_only_what_can_have_changed() -> None:
    model = adapt(Backbone(timm_model("test_resnet"), image_size=32), LoRA(rank=2, targets=("layer1.*",)))
    images = torch.rand(6, 3, 32, 32)
    victim = attack_copy(model)
    victim(images)

    def versions() -> dict[str, int]:
        return {name: tensor._version for name, tensor in victim._any.module.named_parameters()}

    before = versions()
    train_a_step(model, images)
    victim.refresh()
    after = versions()
    written = {name for name in after if after[name] != before[name]}
    merged = {name.split(".parametrizations")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert merged
    folded = {f"{name}.{own}" for name in merged for own in ("weight", "bias")}
    assert written == (folded & after.keys()) | {"module.fc.weight", "module.fc.bias"}


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()}),
        lambda layer: layer.load_state_dict(
            {key: value + 1 for key, value in layer.state_dict().items()}, assign=True
        ),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach() + 1)),
        lambda layer: setattr(layer.weight, "data", layer.weight.data + 1),
        lambda layer: layer.weight.data.add_(1),
    ],
    ids=["load_state_dict", "assign", "new parameter", "new data", "change of data"],
)
def test_a_refresh_sees_every_way_to_change_a_trainable_weight(change: Callable[[nn.Module], Any]) -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
    victim = attack_copy(model)
    change(model[1])
    assert not torch.equal(victim(images), model(images))
    victim.refresh()
    assert torch.equal(victim(images), model(images))


def test_a_refresh_sees_frozen_weights_that_are_loaded() -> None:
    model, images = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False),
        torch.rand(2, 3, 2, 2),
    )
    victim = attack_copy(model)
    for assign in (False, True):
        state = {key: value + 1 for key, value in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)
        victim.refresh()
        assert torch.equal(victim(images), model(images))


def test_a_refresh_drops_what_a_model_keeps_in_evaluation_mode() -> None:
    class Keeps(nn.Module):
        """As TinyViT keeps its attention biases."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 3)
            self.kept: Tensor | None = None

        def train(self, mode: bool = True) -> "Keeps":
            if mode:
                self.kept = None
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = 2 * self.inner.bias.detach()
            return self.inner(x.flatten(1)) + self.kept

    model, images = Keeps(), torch.rand(2, 3, 2, 2)
    victim = attack_copy(model)
    victim(images)
    with torch.no_grad():
        model.inner.bias.add_(1)
    victim.refresh()
    assert torch.equal(victim(images), attack_copy(model)(images))


def test_a_refresh_follows_a_model_that_gains_and_loses_an_adapter() -> None:
    model, images = Backbone(timm_model("test_resnet"), image_size=32), torch.rand(2, 3, 32, 32)
    victim = attack_copy(model)
    for change in (
        lambda: adapt(model, LoRA(rank=2)),
        lambda: remove_adapter(model),
        lambda: adapt(model, Compacter(reduction=8)),
    ):
        change()
        shake(model)
        victim.refresh()
        assert_same_function(victim, model, images)
        assert torch.equal(victim(images), attack_copy(model)(images))


def test_a_copy_on_an_accelerator_takes_over_all_buffers_without_a_look_at_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(twin, "runs_ahead", lambda device: True)
    model, images = timm_model("test_resnet").requires_grad_(False).train(), torch.rand(6, 3, 32, 32)
    victim = attack_copy(model)
    victim(images)
    monkeypatch.delattr(torch, "equal")
    model(images)
    victim.refresh()
    monkeypatch.undo()
    assert torch.equal(victim(images), attack_copy(model)(images))

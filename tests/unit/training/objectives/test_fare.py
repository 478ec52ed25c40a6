"""FARE matches the features under attack to those of the pretrained model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.backbones import prototype_head
from paretune.backbones.features import entering_head, without_head
from paretune.training import FARE, Natural
from paretune.training.measuring import FreshCopy
from tests import tiny
from tests.unit.training.objectives.batches import ATTACK, THREAT, batch, copies, without_dropout

OBJECTIVE = FARE(ATTACK)


def features(model: pt.Backbone, images: torch.Tensor) -> torch.Tensor:
    """By hand: the network without its last layer."""
    module: Any = model.module
    return module[:-1]((images - 0.5) / 0.5)


def prototyped(strategy: Any) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = pt.Backbone(tiny.network().eval(), image_size=8, sites=["1.norm"])
        return pt.adapt(prototype_head(made, torch.randn(10, 32)), strategy)


def changed(model: pt.Backbone) -> None:
    """As by some steps of training."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))


def test_loss_and_gradient_are_the_squared_distance_to_the_pretrained_features() -> None:
    model, examples = without_dropout(pt.LoRA(rank=2)), batch(classes=10)
    origin = copy.deepcopy(model)
    term = OBJECTIVE.begin(model, tiny.data(), 0)
    changed(model)
    attacked = term.attacked(copies(model), examples)
    model.train()
    loss, logits = term.loss(model, examples, attacked)
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    with torch.no_grad():
        wanted = features(origin, examples.images)
    apart = (features(model, attacked[0]) - wanted) ** 2
    expected = sum(row.sum() for row in apart) / len(
        apart
    )  # of RobustVLM: a sum over features, a mean over images
    assert torch.allclose(loss, expected)
    by_hand = torch.autograd.grad(
        expected, [p for p in model.parameters() if p.requires_grad], allow_unused=True
    )
    for ours, theirs in zip(found, by_hand, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.allclose(ours, theirs, atol=1e-6)
    assert [value is None for value in found][-2:] == [True, True]  # the head
    assert logits is not None
    assert torch.allclose(logits, model(attacked[0]))
    assert not logits.requires_grad


def test_the_attack_climbs_the_same_distance_and_does_not_see_labels() -> None:
    model, examples = without_dropout(pt.LoRA(rank=2)), batch(classes=10)
    term = OBJECTIVE.begin(model, tiny.data(), 0)
    changed(model)
    images_adv, wanted = term.attacked(copies(model), examples)
    assert THREAT.allows(images_adv, examples.images).all()
    moved = THREAT.random_start(examples.images, pt.attacks.base.Streams(7, examples.places))
    for _ in range(ATTACK.steps):
        moved = moved.detach().requires_grad_()
        distance = (features(model, moved) - wanted).square().sum()
        (gradient,) = torch.autograd.grad(distance, [moved])
        moved = THREAT.move(moved.detach(), gradient, ATTACK.effective_step_size, examples.images)
    assert torch.allclose(images_adv, moved, atol=1e-6)
    other = copy.copy(examples)
    object.__setattr__(other, "labels", examples.labels + 500)  # of more classes than there are features
    assert torch.equal(term.attacked(copies(model), other)[0], images_adv)


def test_what_is_matched_is_the_model_before_it_was_adapted() -> None:
    """Prompt tokens and the like change the features from the start."""
    model = tiny.backbone(pt.LoRA(rank=2))
    plain = pt.remove_adapter(copy.deepcopy(model))
    changed(model)
    term = OBJECTIVE.begin(model, tiny.data(), 0)
    examples = batch(epsilon=0.0, classes=10)
    images, wanted = term.attacked(copies(model), examples)
    assert images is examples.images
    assert torch.allclose(wanted, features(plain.eval(), images), atol=1e-6)
    assert not torch.allclose(wanted, features(model.eval(), images), atol=1e-3)


def test_the_attacked_copy_follows_training() -> None:
    model = tiny.backbone(pt.LoRA(rank=2)).eval()
    fresh, images = copies(model), batch().images
    for _ in range(2):
        assert torch.allclose(fresh.features()(images), features(model, images), atol=1e-5)
        changed(model)
        fresh.outdated = True
    assert torch.allclose(fresh()(images), model(images), atol=1e-5)


def test_alone_it_takes_a_head_that_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no gradient to the head \(5\.weight, 5\.bias\).*Natural\(\) \+ FARE"
    ):
        tiny.run(tmp_path / "refused", objective=OBJECTIVE)
    assert not (tmp_path / "refused").exists()
    model = prototyped(pt.LoRA(rank=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tiny.run(tmp_path / "alone", model=model, objective=OBJECTIVE)
    after = model.state_dict()
    assert torch.equal(after["module.5.prototypes"], before["module.5.prototypes"])
    assert any("lora" in name and not torch.equal(after[name], before[name]) for name in before)


def test_beside_an_objective_with_labels_it_trains_all_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Natural() + 0.1 * OBJECTIVE
    whole, stopped = tiny.backbone(pt.LoRA(rank=2)), tiny.backbone(pt.LoRA(rank=2))
    tiny.run(tmp_path / "whole", model=whole, objective=objective)
    features, calls = FreshCopy.features, []

    def failing(copy: FreshCopy) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise LookupError
        return features(copy)

    monkeypatch.setattr(FreshCopy, "features", failing)
    with pytest.raises(LookupError):
        tiny.run(tmp_path / "stopped", model=stopped, objective=objective)
    monkeypatch.undo()
    again = tiny.backbone(pt.LoRA(rank=2))
    tiny.run(tmp_path / "stopped", model=again, objective=objective)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_network_that_works_on_what_its_head_returns_is_refused() -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(images)).tanh()

    model = pt.Backbone(Squashed().eval(), image_size=8)
    with pytest.raises(ValueError, match="more with what the head returns"):
        without_head(model)
    with pytest.raises(ValueError, match="more with what the head returns"):
        prototype_head(model, torch.randn(3, 8))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit4", "test_resnet", "test_convnext", "test_mambaout", "resnetv2_18"]
)
def test_features_are_those_of_timm(name: str) -> None:
    import timm

    network = timm.create_model(name, num_classes=3).eval()
    size = (
        64 if name == "resnetv2_18" else network.pretrained_cfg["input_size"][-1]
    )  # the one with a Conv2d head
    model = pt.Backbone(network, image_size=size)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad(), entering_head(model) as seen:
        model(images)
        entered = model.enter(images)
        expected = network.forward_head(network.forward_features(entered), pre_logits=True).flatten(1)
    assert torch.allclose(seen[0], expected, atol=1e-5)
    found = pt.attacks.attack_copy(without_head(model))(images)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "strategy",
    [pt.FullFineTune(), pt.LoRA(), pt.Compacter(), pt.IA3(), pt.VisualPrompt(), pt.strategies.SSF()],
    ids=lambda strategy: type(strategy).__name__,
)
def test_features_are_those_that_each_strategy_gives_the_head(strategy: Any) -> None:
    import timm

    model = pt.adapt(pt.Backbone(timm.create_model("test_vit", num_classes=3).eval()), strategy)
    changed(model)
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad(), entering_head(model) as seen:
        model.eval()(images)
    assert torch.allclose(copies(model).features()(images), seen[0], atol=1e-4)

"""EWC holds weights by the diagonal of their Fisher information at the start."""

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.backbones.modes import evaluation_mode
from paretune.training import EWC
from paretune.training.objectives.anchored import Anchored
from tests import tiny
from tests.unit.training.objectives.test_l2sp import change, merged, value_and_gradient

Fisher = Literal["true", "exact", "empirical"]


def regression() -> pt.Backbone:
    """A logistic regression, whose head passes on what enters it: logits are W x + b, and 0 for the last class."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.Linear(9, 10))
    with torch.no_grad():
        module[1].weight.mul_(3)  # type: ignore[operator,union-attr]
        nn.init.eye_(module[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(module[2].bias)  # type: ignore[arg-type]
    return pt.adapt(pt.Backbone(module.eval(), image_size=8), pt.FullFineTune())


def information(objective: EWC, model: pt.Backbone, data: Any, seed: int = 0) -> dict[str, Tensor]:
    return objective._information(Anchored(model, "EWC"), model, data, seed)


def test_exact_is_the_closed_form_of_a_logistic_regression() -> None:
    """F of W_cj is the mean of p_c (1 − p_c) x_j², of b_c that of p_c (1 − p_c)."""
    model, data = regression(), tiny.data(100)
    found = information(EWC(fisher="exact"), model, data)
    images, _ = data.train[:]
    x = ((images - 0.5) / 0.5).flatten(1)
    p = model(images).softmax(1).detach()[:, :9]
    assert float((p * (1 - p)).max()) > 0.2  # no flat answers
    assert torch.allclose(found["1.weight"], (p * (1 - p)).T @ x.square() / len(x), rtol=1e-4, atol=1e-7)
    assert torch.allclose(found["1.bias"], (p * (1 - p)).mean(0), rtol=1e-4, atol=1e-7)
    assert set(found) == {"1.weight", "1.bias"}


def test_empirical_takes_the_given_labels_of_the_examples_one_by_one() -> None:
    model, data = regression(), tiny.data(100)
    found = information(EWC(fisher="empirical"), model, data)
    images, labels = data.train[:]
    x = ((images - 0.5) / 0.5).flatten(1)
    apart = nn.functional.one_hot(labels, 10) - model(images).softmax(1).detach()
    apart = apart[:, :9]
    each = torch.stack([torch.outer(g, v).square() for g, v in zip(apart, x, strict=True)])
    assert torch.allclose(found["1.weight"], each.mean(0), rtol=1e-4, atol=1e-7)
    of_the_mean = (apart.T @ x / len(x)).square()
    assert not torch.allclose(found["1.weight"], of_the_mean, rtol=0.5)


def test_true_is_exact_in_expectation_and_another_thing_than_empirical() -> None:
    model, data = regression(), tiny.data(60)
    draws = [information(EWC(), model, data, seed)["1.bias"] for seed in range(40)]
    exact, empirical = (
        information(EWC(fisher=kind), model, data)["1.bias"]
        for kind in ("exact", "empirical")  # type: ignore[arg-type]
    )
    every = torch.stack(draws)
    error = every.std(0) / len(draws) ** 0.5
    assert bool(((every.mean(0) - exact).abs() <= 4 * error + 1e-6).all())
    assert bool(((every.mean(0) - empirical).abs() > 8 * error).any())
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[3], information(EWC(), model, data, 3)["1.bias"])


def by_hand(model: pt.Backbone, data: Any, layers: list[Any]) -> dict[Any, Tensor]:
    """The exact information of the weights of ``layers`` of a merged model, class by class."""
    total = {layer: torch.zeros_like(layer.weight) for layer in layers}
    images, _ = data.train[:]
    with evaluation_mode(model):
        for image in images:
            answers = model(image[None]).log_softmax(1)[0]
            for answer in answers:
                found = torch.autograd.grad(answer, [layer.weight for layer in layers], retain_graph=True)
                for layer, gradient in zip(layers, found, strict=True):
                    total[layer] += answer.detach().exp() * gradient.square() / len(images)
    return total


def test_of_lora_it_is_that_of_the_weight_that_is_merged_and_holds_the_difference() -> None:
    model, data = tiny.backbone(pt.LoRA(rank=2, alpha=6, dropout=0.3)), tiny.data(40)
    plain = pt.merge_adapter(copy.deepcopy(model).eval()).requires_grad_()
    network: Any = plain.module
    layers = [network[0], network[1].conv]
    expected = by_hand(plain, data, layers)  # type: ignore[arg-type]
    term = EWC(fisher="exact").begin(model, data, 0)
    start = merged(model)
    change(model.train())
    loss, gradient = value_and_gradient(term, model)
    now, value = merged(model), 0.0
    for layer, name in zip(layers, ("0.weight", "1.conv.weight"), strict=True):
        value += float((expected[layer] * (now[name] - start[name]).detach().square()).sum()) / 2
    assert loss.item() == pytest.approx(value, rel=1e-3)
    assert value > 0
    assert len(gradient) == 4
    assert not [name for name in gradient if name.startswith("5.")]


def test_the_gradient_is_the_information_times_the_change() -> None:
    model, data = regression(), tiny.data(60)
    weights = information(EWC(fisher="exact"), model, data)
    start = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    term = EWC(fisher="exact").begin(model, data, 0)
    at_start, nothing = value_and_gradient(term, model)
    assert at_start == 0
    assert not any(bool(value.any()) for value in nothing.values())
    change(model)
    _, gradient = value_and_gradient(term, model)
    for name, value in weights.items():
        moved = dict(model.module.named_parameters())[name].detach() - start[name]
        assert torch.allclose(gradient[name], value * moved, rtol=1e-4, atol=1e-8)
    mixed, same = value_and_gradient(term, model, mixed=True)
    assert mixed.dtype == torch.float32
    assert all(torch.equal(same[name], value) for name, value in gradient.items())


def test_a_weight_that_two_layers_share_has_the_information_of_both() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    body = (nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), first, nn.Tanh(), second, nn.Linear(6, 10))
    data, found = tiny.data(40), []
    for strategy in (pt.FullFineTune(), pt.LoRA(rank=1)):
        module = nn.Sequential(*copy.deepcopy(nn.ModuleList(body))).eval()
        model = pt.adapt(pt.Backbone(module, image_size=8), strategy)
        found.append(information(EWC(fisher="exact"), model, data)["2.weight"])
    assert torch.allclose(*found, rtol=1e-4, atol=1e-9)
    assert found[0].any()


def test_a_part_of_the_examples_is_drawn_by_the_seed() -> None:
    model, data = regression(), tiny.data(100)
    some = [information(EWC(fisher="exact", examples=5), model, data, seed)["1.bias"] for seed in (0, 0, 1)]
    assert torch.equal(some[0], some[1])
    assert not torch.equal(some[0], some[2])


def test_the_model_stays_as_it_is() -> None:
    model = tiny.backbone(pt.LoRA(rank=2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    EWC(examples=3).begin(model, tiny.data(40), 0)
    assert modes == [part.training for part in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_it_takes_a_network_that_checkpoints() -> None:
    import timm

    found = []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        network = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
        model = pt.adapt(pt.Backbone(network, image_size=32), pt.LoRA(rank=2))
        network.set_grad_checkpointing(checkpoints)
        data = pt.load_data("digits", img_size=32, limit=40)
        found.append(information(EWC(examples=2), model, data))
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-5), name
    assert any(value.any() for value in found[0].values())


@pytest.mark.parametrize(
    ("fields", "said"), [({"fisher": "true Fisher"}, "fisher"), ({"examples": 0}, "examples")]
)
def test_other_values_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"EWC: {said} must be"):
        EWC(**fields)

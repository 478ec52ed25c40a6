"""The step is taken with the gradient at adversarially perturbed weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import paretune as pt
from paretune.training.perturbing import worst_weights
from tests import tiny


def test_the_gradient_is_that_of_the_published_step() -> None:
    """Written after the published code (utils_awp.py): diff of the proxy, then perturb, backward and restore."""
    gamma = 0.05
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, labels = tiny.data().train[:16]
    proxy = copy.deepcopy(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}

    def descend() -> None:
        cross_entropy(model(images), labels).backward()

    with worst_weights(model, gamma, descend):
        descend()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    reference = copy.deepcopy(proxy)
    loss = -cross_entropy(proxy(images), labels)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    old, new = dict(reference.named_parameters()), dict(proxy.named_parameters())
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if p.ndim > 1:
                diff = new[name] - old[name]
                p.add_(gamma * old[name].norm() / (diff.norm() + 1e-20) * diff)
    cross_entropy(reference(images), labels).backward()
    for name, p in reference.named_parameters():
        assert p.grad is not None
        assert torch.allclose(ours[name], p.grad, atol=1e-4), name
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name, _ in model.module.named_parameters())
    once = reference.module.state_dict()["1.norm.running_mean"]
    assert torch.allclose(after["1.norm.running_mean"], once, atol=1e-4)  # the statistics saw one pass


def test_weights_come_back_when_the_step_fails() -> None:
    model = tiny.backbone(pt.FullFineTune())
    before = [p.clone() for p in model.parameters()]
    images, labels = tiny.data().train[:8]
    with (
        pytest.raises(RuntimeError),
        worst_weights(model, 0.1, lambda: cross_entropy(model(images), labels).backward()),
    ):
        raise RuntimeError
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1.0, float("nan")])
def test_a_size_out_of_range_is_refused(wrong: float, tmp_path) -> None:
    with pytest.raises(ValueError, match="awp is the size"):
        tiny.run(tmp_path / "run", awp=wrong)

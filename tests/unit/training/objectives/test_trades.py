"""TRADES is what its paper's code computes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from paretune.attacks.base import Streams
from paretune.attacks.pgd import _small_noise
from paretune.training import TRADES
from tests.unit.training.objectives.batches import ATTACK, THREAT, batch, close, loss_and_gradient, network


def published(model: nn.Module, images: Tensor, images_adv: Tensor, labels: Tensor, beta: float) -> Tensor:
    """As trades.py of yaodongyu/TRADES ends."""
    divergence = nn.KLDivLoss(reduction="sum")
    robust = divergence(F.log_softmax(model(images_adv), dim=1), F.softmax(model(images), dim=1))
    return F.cross_entropy(model(images), labels) + beta * robust / len(images)


def attacked_as_published(
    model: nn.Module, images: Tensor, start: Tensor, step_size: float, epsilon: float, steps: int
) -> Tensor:
    divergence, moved = nn.KLDivLoss(reduction="sum"), start
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        loss = divergence(F.log_softmax(model(moved), dim=1), F.softmax(model(images), dim=1))
        (gradient,) = torch.autograd.grad(loss, [moved])
        moved = moved.detach() + step_size * gradient.sign()
        moved = torch.min(torch.max(moved, images - epsilon), images + epsilon).clamp(0, 1)
    return moved


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_loss_and_gradient_are_the_published_ones(beta: float) -> None:
    model, examples = network(), batch()
    images_adv = (examples.images + 0.1 * torch.randn(examples.images.shape)).clamp(0, 1)
    loss = published(model, examples.images, images_adv, examples.labels, beta)
    expected = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
    assert close(loss_and_gradient(TRADES(ATTACK, beta=beta), model, examples, images_adv), expected)


def test_the_attack_is_the_published_one() -> None:
    model, examples = network(), batch(5)
    objective = TRADES(pt.PGD(THREAT, steps=4, step_size=2 / 255))
    copy = pt.attacks.attack_copy(model)
    found = objective.attacked(lambda: copy, examples)  # type: ignore[arg-type]
    images = examples.images
    start = images + Streams(examples.seed, examples.places).draw(0, images, _small_noise)
    expected = attacked_as_published(model, images, start.clamp(0, 1), 2 / 255, THREAT.epsilon, 4)
    assert torch.allclose(found, expected, atol=1e-6)
    by_labels = pt.AdversarialTraining(pt.PGD(THREAT, steps=4, step_size=2 / 255))
    assert not torch.allclose(found, by_labels.attacked(lambda: copy, examples), atol=1e-3)  # type: ignore[arg-type]


def test_the_attack_is_made_to_maximise_the_divergence_and_others_are_refused() -> None:
    assert TRADES(pt.PGD(THREAT)).inner == pt.PGD(THREAT, keep="last", loss="kl")
    assert repr(TRADES(pt.PGD(THREAT), beta=3)).endswith("loss='kl'), beta=3.0)")
    with pytest.raises(ValueError, match="TRADES: inner must be a PGD, which can maximise loss='kl'"):
        TRADES(pt.FGSM(THREAT))
    with pytest.raises(ValueError, match=r"which can maximise loss='kl'; got .*loss='l2'"):
        TRADES(pt.PGD(THREAT, loss="l2"))
    with pytest.raises(ValueError, match="random_start=True"):
        TRADES(pt.PGD(THREAT, random_start=False))
    with pytest.raises(TypeError, match="must be an attack"):
        TRADES(6.0)  # type: ignore[arg-type]
    for wrong in (-1, float("nan"), float("inf"), True, "6"):
        with pytest.raises(ValueError, match="beta must be a number"):
            TRADES(ATTACK, beta=wrong)  # type: ignore[arg-type]


def test_without_an_attack_it_is_the_cross_entropy_in_one_pass() -> None:
    model, examples = network(), batch(epsilon=0.0)
    objective, passes = TRADES(ATTACK), []
    model.register_forward_hook(lambda *_: passes.append(1))
    attacked = objective.attacked(None, examples)  # type: ignore[arg-type]
    loss, _ = objective.loss(model, examples, attacked)
    assert torch.equal(loss, F.cross_entropy(model(examples.images), examples.labels))
    assert len(passes) == 2  # one of them is the line above


def test_the_logits_for_the_log_are_those_of_the_attacked_images() -> None:
    model, examples = network(), batch()
    images_adv = examples.images.flip(0)
    _, logits = TRADES(ATTACK).loss(model, examples, images_adv)
    assert logits is not None
    assert torch.equal(logits, model(images_adv))
    assert not logits.requires_grad

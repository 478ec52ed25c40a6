"""MART is its paper's equation, and its code's formula where that does not round."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.training import MART
from tests.unit.training.objectives.batches import ATTACK, batch, close, loss_and_gradient, network


def published(model: nn.Module, images: Tensor, images_adv: Tensor, labels: Tensor, beta: float) -> Tensor:
    """As mart.py of YisenWang/MART ends."""
    logits, logits_adv = model(images), model(images_adv)
    adversarial, natural = F.softmax(logits_adv, dim=1), F.softmax(logits, dim=1)
    last = torch.argsort(adversarial, dim=1)[:, -2:]
    others = torch.where(last[:, -1] == labels, last[:, -2], last[:, -1])
    boosted = F.cross_entropy(logits_adv, labels)
    boosted = boosted + F.nll_loss(torch.log(1.0001 - adversarial + 1e-12), others)
    true = natural.gather(1, labels[:, None]).squeeze()
    divergence = nn.KLDivLoss(reduction="none")(torch.log(adversarial + 1e-12), natural).sum(dim=1)
    return boosted + beta * (divergence * (1.0000001 - true)).sum() / len(images)


def test_loss_and_gradient_are_the_published_ones() -> None:
    model, examples = network(), batch(8)
    images_adv = (examples.images + 0.3 * torch.randn(examples.images.shape)).clamp(0, 1)
    loss = published(model, examples.images, images_adv, examples.labels, 5.0)
    expected = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
    found = loss_and_gradient(MART(ATTACK), model, examples, images_adv)
    assert close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(
        expected[0], loss_and_gradient(MART(ATTACK, beta=4), model, examples, images_adv)[0]
    )


def test_the_equation_holds_to_rounding_without_the_constants_of_the_code() -> None:
    model, examples = network().double(), batch(8)
    model[3].weight.data *= 10  # confident, and often wrong
    images_adv = examples.images.flip(0)
    p, q = (model(images.double()).softmax(1) for images in (examples.images, images_adv))
    rows, labels = torch.arange(8), examples.labels
    wrong = q.scatter(1, labels[:, None], 0).amax(1)
    divergence = (p * (p / q).log()).sum(1) * (1 - p[rows, labels])
    expected = (-q[rows, labels].log() - (1 - wrong).log() + 5 * divergence).mean()
    model.float()
    loss, _ = MART(ATTACK).loss(model, examples, images_adv)
    assert torch.allclose(loss.double(), expected, rtol=1e-4)


def test_a_certain_mistake_has_a_finite_loss_and_gradient() -> None:
    class Certain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1000.0))

        def forward(self, images: Tensor) -> Tensor:
            return self.scale * F.one_hot(torch.ones(len(images), dtype=torch.int64), 4)

    examples = batch(4)
    found = loss_and_gradient(MART(ATTACK), Certain(), examples, examples.images + 0)
    assert all(value.isfinite().all() for value in found)
    assert found[0].item() > 1000


def test_without_an_attack_it_is_the_boosted_cross_entropy() -> None:
    model, examples = network(), batch(epsilon=0.0)
    objective = MART(ATTACK)
    found = objective.loss(model, examples, objective.attacked(None, examples))[0]  # type: ignore[arg-type]
    assert torch.allclose(
        found, published(model, examples.images, examples.images, examples.labels, 0), rtol=1e-3
    )

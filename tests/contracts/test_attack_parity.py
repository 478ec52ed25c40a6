"""Our attacks are at least as strong as the reference libraries' on a trained network.

Both sides get the same radius, step size, number of steps and one random start, drawn from the same seed. The rule:
of 256 images at most one more may survive ours, for rounding. For Linf the starts are even the same points.
"""

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from paretune.attacks import L2, PGD, Linf, Threat

STEPS = 10
SLACK = 1
THREATS = [Linf(0.05), Linf(0.1), L2(0.5), L2(1.0)]
Victim = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def victim() -> Victim:
    """A small ResNet (batch norm, residual branches) that reads digits, and 256 images it was not trained on."""
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, size=16)
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", pretrained=False, num_classes=10, in_chans=1).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(150):
            rows = torch.randint(0, 1500, (64,))
            noisy = images[rows] + 0.1 * torch.randn(64, 1, 16, 16)
            loss = F.cross_entropy(model(noisy), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False), images[1500:1756], labels[1500:1756]


@pytest.fixture(scope="module")
def pretrained_victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """EfficientNet-Lite0 with its ImageNet weights and a LoRA trained under attack, and 250 images it was not trained on."""
    data = pt.load_data("digits", img_size=24, limit=1000)
    backbone = pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24)
    model = pt.adapt(backbone, pt.LoRA(rank=4))
    pt.train(
        model,
        data,
        pt.AdversarialTraining(PGD(Linf(2 / 255), steps=2)),
        out=tmp_path_factory.mktemp("run"),
        epochs=3,
        attacks=[PGD(Linf(2 / 255), steps=1)],
        eval_every=1000,
        progress=False,
    )
    return (pt.merge_adapter(model), *data.report[:])


def survivors(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        return int((model(images).argmax(1) == labels).sum())


def torchattacks_pgd(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    import torchattacks

    kind = torchattacks.PGD if isinstance(threat, Linf) else torchattacks.PGDL2
    attack = kind(
        model, eps=threat.epsilon, alpha=2.5 * threat.epsilon / STEPS, steps=STEPS, random_start=True
    )
    attacked: Tensor = attack(images, labels)
    return attacked


def foolbox_pgd(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    import foolbox

    kind = foolbox.attacks.LinfPGD if isinstance(threat, Linf) else foolbox.attacks.L2PGD
    attack = kind(abs_stepsize=2.5 * threat.epsilon / STEPS, steps=STEPS, random_start=True)
    attacked: Tensor
    _, attacked, _ = attack(
        foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=threat.epsilon
    )
    return attacked


@pytest.mark.parametrize("reference", [torchattacks_pgd, foolbox_pgd])
@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_pgd_is_as_strong_as_the_reference(
    victim: Victim, threat: Threat, reference: Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
) -> None:
    compare_with_reference(victim, threat, reference, learnt=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [torchattacks_pgd, foolbox_pgd])
@pytest.mark.parametrize("threat", [Linf(2 / 255), Linf(4 / 255), L2(0.25)], ids=repr)
def test_pgd_is_as_strong_as_the_reference_on_a_pretrained_model(
    pretrained_victim: Victim,
    threat: Threat,
    reference: Callable[[nn.Module, Tensor, Tensor, Threat], Tensor],
) -> None:
    compare_with_reference(pretrained_victim, threat, reference, learnt=0.85)


def compare_with_reference(
    victim: Victim,
    threat: Threat,
    reference: Callable[[nn.Module, Tensor, Tensor, Threat], Tensor],
    learnt: float,
) -> None:
    """No more than ``SLACK`` images survive our attack than survive the reference's."""
    model, images, labels = victim
    ours = survivors(model, PGD(threat, steps=STEPS)(model, images, labels), labels)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # Both import packages that use what setuptools, numpy and torch have deprecated.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        # On a copy: one leaves gradients behind, the other changes modes.
        theirs = survivors(model, reference(copy.deepcopy(model), images, labels, threat), labels)
    clean = survivors(model, images, labels)
    assert clean > learnt * len(images)
    assert 0 < theirs < clean
    assert ours <= theirs + SLACK


def test_linf_pgd_without_a_random_start_takes_the_steps_of_torchattacks(victim: Victim) -> None:
    model, images, labels = victim
    attack = PGD(Linf(0.05), steps=3, step_size=0.02, random_start=False, keep="last")
    ours = attack(model, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        import torchattacks

        reference = torchattacks.PGD(copy.deepcopy(model), eps=0.05, alpha=0.02, steps=3, random_start=False)
        theirs = reference(images, labels)
    # A pixel whose gradient is zero up to rounding may step either way; every other pixel must agree.
    agreeing = ((ours - theirs).abs() <= 2**-23).float().mean()
    assert agreeing > 0.99

"""What every attack keeps to, under every threat, on small timm models.

An attack joins by its line in ``ATTACKS`` and one in ``SMALL``; a threat by its line in ``THREATS``.
"""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from paretune._values import from_dict, parse
from paretune.attacks import (
    APGD,
    ATTACKS,
    FAB,
    FGSM,
    L1,
    L2,
    NFGSM,
    PGD,
    THREATS,
    Attack,
    AutoAttack,
    Linf,
    Square,
    attack_copy,
)
from paretune.attacks.search import SearchAttack

BALLS = [Linf(0.01), L2(0.3), L1(3.0)]
SMALL: list[Attack] = [
    *(
        attack
        for threat in BALLS
        for attack in (
            PGD(threat, steps=3),
            PGD(threat, steps=3, keep="last", momentum=0.9),
            APGD(threat, steps=5, restarts=2),
            APGD(threat, steps=4, loss="dlr"),
            APGD(threat, steps=4, loss="dlr-targeted", targets=2),
            APGD(threat, steps=3, keep="last"),
            FAB(threat, steps=4, targets=2),
            FAB(threat, steps=2, targets=None),
            Square(threat, queries=8),
            AutoAttack(threat, steps=2, queries=3, targets=1),
            FGSM(threat),
        )
    ),
    NFGSM(Linf(0.01)),
]
# Attacks that stop at the first success, and so never give a wrong image up.
SEARCHES = [
    attack
    for attack in SMALL
    if isinstance(attack, SearchAttack | AutoAttack) and getattr(attack, "keep", "best") == "best"
]
every_attack = pytest.mark.parametrize("attack", SMALL, ids=repr)


def victim(name: str = "test_resnet") -> nn.Module:
    """Random weights and running statistics, dropout, and in training mode, which must not matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"img_size": 32} if name == "test_vit" else {}
        model = timm.create_model(name, pretrained=False, num_classes=6, drop_rate=0.3, **size)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
                part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
        with torch.no_grad():  # no class wins everywhere
            model.get_classifier().bias -= model.eval()(torch.rand(64, 3, 32, 32)).mean(dim=0)
    return model.train()


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A model, eight images and labels that are right, but for two."""
    model = victim()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = predictions(model, images)
    labels[:2] = (labels[:2] + 1) % 6
    return model, images, labels


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = copy.deepcopy(model).eval()(images).argmax(dim=1)
    return classes


def world(model: nn.Module) -> dict[str, Any]:
    """Everything about a model and the process that an attack might disturb."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [part.training for part in model.modules()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()],
        "random": torch.random.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


def test_every_attack_and_threat_is_here() -> None:
    assert {type(attack) for attack in SMALL} == set(ATTACKS.values())
    assert {type(threat) for threat in BALLS} == set(THREATS.values())


@pytest.mark.some
@every_attack
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_what_comes_back_lies_in_the_ball_and_the_box(name: str, attack: Attack) -> None:
    model, images = victim(name), torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # Some pixels at the bounds of [0, 1], where clamping happens.
    images = (1.4 * images - 0.2).clamp(0, 1)
    labels = predictions(model, images)
    attack = attack.with_epsilon(8 * attack.threat.epsilon)  # so that some images are solved
    found = attack(attack_copy(model, precision="fp32"), images, labels)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    pixels, epsilon = images[0].numel(), attack.threat.epsilon
    # Rounding of x + delta: half a unit in the last place of 1 a pixel, summed as the norm sums.
    rounding = {"Linf": 1.0, "L2": pixels**0.5, "L1": float(pixels)}[type(attack.threat).__name__] * 2**-24
    distance = attack.threat.distance(found, images)
    assert distance.max() > 0
    if attack.in_ball:
        assert distance.max() <= epsilon * (1 + 4 * 2**-23) + rounding
    else:
        assert distance.max() > epsilon


@pytest.mark.some(12)
@every_attack
def test_the_model_the_arguments_and_the_random_state_stay_as_they_are(attack: Attack) -> None:
    model = victim()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = predictions(model, images)
    given = images.clone(), labels.clone()
    before = world(model)
    attack(model, images, labels)
    after = world(model)
    assert after["state"].keys() == before["state"].keys()
    assert all(torch.equal(after["state"][name], tensor) for name, tensor in before["state"].items())
    assert torch.equal(after["random"], before["random"])
    for name in ("modes", "trainable", "gradients", "hooks", "grad mode"):
        assert after[name] == before[name]
    assert torch.equal(images, given[0])
    assert torch.equal(labels, given[1])


@every_attack
def test_one_seed_gives_one_answer(problem: tuple[nn.Module, Tensor, Tensor], attack: Attack) -> None:
    model, images, labels = problem
    copied = attack_copy(model, precision="fp32")
    first = attack(copied, images, labels, seed=3)
    torch.rand(1)
    assert torch.equal(attack(copied, images, labels, seed=3), first)


@every_attack
def test_an_empty_batch_gives_an_empty_batch(attack: Attack) -> None:
    found = attack(victim(), torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64))
    assert found.shape == (0, 3, 32, 32)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("attack", SEARCHES, ids=repr)
def test_an_attack_is_never_weaker_than_doing_nothing(
    problem: tuple[nn.Module, Tensor, Tensor], attack: Attack
) -> None:
    model, images, labels = problem
    copied = attack_copy(model, precision="fp32")
    found = attack(copied, images, labels)
    assert torch.equal(found[:2], images[:2])  # misclassified already
    assert (copied.exact(found).argmax(dim=1) != labels)[:2].all()


@pytest.mark.parametrize("attack", SEARCHES, ids=repr)
def test_neighbours_do_not_change_what_an_image_draws(attack: Attack) -> None:
    class PixelByPixel(nn.Module):
        """Logits of an image that do not depend on its batch, not even in the last bit."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3 * 8 * 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)
            return torch.stack([(flat * row).sum(dim=1) for row in self.weight], dim=1)

    model = PixelByPixel()
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(dim=1)
    together = attack(model, images, labels)
    others = torch.arange(12) % 3 > 0
    alone = attack(
        model, images, torch.where(others, (labels + 1) % 6, labels)
    )  # the others are solved at once
    assert torch.equal(alone[~others], together[~others])


@pytest.mark.some
@every_attack
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients_around_it(attack: Attack, mode: Any) -> None:
    model = victim()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = predictions(model, images)
    copied = attack_copy(model, precision="fp32")
    expected = attack(copied, images, labels)
    with mode():
        found = attack(copied, images.clone(), labels.clone())
    assert torch.equal(found, expected)
    assert not found.is_inference()


@pytest.mark.some(12)
@every_attack
def test_wrong_arguments_are_named(attack: Attack) -> None:
    model, images, labels = victim(), torch.full((2, 3, 32, 32), 0.5), torch.tensor([0, 1])
    for wrong_images, wrong_labels, message in (
        ((images * 255).to(torch.uint8), labels, r"floating point in \[0, 1\], got torch.uint8"),
        (images * 255, labels, r"must lie in \[0, 1\]"),
        (images * torch.nan, labels, "images hold NaN"),
        (images.to("meta"), labels, "images are on meta, the model on cpu"),
        (images, labels - 1, "labels must be class indices from 0, got -1"),
        (images, labels + 5, "below the model's 6 classes, got 6"),
        (images, labels[:1], r"labels must have shape \(2,\)"),
        (images, labels.float(), "integer dtype, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(model, wrong_images, wrong_labels)


@every_attack
def test_a_model_without_a_gradient_is_named_unless_none_is_needed(attack: Attack) -> None:
    class Hard(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.detach().flatten(1)[:, :6] + torch.tensor([9.0, 0, 0, 0, 0, 0])

    images, labels = torch.full((2, 3, 32, 32), 0.5), torch.tensor([0, 0])
    if isinstance(attack, Square):
        assert torch.equal(Hard()(attack(Hard(), images, labels)).argmax(dim=1), labels)
    else:
        with pytest.raises(ValueError, match="the model has no gradient with respect to its images"):
            attack(Hard(), images, labels)


@every_attack
def test_it_prints_and_reads_back_as_the_call_that_makes_it(attack: Attack) -> None:
    assert parse(repr(attack), {**ATTACKS, **THREATS}) == attack
    assert from_dict(attack.to_dict(), {**ATTACKS, **THREATS}) == attack
    doubled = attack.with_epsilon(2 * attack.threat.epsilon)
    assert doubled.threat.epsilon == 2 * attack.threat.epsilon
    assert doubled.with_epsilon(attack.threat.epsilon) == attack


@pytest.mark.parametrize("kind", ATTACKS.values(), ids=lambda kind: kind.__name__)
def test_a_threat_must_be_one_and_its_radius_in_pixel_units(kind: type[Attack]) -> None:
    with pytest.raises(TypeError, match=r"threat must be"):
        kind(0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"did you mean 8/255\?"):
        kind(Linf(8))
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got 0"):
        kind(Linf(0.1)).with_epsilon(0)

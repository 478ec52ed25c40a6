import pytest
import torch
from torch import Tensor, nn

from paretune.attacks import L2, Linf, Threat, masking_findings
from paretune.attacks.masking import (
    black_box_wins,
    loss_does_not_grow,
    not_monotone,
    random_forward,
    zero_gradients,
)
from tests.unit.attacks.victims import Linear, batch


class Network(nn.Module):
    """A small network that is not linear; ``scale`` multiplies its logits."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)
            )
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.body(images - 0.5)
        return logits


class Quantised(Network):
    """Input rounded to 16 levels; the gradient of rounding is zero."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.round(images * 15) / 15)


class Noisy(Network):
    """Noise on the input, in evaluation mode too."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.3 * torch.randn_like(images))


class WrongWay(Network):
    """A gradient that leads down: the forward value is right, its slope has the other sign."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(2 * images.detach() - images)


def findings(model: nn.Module, threat: Threat) -> tuple[str, ...]:
    images, _ = batch(48, side=8)
    with torch.random.fork_rng():
        labels = model(images).argmax(dim=1)
    return masking_findings(model, images, labels, threat)


def named(made: tuple[str, ...], sign: str) -> bool:
    return any(sign in finding for finding in made)


def test_a_saturated_softmax_is_named() -> None:
    made = findings(Network(scale=1e6), Linf(0.02))
    assert named(made, "zero gradients for ")
    assert named(made, "loss='dlr'")


def test_a_rounded_input_is_named() -> None:
    made = findings(Quantised(), Linf(0.1))
    assert named(made, "zero gradients for 48 of 48 images")
    assert named(made, "black-box beats white-box")
    assert named(made, "the loss does not grow with attack steps")


def test_a_random_layer_is_named() -> None:
    assert named(findings(Noisy(), Linf(0.02)), "the forward pass is random")


def test_a_gradient_that_leads_down_is_named() -> None:
    made = findings(WrongWay(), Linf(0.02))
    assert named(made, "the loss does not grow with attack steps")
    assert named(made, "black-box beats white-box")


@pytest.mark.parametrize("threat", [Linf(0.02), Linf(0.9), L2(0.5)], ids=repr)
@pytest.mark.parametrize("make", [Network, lambda: Linear(5, 3, 8, 8)])
def test_a_sound_model_gives_no_finding(make: type[Network], threat: Threat) -> None:
    assert findings(make(), threat) == ()


def test_nothing_to_look_at_gives_no_finding() -> None:
    images, labels = batch(4, side=8)
    model = Network()
    assert masking_findings(model, images[:0], labels[:0], Linf(0.1)) == ()
    assert masking_findings(model, images, model(images).argmin(dim=1), Linf(0.1)) == ()


def test_zero_gradients_are_named_above_one_image_in_twenty() -> None:
    assert zero_gradients(5, 100) is None
    assert "6 of 100 images" in str(zero_gradients(6, 100))
    assert zero_gradients(0, 0) is None


def test_rounding_is_no_randomness() -> None:
    logits = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    assert random_forward(logits, logits * (1 + 1e-6)) is None
    assert random_forward(logits, logits + 0.01) is not None
    assert random_forward(logits[:0], logits[:0]) is None


def test_one_image_that_only_a_black_box_solves_is_chance() -> None:
    assert black_box_wins(1, 50, 100) is None
    assert "2 of the 50 images" in str(black_box_wins(2, 50, 100))
    assert black_box_wins(2, 5000, 10_000) is None


def test_robust_accuracy_must_fall_with_epsilon() -> None:
    assert not_monotone({0.1: 50, 0.2: 30, 0.4: 31}, 100) is None
    assert "55.0% at 0.4, 30.0% at 0.2" in str(not_monotone({0.4: 55, 0.1: 50, 0.2: 30}, 100))


def test_the_loss_must_grow_with_steps() -> None:
    assert loss_does_not_grow(few=1.0, many=1.5, clean=0.5) is None
    for few, many, clean in ((1.0, 1.0, 0.5), (0.1, 0.4, 0.5), (1.0, float("nan"), 0.5)):
        assert loss_does_not_grow(few, many, clean) is not None

from typing import Any

import pytest
import torch

from paretune.attacks import FGSM, L2, NFGSM, Linf
from tests.unit.attacks.test_apgd import Passes, passes
from tests.unit.attacks.victims import Linear, batch, exact_copy

__all__ = ["passes"]  # a fixture


def direction(model: Linear, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sign of the gradient of the cross-entropy of a two-class linear model, the same everywhere."""
    return (model.weight[1 - labels] - model.weight[labels]).detach().view_as(images).sign()


def test_from_the_image_it_is_goodfellows_step() -> None:
    model, (images, labels) = Linear(2, 3, 4, 4), batch(classes=2)
    expected = (images + 0.1 * direction(model, images, labels)).clamp(0, 1)
    torch.testing.assert_close(FGSM(Linf(0.1), start="image")(model, images, labels), expected)


def test_from_a_random_start_the_step_is_five_quarters_of_the_radius_and_stays_in_the_ball() -> None:
    model, (images, labels) = Linear(2, 3, 4, 4), batch(64, classes=2, low=0.3, high=0.7)
    change = (FGSM(Linf(0.1))(model, images, labels) - images) * direction(model, images, labels)
    # A start uniform in [-1, 1] radii, 1.25 radii on, cut at 1: -0.25 to 1, and at 1 with probability 5/8.
    assert change.min() >= -0.025 - 1e-6
    assert change.max() <= 0.1 + 2**-24
    share = float((change > 0.1 - 1e-6).float().mean())  # of 3072 pixels: standard error 0.009
    assert abs(share - 0.625) < 5 * 0.009


def test_n_fgsm_adds_noise_of_two_radii_and_a_step_of_one_without_coming_back() -> None:
    model, (images, labels) = Linear(2, 3, 4, 4), batch(64, classes=2, low=0.4, high=0.6)
    change = (NFGSM(Linf(0.1))(model, images, labels) - images) * direction(model, images, labels)
    noise = (change - 0.1) / 0.2
    assert noise.abs().max() <= 1 + 1e-5
    assert abs(float(noise.mean())) < 5 * 0.0104  # uniform: variance 1/3, 3072 pixels
    assert abs(float(noise.var()) - 1 / 3) < 5 * 0.0054
    assert change.max() > 0.25  # far outside the ball
    dark = torch.zeros_like(images)
    assert NFGSM(Linf(0.1))(model, dark, labels).min() >= 0


def test_n_fgsm_says_that_it_leaves_the_ball() -> None:
    assert FGSM(Linf(0.1)).in_ball
    assert not NFGSM(Linf(0.1)).in_ball
    with pytest.raises(
        TypeError, match=r"NFGSM: threat must be Linf, got L2\(0.5\); for other norms use FGSM or PGD"
    ):
        NFGSM(L2(0.5))


@pytest.mark.parametrize(
    "attack", [FGSM(Linf(0.1)), FGSM(L2(0.5), start="image"), NFGSM(Linf(0.1))], ids=repr
)
def test_one_forward_and_one_backward_pass(passes: type[Passes], attack: FGSM | NFGSM) -> None:
    model, (images, labels) = Linear(3, 3, 4, 4), batch()
    attack(exact_copy(model), images, labels)
    (oracle,) = passes.made
    assert (oracle.forwards, oracle.backwards) == (16, 16)


def test_with_epsilon_scales_a_fixed_step() -> None:
    assert FGSM(Linf(0.1), step_size=0.05).with_epsilon(0.2) == FGSM(Linf(0.2), step_size=0.1)
    assert NFGSM(Linf(0.1), step_size=0.05).with_epsilon(0.2) == NFGSM(Linf(0.2), step_size=0.1)
    assert NFGSM(Linf(0.1)).with_epsilon(0.2) == NFGSM(Linf(0.2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSM(Linf(0.1), start="noise"), "start must be 'random' or 'image', got 'noise'"),  # type: ignore[arg-type]
        (lambda: FGSM(Linf(0.1), step_size=0.0), "FGSM: step_size must be a finite number above 0, or None"),
        (lambda: NFGSM(Linf(0.1), noise=-1.0), "noise must be a finite number of at least 0, got -1.0"),
        (lambda: NFGSM(Linf(0.1), step_size=-1.0), "NFGSM: step_size must be a finite number above 0"),
    ],
)
def test_wrong_fields_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

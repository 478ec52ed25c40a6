"""What PGD maximises besides the cross-entropy; TRADES and FARE test the steps against their published forms."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretune.attacks import L2, PGD, Linf, attack_copy
from paretune.attacks.losses import kl_divergence


def victim() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 5)).eval()


IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 5


@pytest.mark.parametrize("loss", ["kl", "l2"])
@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5)])
@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_it_climbs_what_it_is_told_to_without_labels(loss: str, threat: object, momentum: float) -> None:
    model = victim()

    def value(attack: PGD) -> torch.Tensor:
        found = attack(model, IMAGES, LABELS)
        assert threat.allows(found, IMAGES).all()  # type: ignore[attr-defined]
        assert torch.equal(found, attack(model, IMAGES, LABELS.flip(0)))
        outputs = model(IMAGES), model(found)
        if loss == "l2":
            return (outputs[1] - outputs[0]).square().sum(1)
        return F.kl_div(outputs[1].log_softmax(1), outputs[0].softmax(1), reduction="none").sum(1)

    settings = {"keep": "last", "loss": loss, "momentum": momentum}
    few, many = (PGD(threat, steps=steps, **settings) for steps in (1, 20))  # type: ignore[arg-type]
    assert (value(many) > value(few)).all()


@pytest.mark.parametrize("loss", ["kl", "l2"])
def test_as_a_search_it_fools_the_model_and_does_not_depend_on_the_batch(loss: str) -> None:
    model, labels = victim(), victim()(IMAGES).argmax(1)
    attack = PGD(Linf(0.4), steps=20, restarts=2, loss=loss)  # type: ignore[arg-type]
    found = attack(model, IMAGES, labels, seed=1)
    fooled = model(found).argmax(1) != labels
    assert fooled.any()
    again = attack(model, IMAGES[3:], labels[3:], seed=1, places=torch.arange(3, 6))
    assert torch.allclose(again, found[3:], atol=1e-6)


def test_the_start_for_the_divergence_is_small_gaussian_noise_and_of_the_others_the_ball() -> None:
    images, labels = torch.full((20, 3, 16, 16), 0.5), torch.zeros(20, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    starts = {
        loss: PGD(Linf(0.1), steps=1, step_size=1e-9, keep="last", loss=loss)(model, images, labels) - 0.5
        for loss in ("ce", "kl", "l2")
    }
    assert starts["kl"].std() == pytest.approx(0.001, rel=0.05)
    assert starts["kl"].abs().max() > 0.003  # not uniform
    for loss in ("ce", "l2"):
        assert starts[loss].std() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    tiny = PGD(Linf(0.0005), steps=1, step_size=1e-9, keep="last", loss="kl")(model, images, labels) - 0.5
    assert tiny.abs().max() <= 0.0005 + 1e-7


def test_the_distance_is_to_what_is_given() -> None:
    model = victim()
    wanted = torch.randn(6, 5)
    attack = PGD(Linf(0.1), steps=10, keep="last", loss="l2")
    found = attack(model, IMAGES, LABELS, reference=wanted)
    plain = attack(model, IMAGES, LABELS)
    far = (model(found) - wanted).square().sum(1)
    assert (far >= (model(plain) - wanted).square().sum(1) - 1e-5).all()
    assert not torch.equal(found, plain)
    with pytest.raises(ValueError, match=r"reference must be \(6, outputs\)"):
        attack(model, IMAGES, LABELS, reference=wanted[:2])
    for other in (PGD(Linf(0.1), keep="last"), PGD(Linf(0.1), loss="l2")):
        with pytest.raises(ValueError, match="reference= is for"):
            other(model, IMAGES, LABELS, reference=wanted)


def test_what_has_no_gradient_or_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="loss='kl' needs random_start=True"):
        PGD(Linf(0.1), loss="kl", random_start=False)
    with pytest.raises(ValueError, match="loss='l2' needs targeted=False"):
        PGD(Linf(0.1), loss="l2", targeted=True)
    with pytest.raises(ValueError, match="loss must be 'ce', 'kl' or 'l2'"):
        PGD(Linf(0.1), loss="dlr")  # type: ignore[arg-type]


def test_the_passes_are_what_the_model_sees() -> None:
    model, seen = victim(), []
    copy = attack_copy(model)
    look = copy.look
    copy.look = lambda images: seen.append(len(images)) or look(images)  # type: ignore[assignment,func-returns-value]
    attack = PGD(Linf(0.1), steps=3, keep="last", loss="kl")
    attack(copy, IMAGES, LABELS)
    assert seen == [6] * 4  # the clean images, and each step
    assert attack.passes(5) == 7


def test_a_divergence_skips_classes_that_are_ruled_out() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.0]], requires_grad=True)
    other = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    value = kl_divergence(logits.log_softmax(1), other.log_softmax(1))
    kept = F.kl_div(other[:, ::2].log_softmax(1), logits[:, ::2].softmax(1), reduction="sum")
    assert value.item() == pytest.approx(kept.item(), rel=1e-6)
    gradients = torch.autograd.grad(value.sum(), [logits, other])
    assert all(gradient.isfinite().all() for gradient in gradients)

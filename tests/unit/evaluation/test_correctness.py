"""Correctness bits: what they mean, and that measuring changes nothing."""

import numpy as np
import pytest
import torch
from torch import nn

import paretune as pt
from tests import tiny


class Threshold(nn.Module):
    """Class 1 if the mean pixel is above one half; robust at epsilon exactly where the margin exceeds it."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(50.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = self.slope * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-margin, margin], 1)


def margins() -> tuple[pt.data.ImageData, np.ndarray]:
    """Flat images at known distances from the threshold; every fifth has the wrong label."""
    gaps = torch.linspace(0.005, 0.2, 60).repeat_interleave(2)
    sign = torch.tensor([1.0, -1.0]).repeat(60)
    images = (0.5 + sign * gaps).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    labels = (sign > 0).long()
    labels[::5] = 1 - labels[::5]
    data = pt.data.ImageData.from_tensors(images, labels, seed=0)
    return data, gaps.numpy()[data.report.ids]


def test_bits_are_the_closed_form_on_a_threshold() -> None:
    data, gaps = margins()
    attacks = [pt.PGD(pt.Linf(0.05), steps=5), pt.PGD(pt.Linf(0.1), steps=5)]
    scores = pt.evaluate(Threshold(), data.report, attacks, batch_size=7)
    right = np.array((Threshold()(data.report[:][0]).argmax(1) == data.report.labels).tolist())
    assert 0 < right.sum() < len(right)
    assert np.array_equal(scores.clean, right)
    for attack in attacks:
        assert np.array_equal(scores.robust[attack], right & (gaps > attack.threat.epsilon))
    frame = scores.to_frame()
    assert list(frame.epsilon) == [0.05, 0.1]
    assert frame.robust.iloc[0] >= frame.robust.iloc[1]
    assert (frame.robust <= frame.clean).all()


def test_epsilons_multiply_attacks_and_shards_add_up() -> None:
    data, _ = margins()
    whole = pt.evaluate(
        Threshold(), data.report, [pt.PGD(pt.Linf(0.1), steps=3)], epsilons=[0.02, 0.1], batch_size=8
    )
    assert [attack.threat.epsilon for attack in whole.robust] == [0.02, 0.1]
    parts = [
        pt.evaluate(
            Threshold(),
            data.report,
            [pt.PGD(pt.Linf(0.1), steps=3)],
            epsilons=[0.02, 0.1],
            batch_size=8,
            shard=(rank, 3),
        )
        for rank in range(3)
    ]
    for attack, bits in whole.robust.items():
        assert np.array_equal(sum(part.robust[attack].astype(int) for part in parts), bits.astype(int))
    assert np.array_equal(sum(part.clean.astype(int) for part in parts), whole.clean.astype(int))


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.backbone(pt.FullFineTune(bn="adapt"))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    pt.evaluate(model, tiny.data().select, [pt.PGD(pt.Linf(0.05), steps=2)])
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_nothing_to_measure_is_an_error() -> None:
    data, _ = margins()
    with pytest.raises(ValueError, match="two attacks are the same"):
        pt.evaluate(Threshold(), data.report, [pt.PGD(pt.Linf(0.1))] * 2)


def test_every_attack_measures_and_a_stricter_one_finds_no_less() -> None:
    from paretune.attacks import APGD, FGSM, AutoAttack

    data, gaps = margins()
    attacks = [
        FGSM(pt.Linf(0.05)),
        APGD(pt.Linf(0.05), steps=10),
        AutoAttack(pt.Linf(0.05), version="rand", steps=5),
    ]
    with pytest.raises(ValueError, match="at least 3 classes"):
        pt.evaluate(Threshold(), data.report, [*attacks, APGD(pt.Linf(0.05), loss="dlr")])
    scores = pt.evaluate(Threshold(), data.report, attacks)
    right = np.array((Threshold()(data.report[:][0]).argmax(1) == data.report.labels).tolist())
    for attack in attacks:  # the loss is monotone, so one step reaches the closed form
        assert np.array_equal(scores.robust[attack], right & (gaps > attack.threat.epsilon))


def test_an_attack_that_leaves_the_ball_and_what_is_no_attack_are_refused() -> None:
    from paretune.attacks import NFGSM

    data, _ = margins()
    with pytest.raises(ValueError, match="leaves its ball by design"):
        pt.evaluate(Threshold(), data.report, [NFGSM(pt.Linf(0.1))])
    with pytest.raises(TypeError, match=r"PGD\(Linf\(4/255\)\), got Linf"):
        pt.evaluate(Threshold(), data.report, [pt.Linf(0.1)])  # type: ignore[list-item]


def test_a_given_victim_is_searched_on_and_the_model_judges() -> None:
    from paretune.attacks import attack_copy

    data, _ = margins()
    attack = pt.PGD(pt.Linf(0.05), steps=5)
    careless = Threshold()
    with torch.no_grad():
        careless.slope.neg_()  # its gradient leads the attack the wrong way
    scores = pt.evaluate(Threshold(), data.report, [attack], victim=attack_copy(careless))
    right = np.array((Threshold()(data.report[:][0]).argmax(1) == data.report.labels).tolist())
    assert scores.robust[attack].sum() == right.sum()

"""An attack's answer for an image depends neither on the size of its batch nor on its neighbours, to the last bit.

The victim's logits of an image do not depend on its batch either, so whatever differs is the attack's.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

import paretune as pt
from paretune.attacks import FGSM, L1, L2, NFGSM, PGD, Attack, Linf, Threat
from paretune.attacks.streams import Streams
from paretune.data.image_split import ImageSplit
from tests.contracts.test_attacks import SMALL
from tests.unit.attacks.victims import RowByRow, exact_copy

BALLS = [Linf(0.02), L2(0.15), L1(1.5)]
RUNS: list[Attack] = [
    *(
        attack
        for threat in BALLS
        for attack in (
            PGD(threat, steps=4),
            PGD(threat, steps=3, restarts=3, momentum=0.7),
            PGD(threat, steps=4, keep="last"),
            FGSM(threat),
        )
    ),
    NFGSM(Linf(0.02)),
]


def problem(n: int) -> tuple[RowByRow, Tensor, Tensor]:
    """Images of which one in eight is misclassified, and the others lie at all distances from the boundary."""
    model = RowByRow(4, 3, 4, 4)
    images = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(dim=1)
    wrong = torch.arange(n) % 8 == 3
    return model, images, torch.where(wrong, (labels + 1) % 4, labels)


def in_batches(attack: Attack, size: int, images: Tensor, labels: Tensor, model: RowByRow) -> Tensor:
    victim = exact_copy(model)
    return torch.cat(
        [
            attack(victim, images[rows], labels[rows], seed=5, places=rows)
            for rows in torch.split(torch.arange(len(images)), size)
        ]
    )


@pytest.mark.some(7)
@pytest.mark.parametrize("attack", RUNS, ids=repr)
def test_one_at_a_time_sevens_and_128_give_the_same_bits(attack: Attack) -> None:
    model, images, labels = problem(150)
    whole = attack(exact_copy(model), images, labels, seed=5)
    # Images are solved at different steps, and some not, so that the batch shrinks on the way.
    solved = model(whole).argmax(dim=1) != labels
    assert 150 / 8 + 10 < solved.sum() < 140
    for size in (1, 7, 128):
        assert torch.equal(in_batches(attack, size, images, labels, model), whole)


@pytest.mark.parametrize("attack", SMALL, ids=repr)
def test_every_attack_answers_for_an_image_alone_as_among_others(attack: Attack) -> None:
    model, images, labels = problem(12)
    whole = attack(exact_copy(model), images, labels, seed=5)
    assert torch.equal(in_batches(attack, 5, images, labels, model), whole)
    # Other neighbours, in another order, at the same places.
    rows = torch.tensor([9, 2, 4])
    assert torch.equal(
        attack(exact_copy(model), images[rows], labels[rows], seed=5, places=rows), whole[rows]
    )


@pytest.mark.parametrize("threat", BALLS, ids=repr)
@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 40, 40), (3, 224, 224)])
def test_random_starts_are_drawn_bit_for_bit(threat: Threat, shape: tuple[int, ...]) -> None:
    images, streams = torch.full((9, *shape), 0.5), Streams(3, torch.arange(9))
    whole = streams.draw(2, images, threat.random_change)
    for rows in torch.split(torch.arange(9), 4):
        assert torch.equal(streams.take(rows).draw(2, images[rows], threat.random_change), whole[rows])


@pytest.mark.slow
def test_an_evaluation_has_the_same_bits_for_every_batch_size_and_shard() -> None:
    model, images, labels = problem(150)
    data = ImageSplit(labels, torch.arange(150), images.__getitem__, "linear")
    attacks = [attack for attack in RUNS if attack.in_ball and getattr(attack, "keep", "best") == "best"]
    whole = pt.evaluate(model, data, attacks, seed=2, batch_size=150)
    for size in (1, 7, 128):
        parts = [
            pt.evaluate(model, data, attacks, seed=2, batch_size=size, shard=(rank, 2)) for rank in (0, 1)
        ]
        for attack in attacks:
            assert np.array_equal(parts[0].robust[attack] | parts[1].robust[attack], whole.robust[attack])
    assert not all(
        np.array_equal(bits, whole.robust[attack])
        for attack, bits in pt.evaluate(model, data, attacks, seed=3).robust.items()
    )


def test_a_model_that_draws_numbers_draws_others_for_each_batch_of_a_set() -> None:
    class Noisy(RowByRow):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + 0.1 * torch.randn_like(images))

    model, images, labels = Noisy(4, 3, 4, 4), torch.full((6, 3, 4, 4), 0.5), torch.zeros(6).long()
    attack = PGD(Linf(0.1), steps=3, random_start=False, keep="last")
    first, again, other = (attack(model, images, labels, places=torch.arange(6) + at) for at in (0, 0, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("places", [torch.arange(3), torch.arange(4.0), torch.zeros(4, 1).long()], ids=str)
def test_places_are_a_whole_number_for_each_image(places: Tensor) -> None:
    model, images, labels = problem(4)
    with pytest.raises(ValueError, match="places must be 4 whole numbers, one for each image"):
        PGD(Linf(0.1))(model, images, labels, places=places)

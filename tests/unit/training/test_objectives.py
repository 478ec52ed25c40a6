"""Sums of objectives, and batches in parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune._values import parse
from paretune.attacks import PGD, Attack, Linf
from paretune.training.objectives import Natural, Objective, Sum, Term, TrainingBatch
from tests import tiny

ATTACK = PGD(Linf(4 / 255), steps=2)


def batch(count: int, epsilon: float = 0.0) -> TrainingBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 8, 8, generator=generator)
    labels = torch.arange(count) % 4
    return TrainingBatch(images, labels, 100 + torch.arange(count), torch.arange(count), epsilon, 7, 3)


@dataclass(frozen=True)
class Anchor(Objective):
    """Draws the mean of the logits to zero; learns nothing."""

    @property
    def attack(self) -> Attack | None:
        return None

    @property
    def learns(self) -> bool:
        return False

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        return model(batch.images).mean().square(), None


def test_sums_are_flat_print_as_they_are_written_and_read_back() -> None:
    made = 0.5 * (pt.AdversarialTraining(ATTACK) + Natural()) + 2 * Natural()
    assert isinstance(made, Sum)
    assert [weight for weight, _ in made.terms] == [0.5, 0.5, 2.0]
    kinds = {each.__name__: each for each in (pt.AdversarialTraining, Natural, Sum, PGD, Linf)}
    assert parse(repr(made), kinds) == made
    assert (
        parse("0.5*(AdversarialTraining(PGD(Linf(4/255), steps=2)) + natural) + 2*Natural()", kinds) == made
    )
    assert made.attack == made.terms[0][1].attack


@pytest.mark.parametrize(
    "wrong", ["Natural() * Natural()", "'a' * Natural()", "0 * Natural()", "-1 * Natural()"]
)
def test_only_numbers_above_zero_weigh(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"compute|above 0|arithmetic"):
        parse(wrong, {"Natural": Natural, "Sum": Sum})


def test_one_sum_has_one_threat() -> None:
    with pytest.raises(ValueError, match="against one threat"):
        pt.AdversarialTraining(ATTACK) + pt.AdversarialTraining(PGD(Linf(8 / 255)))


def test_a_sum_is_the_weighted_sum_of_its_losses() -> None:
    model, examples = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), batch(6)
    made = 0.5 * Natural() + 3.0 * Anchor()
    term: Term = made.begin(None, None, 0)  # type: ignore[arg-type]
    loss, logits = term.loss(model, examples, term.attacked(lambda: None, examples))  # type: ignore[arg-type,return-value]
    answers = model(examples.images)
    expected = 0.5 * nn.functional.cross_entropy(answers, examples.labels) + 3 * answers.mean().square()
    assert logits is not None
    assert torch.equal(logits, answers)
    assert torch.allclose(loss, expected)


def test_an_anchor_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="alone learns nothing"):
        tiny.run(tmp_path / "run", objective=Anchor(), attacks=[ATTACK])


def test_parts_of_a_batch_are_attacked_as_the_whole_batch_is() -> None:
    model = tiny.backbone(pt.LinearProbe()).eval()
    whole = batch(7, 4 / 255)
    copy = pt.attacks.attack_copy(model)
    together = whole.attack(ATTACK, lambda: copy)
    parts = [part.attack(ATTACK, lambda: copy) for part in whole.parts(3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert torch.allclose(torch.cat(parts), together, atol=1e-6)


def test_a_batch_learnt_in_parts_gives_the_gradient_of_the_whole(tmp_path: Path) -> None:
    def end(name: str, **options: Any) -> dict[str, Tensor]:
        model = tiny.backbone(pt.LoRA(rank=2))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        objective = pt.AdversarialTraining(ATTACK)
        tiny.run(tmp_path / name, model=model, objective=objective, steps=3, batch_size=10, **options)
        return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}

    whole, parts = end("whole"), end("parts", accumulate=3)
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, atol=1e-5), name
    with pytest.raises(ValueError, match="accumulate"):
        end("none", accumulate=0)

"""AutoAttack on models of two and three classes, and every attack where it has nothing to attack."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import paretune as pt
from paretune._values import from_dict, parse
from paretune.attacks import (
    APGD,
    ATTACKS,
    FAB,
    L1,
    L2,
    NFGSM,
    THREATS,
    Attack,
    AutoAttack,
    Linf,
    Square,
    Threat,
    attack_copy,
    masking_findings,
)
from paretune.data.image_split import ImageSplit
from tests.contracts.test_attacks import SMALL
from tests.unit.attacks.victims import Linear, right

ORDERS = {Linf: 1, L2: 2, L1: torch.inf}  # of the dual norm


def split(images: Tensor, labels: Tensor) -> ImageSplit:
    return ImageSplit(labels, torch.arange(len(images)), lambda rows: images[rows], "fingerprint")


def near_grey(classes: int, n: int = 60) -> tuple[Linear, Tensor, Tensor]:
    """A linear model, images far from the bounds of [0, 1], and their classes, a tenth of them wrong."""
    model = Linear(classes, 3, 8, 8)
    images = 0.5 + 0.1 * (torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5)
    with torch.no_grad():
        model.bias -= model(images).mean(dim=0)
        labels = model(images).argmax(dim=1)
    labels[::10] = (labels[::10] + 1) % classes
    return model, images, labels


def test_a_version_runs_as_the_variant_that_the_number_of_classes_allows() -> None:
    threat = Linf(0.1)
    ce, dlr, square = APGD(threat), APGD(threat, loss="dlr"), Square(threat)
    fab, fab_all = FAB(threat), FAB(threat, targets=None, restarts=5)
    ce5, dlr5 = APGD(threat, restarts=5), APGD(threat, loss="dlr", restarts=5)
    expected: dict[tuple[Any, int], tuple[str, list[Attack]]] = {
        ("standard", 3): ("standard-3", [ce, dlr, fab, square]),
        ("standard", 2): ("standard-2", [ce, fab, square]),
        ("plus", 3): ("plus-3", [ce5, dlr5, fab, fab_all, square]),
        ("plus", 2): ("plus-2", [ce5, fab, fab_all, square]),
        ("rand", 3): ("rand", [APGD(threat, eot=20), APGD(threat, loss="dlr", eot=20)]),
        ("rand", 2): ("rand-2", [APGD(threat, eot=20)]),
    }
    for (version, classes), (name, stages) in expected.items():
        variant = AutoAttack(threat, version=version).on(classes)
        assert variant.version == name
        assert list(variant.stages().values()) == stages
        assert variant.on(classes) == variant
        assert parse(repr(variant), {**ATTACKS, **THREATS}) == variant
        assert from_dict(variant.to_dict(), {**ATTACKS, **THREATS}) == variant
    for version in ("standard", "plus", "rand"):
        for classes in (4, 5, 1000):
            attack = AutoAttack(threat, version=version)  # type: ignore[arg-type]
            assert attack.on(classes) is attack or attack.on(classes) == attack


@pytest.mark.parametrize("threat", [Linf(0.01), L2(0.2), L1(2.0)], ids=repr)
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_two_classes_of_a_linear_model_have_the_closed_form(threat: Threat, version: Any) -> None:
    model, images, labels = near_grey(2)
    with torch.no_grad():
        normal, logits = model.weight[0] - model.weight[1], model(images)
        size = torch.linalg.vector_norm(normal, ord=ORDERS[type(threat)])
        distance = (logits[:, 0] - logits[:, 1]).abs() / size
    clean = right(model, images, labels)
    # The boundary lies further than the radius, or nearer, by more than a step can miss.
    epsilon = float(distance[clean].median())
    attack = AutoAttack(threat.with_epsilon(epsilon), version=version, steps=20, queries=20)
    result = attack.run(model, images, labels)
    robust = clean & (distance > epsilon)
    sure = (distance / epsilon - 1).abs() > 0.05
    assert 0 < robust.sum() < clean.sum()
    assert torch.equal(result.robust[sure], robust[sure])
    assert result.stages[0].name == "apgd-ce"
    assert torch.equal(result.robust, right(model, result.images, labels))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_what_ran_is_in_the_rows(classes: int, version: Any) -> None:
    model, images, labels = near_grey(classes)
    attack = AutoAttack(Linf(0.01), version=version, steps=3, queries=5, targets=2)
    scores = pt.evaluate(model, split(images, labels), [attack])
    result = attack.run(model, images, labels)
    assert np.array_equal(scores.robust[attack], result.robust.numpy())
    variant = attack.on(classes)
    assert {stage.name for stage in result.stages} <= variant.stages().keys()
    assert scores.to_frame()["attack"].tolist() == [repr(variant)]
    assert (scores.classes, scores.robust_accuracy(attack)) == (classes, result.robust_accuracy)
    # As the rows name it, it gives the same bits.
    again = pt.evaluate(model, split(images, labels), [parse(repr(variant), {**ATTACKS, **THREATS})])
    assert np.array_equal(again.robust[variant], scores.robust[attack])


def test_rows_of_more_classes_and_of_other_attacks_are_as_they_were() -> None:
    model, images, labels = near_grey(4)
    attacks = [AutoAttack(Linf(0.01), steps=2, queries=2, targets=2), pt.PGD(Linf(0.01), steps=1)]
    frame = pt.evaluate(model, split(images, labels), attacks).to_frame()
    assert frame["attack"].tolist() == [repr(attack) for attack in attacks]


def test_a_variant_of_another_model_is_refused_where_nothing_would_be_attacked_too() -> None:
    model, images, _ = near_grey(4)
    wrong = (model(images).argmax(dim=1) + 1) % 4
    with pytest.raises(ValueError, match="version='rand-2' is for models with 2 classes, got 4"):
        pt.evaluate(model, split(images, wrong), [AutoAttack(Linf(0.01), version="rand-2")])


def test_a_run_says_which_variant_measured_it(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    images = (0.25 + 0.5 * labels.view(-1, 1, 1, 1) + 0.2 * torch.rand(60, 3, 4, 4, generator=draw)).float()
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    run = pt.train(
        pt.adapt(pt.Backbone(network, image_size=4), pt.FullFineTune()),
        pt.data.ImageData.from_tensors(images, labels, ["dark", "bright"]),
        pt.training.Natural(),
        out=tmp_path,
        steps=2,
        attacks=[AutoAttack(Linf(0.05), steps=2, queries=2)],
        progress=False,
    )
    named = "AutoAttack(Linf(0.05), version='standard-2', steps=2, queries=2)"
    assert set(run.points["attack"]) == {named}


def test_masked_gradients_are_looked_for_on_two_classes() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sound = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 2))
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for scale, masked in ((1.0, False), (1e5, True)):
        model = nn.Sequential(*sound)
        with torch.no_grad():
            model[3].weight *= scale
        labels = model(images).argmax(dim=1)
        found = masking_findings(model, images, labels, Linf(0.05), steps=5, queries=10)
        assert any("zero gradients" in finding for finding in found) == masked
        assert masked or found == ()


def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"img_size": 32} if name == "test_vit" else {}
        return timm.create_model(name, pretrained=False, num_classes=6, **size).eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_where_every_image_is_wrong_nothing_is_robust_and_nothing_breaks(name: str, precision: Any) -> None:
    model = network(name)
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wrong = (model(images).argmax(dim=1) + 1) % 6
    victim = attack_copy(model, precision=precision)
    attacks = [attack for attack in SMALL if not isinstance(attack, NFGSM)]
    # Batches of two, so that portions and batches without anything to attack follow each other.
    scores = pt.evaluate(model, split(images, wrong), attacks, victim=victim, batch_size=2)
    assert not scores.clean.any()
    assert not any(bits.any() for bits in scores.robust.values())
    assert masking_findings(victim, images, wrong, Linf(0.01)) == ()
    for attack in SMALL:
        for number in (5, 0):
            found = attack(victim, images[:number], wrong[:number])
            assert found.shape == (number, 3, 32, 32)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_portion_that_is_wrong_throughout_changes_no_other(name: str, tmp_path: Path) -> None:
    model = network(name)
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    labels[:16] = (labels[:16] + 1) % 6  # a portion of eight batches of two
    attack = AutoAttack(Linf(0.001), steps=2, queries=2, targets=1)
    scores = pt.evaluate(model, split(images, labels), [attack], batch_size=2)
    assert np.array_equal(scores.clean, np.arange(20) >= 16)
    whole = attack.run(model, images, labels, batch_size=2)
    assert np.array_equal(scores.robust[attack], whole.robust.numpy())
    assert whole.robust.any()
    kept = [pt.evaluate(model, split(images, labels), [attack], batch_size=2, state=tmp_path) for _ in "ab"]
    assert all(np.array_equal(each.robust[attack], scores.robust[attack]) for each in kept)

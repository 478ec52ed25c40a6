"""Distances between what load_data takes, splits and split data."""

import json
import math

import pytest
import torch
from torch import Tensor

import paretune as pt
from paretune.shifts.distances import MMD, OTDD, Distance, Frechet, distance
from tests import tiny
from tests.unit.shifts.distances.samples import labelled, split

PIXELS = OTDD(on="pixels")


def images(n: int = 24, seed: int = 0, classes: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.rand(n, 3, 8, 8, generator=generator) * (1 + labels.view(-1, 1, 1, 1)) / classes, labels


def test_digits_and_clothes_are_apart_and_digits_are_near_digits() -> None:
    digits = pt.load_data("digits", img_size=8, limit=400)
    clothes = pt.load_data("fashion-mnist", img_size=8, limit=400)
    for kind in (PIXELS, OTDD(on="pixels", inner="gaussian"), MMD(on="pixels"), Frechet(on="pixels")):
        near = distance(digits, digits.report, kind, limit=100, resamples=10)
        far = distance(digits, clothes, kind, limit=100, resamples=10)
        assert near.value < far.low
        assert near.low <= near.value <= near.high
        assert near.value < 1.2 * max(near.floor, 0) + 1e-2


def test_of_split_data_the_train_split_is_measured() -> None:
    data = pt.load_data("digits", img_size=8, limit=300)
    whole = distance(data, data.report, PIXELS, limit=50, resamples=0)
    assert whole == distance(data.train, data.report, PIXELS, limit=50, resamples=0)
    named = distance("digits", data.report, PIXELS, img_size=8, limit=50, resamples=0)
    again = distance(pt.load_data("digits", img_size=8).train, data.report, PIXELS, limit=50, resamples=0)
    assert named == again


def test_features_are_what_enters_the_head() -> None:
    model = tiny.backbone(pt.FullFineTune())
    (x, labels), (y, _) = images(), images(seed=1)
    with torch.no_grad():
        u, v = (model.module[:-1](model.enter(each)) for each in (x, y))
    by_hand = distance(split(u, labels), split(v, labels), PIXELS, resamples=0)
    model.train()  # dropout is off all the same, and on again afterwards
    value = distance(split(x, labels), split(y, labels), "otdd", model, resamples=0, batch_size=5)
    assert model.training
    assert value.value == pytest.approx(by_hand.value / 3, rel=1e-5)  # each number is three channels there
    assert value.kind == OTDD()


def test_the_result_reads_as_a_sentence_and_is_plain_json() -> None:
    (x, labels), (y, _) = images(), images(seed=1)
    told = distance(split(x, labels), split(y, labels, ids=range(50, 74)), PIXELS, resamples=10)
    assert repr(told) == (
        f"Distance({told.value:.5g}, 95 % interval {told.low:.5g} to {told.high:.5g}, floor {told.floor:.5g}, "
        "OTDD(on='pixels'), 24 and 24 examples)"
    )
    assert json.loads(json.dumps(told.to_dict())) == {
        "value": told.value,
        "low": told.low,
        "high": told.high,
        "floor": told.floor,
        "kind": "OTDD(on='pixels')",
        "examples": [24, 24],
        "paired": False,
        "level": 0.95,
        "resamples": 10,
    }
    bare = distance(split(x, labels), split(y, labels), PIXELS, resamples=0)
    assert (bare.low, bare.high, bare.floor) == (None, None, None)
    assert (
        repr(bare) == f"Distance({bare.value:.5g}, OTDD(on='pixels'), 24 and 24 examples with the same ids)"
    )


def test_the_same_images_are_paired_and_a_set_is_at_zero_from_itself() -> None:
    x, labels = images()
    told = distance(split(x, labels), split(x, labels), PIXELS, resamples=10)
    assert told.paired
    assert (told.value, told.low, told.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert told.floor > 0.1
    darker = distance(split(x, labels), split(x / 2, labels), PIXELS, limit=10, resamples=10)
    assert darker.paired  # also of those that are drawn
    assert not distance(split(x, labels), split(x[:-1], labels[:-1]), PIXELS, resamples=0).paired


def test_at_most_limit_examples_are_drawn_and_the_seed_decides_which() -> None:
    points, labels = labelled(60, 0, classes=3)
    a, b = split(points, labels), split(points + 1, labels, ids=range(100, 160))
    values = [distance(a, b, PIXELS, limit=30, seed=seed, resamples=0) for seed in (0, 0, 1)]
    assert values[0].examples == (30, 30)
    assert values[0] == values[1] != values[2]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    mixed = split(points[order], labels[order], ids=order)
    whole = [distance(each, b, PIXELS, resamples=0).value for each in (a, mixed)]
    assert whole[0] == pytest.approx(whole[1])
    rare = split(points, [0] * 58 + [1, 2])  # of each class at least one
    assert distance(rare, b, PIXELS, limit=3, resamples=0).examples == (3, 3)


def test_low_ends_below_zero_are_for_distances_that_may_be() -> None:
    a, b = (split(*labelled(12, seed), ids=range(12 * seed, 12 * seed + 12)) for seed in (0, 1))
    assert distance(a, b, MMD(on="pixels"), resamples=10).low < 0
    assert distance(a, b, Frechet(on="pixels"), resamples=10, level=0.999999).low == 0


def wrong(a: object, b: object, kind: object = PIXELS, **options: object) -> Distance:
    return distance(a, b, kind, **options)  # type: ignore[arg-type]


def test_what_is_too_small_or_not_finite_is_told_by_its_name() -> None:
    x, labels = images()
    good = split(x, labels)
    with pytest.raises(ValueError, match=r"^b has no examples$"):
        wrong(good, split(x[:0], labels[:0]))
    single = split(x[:9], [0] * 8 + [1], classes=("cat", "dog"))
    with pytest.raises(
        ValueError, match=r"class 'dog' of b has 1 example of the 9 .* needs 2, half of them .* resamples=0"
    ):
        wrong(good, single)
    assert wrong(good, single, resamples=0).value > 0
    with pytest.raises(
        ValueError, match=r"class 'dog' of a has 1 example .* needs 2: raise limit .* leave the class out$"
    ):
        wrong(single, good, OTDD(on="pixels", inner="gaussian"), resamples=0)
    with pytest.raises(ValueError, match=r"class 1 of a has 3 examples of the 9 .* needs 4, half"):
        wrong(split(x[:9], [0] * 6 + [1] * 3), good, OTDD(on="pixels", inner="gaussian"))
    with pytest.raises(
        ValueError, match=r"^a has 3 examples of the 3 that are measured; MMD.* needs 4, half"
    ):
        wrong(split(x[:3], labels[:3]), good, MMD(on="pixels"))
    grouped = split(x, labels)
    grouped.groups = labels
    with pytest.raises(
        ValueError, match=r"^b has groups, whose examples are not independent, .* resamples=0"
    ):
        wrong(good, grouped)
    assert wrong(good, grouped, resamples=0) == wrong(good, good, resamples=0)
    x = x.clone()
    x[5, 1, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"^the pixels of example 5 of b are not finite$"):
        wrong(good, split(x, labels))


def test_features_that_are_not_finite_are_refused() -> None:
    model = tiny.backbone(pt.FullFineTune())
    with torch.no_grad():
        model.module[0].weight.fill_(math.inf)
    x, labels = images()
    with pytest.raises(ValueError, match=r"^the features of example \d+ of a are not finite$"):
        wrong(split(x, labels), split(x, labels), OTDD(), backbone=model)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            OTDD(),
            {},
            r"OTDD\(\) needs backbone=, such as load_backbone\('efficientnet-lite0', .* or on='pixels'",
        ),
        ("ottd", {}, "unknown name 'ottd' .* OTDD, MMD, Frechet"),
        (3, {}, "kind must be one of OTDD, MMD, Frechet, or the text of its call; got 3"),
        (PIXELS, {"limit": 1}, "limit must be a whole number from 2"),
        (PIXELS, {"resamples": 9}, "resamples must be a whole number from 10 .* or 0 for no interval"),
        (PIXELS, {"seed": -1}, "seed must be a whole number from 0"),
        (PIXELS, {"batch_size": 0}, "batch_size must be a whole number from 1"),
        (PIXELS, {"level": 95}, "level must lie between 0 and 1, got 95"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    kind: object, options: dict[str, object], message: str
) -> None:
    x, labels = images()
    with pytest.raises(ValueError, match=message):
        wrong(split(x, labels), split(x, labels), kind, **options)


def test_images_of_different_sizes_and_unknown_names_are_refused() -> None:
    x, labels = images()
    with pytest.raises(
        ValueError, match="of a and b have the sizes 8x8 and 4x8; load both with one img_size="
    ):
        wrong(split(x, labels), split(x[:, :, :4], labels))
    with pytest.raises(ValueError, match=r"b='dogits': .* did you mean 'digits'"):
        wrong("digits", "dogits")

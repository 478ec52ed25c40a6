"""What is known already is not looked for again, and no example passes for robust through it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import APGD, L1, Attack
from paretune.attacks.base import Call
from paretune.attacks.inputs import predicted
from paretune.attacks.state import keep
from paretune.data.image_split import ImageSplit
from paretune.evaluation import Candidates
from paretune.evaluation.scores import Scores
from tests import tiny
from tests.unit.attacks.test_autoattack import ATTACK
from tests.unit.evaluation.test_evaluation_state import Killed, same, split

RADII = [0.005, 0.01, 0.02, 0.04]


def vit() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit", num_classes=10, img_size=32).eval()


def convolutions() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny.network().eval()


def examples(model: nn.Module, count: int = 48, side: int = 32) -> ImageSplit:
    """Images that the model gets right, but for every eighth."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, side, side, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    labels[::8] = (labels[::8] + 1) % 10
    return ImageSplit(labels, torch.arange(count), images.__getitem__, f"random-{count}-{side}")


class Watch:
    """What an evaluation shows: it agrees with the bits, and lies in the ball."""

    def __init__(self, data: ImageSplit) -> None:
        self.data = data
        self.last: dict[tuple[Attack | None, int], tuple[Tensor, bool]] = {}

    def __call__(self, attack: Attack | None, places: Tensor, images: Tensor, logits: Tensor) -> None:
        for place, image, answer in zip(places.tolist(), images, predicted(logits).tolist(), strict=True):
            self.last[attack, place] = image, answer == int(self.data.labels[place])

    def agrees(self, scores: Scores, model: nn.Module) -> None:
        right = {attack: [*bits] for attack, bits in scores.robust.items()}
        for attack, bits in ((None, scores.clean), *right.items()):
            judged = range(len(self.data)) if attack is None else scores.clean.nonzero()[0].tolist()
            assert {place for seen, place in self.last if seen == attack} == {*judged}
            shown = torch.stack([self.last[attack, place][0] for place in judged])
            assert [self.last[attack, place][1] for place in judged] == [bool(bits[i]) for i in judged]
            with torch.no_grad():
                answers = predicted(model(shown)) == self.data.labels[[*judged]]
            assert answers.tolist() == [bool(bits[place]) for place in judged]
            if attack is not None:
                assert attack.threat.allows(shown, self.data[[*judged]][0]).all()


@pytest.mark.some(3)
@pytest.mark.parametrize(
    ("make", "attack", "factor"),
    [
        (vit, pt.PGD(pt.Linf(0.1), steps=4), 0.2),
        (vit, APGD(pt.Linf(0.1), steps=5), 0.2),
        (vit, pt.PGD(pt.L2(1), steps=4, step_size=0.3, restarts=2), 15),
        (convolutions, pt.PGD(pt.Linf(0.1), steps=4), 1),
        (convolutions, pt.AutoAttack(pt.Linf(0.1), steps=4, queries=8, targets=2), 1),
        (convolutions, pt.AutoAttack(pt.L2(1), steps=4, queries=8, targets=2), 20),
        (convolutions, APGD(L1(1), steps=5), 100),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_bits_fall_with_the_radius_and_pass_no_example_that_each_radius_alone_breaks(
    make: Callable[[], nn.Module], attack: Attack, factor: float
) -> None:
    model = make()
    data, radii = examples(model), [factor * radius for radius in RADII]
    watch = Watch(data)
    together = pt.evaluate(model, data, [attack], epsilons=radii[::-1], batch_size=20, seed=5, seen=watch)
    watch.agrees(together, model)
    assert [each.threat.epsilon for each in together.robust] == radii[::-1]  # as they were asked for
    counts, above = [], together.clean
    for radius in radii:
        at = attack.with_epsilon(radius)
        alone = pt.evaluate(model, data, [at], batch_size=20, seed=5)
        assert not (together.robust[at] & ~alone.robust[at]).any()
        assert not (together.robust[at] & ~above).any()
        above = together.robust[at]
        counts.append(int(above.sum()))
    assert len({*counts}) > 2  # otherwise nothing would be tested


def places_attacked(monkeypatch: pytest.MonkeyPatch) -> dict[Attack, list[int]]:
    attacked: dict[Attack, list[int]] = {}
    whole = Attack.on_set

    def on_set(self: Attack, *arguments: object, places: Tensor, **options: object) -> Tensor:
        attacked.setdefault(self, []).extend(places.tolist())
        return whole(self, *arguments, places=places, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Attack, "on_set", on_set)
    return attacked


def test_what_a_smaller_radius_breaks_is_not_attacked_again_whatever_the_batches_and_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = split()
    attacks = [pt.PGD(pt.Linf(radius), steps=3, step_size=radius / 2) for radius in (0.04, 0.01, 0.02)]
    other = pt.PGD(pt.L2(0.3), steps=3)
    attacked = places_attacked(monkeypatch)
    whole = pt.evaluate(model, data, [*attacks, other])
    rising = sorted(attacks, key=lambda attack: attack.threat.epsilon)
    left = whole.clean
    for attack in rising:
        assert attacked[attack] == left.nonzero()[0].tolist()
        left = whole.robust[attack]
    assert attacked[other] == whole.clean.nonzero()[0].tolist()  # of another norm
    parts = [pt.evaluate(model, data, [*attacks, other], batch_size=3, shard=(rank, 3)) for rank in range(3)]
    for attack in (*attacks, other):
        assert np.array_equal(sum(part.robust[attack] for part in parts), whole.robust[attack].astype(int))


def test_attacks_that_differ_in_more_than_the_radius_know_nothing_of_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = split()
    attacks = [
        pt.PGD(pt.Linf(0.02), steps=3),
        pt.PGD(pt.Linf(0.04), steps=4),
        pt.PGD(pt.Linf(0.04), steps=3, step_size=0.001),
        APGD(pt.Linf(0.04), steps=3),
    ]
    attacked = places_attacked(monkeypatch)
    scores = pt.evaluate(model, data, attacks)
    assert scores.robust[attacks[0]].sum() < scores.clean.sum()
    assert all(attacked[attack] == scores.clean.nonzero()[0].tolist() for attack in attacks)


@dataclass(frozen=True)
class Lucky(Attack):
    """Finds nothing at 0.05, and what moves each pixel by 0.05 exactly, or a bit more, at larger radii."""

    farther: float = 0.0

    def perturb(self, call: Call) -> Tensor:
        if self.threat.epsilon <= 0.05:
            return call.images
        return self.threat.with_epsilon(0.05 + self.farther).project(call.images + 1, call.images)


@pytest.mark.parametrize(("farther", "counts"), [(0.0, True), (1e-6, False)])
def test_a_point_of_a_larger_ball_counts_in_a_smaller_one_that_it_lies_in(
    farther: float, counts: bool
) -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            margin = x.mean((1, 2, 3)) - 0.53
            return torch.stack([-margin, margin], 1)

    images = torch.linspace(0.4, 0.5, 7).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    data = ImageSplit(torch.zeros(7, dtype=torch.int64), torch.arange(7), images.__getitem__, "grey")
    watch = Watch(data)
    attacks = [Lucky(pt.Linf(radius), farther) for radius in (0.01, 0.05, 0.2)]
    model = Bright()
    model.anchor = nn.Parameter(torch.zeros(1))
    scores = pt.evaluate(model, data, attacks, seen=watch)
    watch.agrees(scores, model)
    none, smaller, larger = (scores.robust[attack] for attack in attacks)
    assert none.all()
    assert larger.tolist() == [True] * 5 + [False] * 2
    assert smaller.tolist() == (larger if counts else none).tolist()


@pytest.mark.slow
@pytest.mark.some(1)
@pytest.mark.parametrize("writes", [1, 2, 5])
def test_a_killed_evaluation_at_several_radii_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    model, data = split()
    attacks = [ATTACK.with_epsilon(radius) for radius in (0.05, 0.01, 0.03)]
    attacks += [pt.PGD(pt.Linf(radius), steps=2) for radius in (0.01, 0.02)]
    expected = pt.evaluate(model, data, attacks, batch_size=3)
    done = [0]

    def write(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        done[0] += 1
        if done[0] == writes:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("paretune.attacks.autoattack_state.keep", write)
        with pytest.raises(Killed):
            pt.evaluate(model, data, attacks, batch_size=3, state=tmp_path)
    assert same(pt.evaluate(model, data, attacks, batch_size=3, state=tmp_path), expected)


def changed(model: nn.Module, amount: float) -> nn.Module:
    """The model after weights of it have moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += amount * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    ("make", "attack"),
    [
        (vit, pt.PGD(pt.Linf(0.002), steps=4)),
        (vit, APGD(pt.L2(0.05), steps=4)),
        (convolutions, pt.PGD(pt.Linf(0.01), steps=4)),
        (convolutions, pt.AutoAttack(pt.Linf(0.01), steps=4, queries=8, targets=2)),
        (convolutions, APGD(L1(2), steps=4)),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_what_broke_a_model_before_is_tried_first(
    make: Callable[[], nn.Module], attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, candidates = make(), Candidates()
    data = examples(model)
    before = pt.evaluate(model, data, [attack], candidates=candidates)
    assert same(before, pt.evaluate(model, data, [attack]))  # nothing was known
    attacked = places_attacked(monkeypatch) if type(attack).on_set is Attack.on_set else None
    watch = Watch(data)
    again = pt.evaluate(model, data, [attack], candidates=candidates, seen=watch)
    watch.agrees(again, model)
    assert not (again.robust[attack] & ~before.robust[attack]).any()
    broken = before.clean & ~before.robust[attack]
    assert 0 < broken.sum() < before.clean.sum()
    if attacked is not None:  # a few bits of each change are lost, and so may be a few examples
        assert len({*attacked[attack]}.intersection(broken.nonzero()[0].tolist())) <= 0.2 * broken.sum()
    changed(model, 0.02)
    watch = Watch(data)
    now = pt.evaluate(model, data, [attack], candidates=candidates, seen=watch)
    watch.agrees(now, model)
    fresh = pt.evaluate(model, data, [attack])
    assert np.array_equal(now.clean, fresh.clean)
    assert not (now.robust[attack] & ~fresh.robust[attack]).any()


def test_candidates_are_kept_as_they_are_loaded_and_shared() -> None:
    model, data = split()
    attacks = [pt.PGD(pt.Linf(radius), steps=3) for radius in (0.02, 0.04)]
    whole = Candidates()
    pt.evaluate(model, data, attacks, batch_size=3, candidates=whole)
    kept = whole.tensors()
    assert all(tensor.dtype in (torch.int8, torch.float32) for tensor in kept.values())
    loaded = Candidates()
    loaded.load(kept)
    again = loaded.tensors()
    assert kept.keys() == again.keys()
    assert len(kept) == 4
    assert all(torch.equal(again[name], tensor) for name, tensor in kept.items())
    scores = [
        pt.evaluate(changed(split()[0], 0.1), data, attacks, candidates=some) for some in (whole, loaded)
    ]
    assert same(*scores)
    with pytest.raises(ValueError, match=r"of other examples \(curved-40\) than data \(curved-39\)"):
        pt.evaluate(model, split(39)[1], attacks, candidates=whole)


def test_candidates_and_state_are_not_for_one_evaluation(tmp_path: Path) -> None:
    model, data = split()
    with pytest.raises(ValueError, match="no points for candidates"):
        pt.evaluate(model, data, [ATTACK], candidates=Candidates(), state=tmp_path / "state")
    assert not (tmp_path / "state").exists()

"""Shards of an evaluation, and processes that share one: the bits of one process, whatever the model."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import paretune as pt
from paretune.attacks import Linf
from paretune.evaluation.scores import Scores
from paretune.shifts import Grey
from tests.unit.training.test_processes import launch

ATTACKS = (
    pt.PGD(Linf(4 / 255), steps=3, restarts=2),
    pt.AutoAttack(Linf(4 / 255), steps=4, queries=20, targets=2),
)
WORLDS = (1, 2, 3, 5, 7)


def learnt(name: str, **options: int) -> pt.Backbone:
    """A network that has learnt a little, so that attacks spare some of the images."""
    data = pt.load_data("digits", img_size=32, limit=200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pt.Backbone(timm.create_model(name, num_classes=10, **options), image_size=32)
        optimizer = torch.optim.AdamW(model.train().parameters(), 3e-3)
        images, labels = data.train[: len(data.train)]
        for _ in range(25):
            rows = torch.randint(len(images), (32,))
            torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@pytest.fixture(
    scope="module", params=[("test_vit", {"img_size": 32}), ("test_resnet", {})], ids=lambda p: p[0]
)
def model(request: pytest.FixtureRequest) -> pt.Backbone:
    name, options = request.param
    return learnt(name, **options)


def add_up(parts: list[Scores]) -> Scores:
    """One of them, with the bits of all; each example is measured once."""
    whole = parts[0]
    for scores in parts[1:]:
        assert not (whole.clean & scores.clean).any()
        robust = {attack: bits | scores.robust[attack] for attack, bits in whole.robust.items()}
        elsewhere = {name: add_up([there, scores.elsewhere[name]]) for name, there in whole.elsewhere.items()}
        whole = Scores(whole.clean | scores.clean, robust, whole.split, elsewhere=elsewhere)
    return whole


def same(one: Scores, other: Scores) -> bool:
    return (
        np.array_equal(one.clean, other.clean)
        and one.robust.keys() == other.robust.keys()
        and all(np.array_equal(bits, other.robust[attack]) for attack, bits in one.robust.items())
        and one.elsewhere.keys() == other.elsewhere.keys()
        and all(same(there, other.elsewhere[name]) for name, there in one.elsewhere.items())
    )


@pytest.mark.some(2)
@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 7])
def test_any_number_of_shards_adds_up_to_the_bits_of_one(
    model: pt.Backbone, batch_size: int, tmp_path: Path
) -> None:
    """With what shifts make, with kept state, and in portions of one batch and of several."""
    split = pt.load_data("digits", img_size=32, limit=200).report
    whole = None
    for world in WORLDS:
        parts = [
            pt.evaluate(
                model,
                split,
                ATTACKS,
                shifts=[Grey()],
                attack_elsewhere=True,
                batch_size=batch_size,
                shard=(rank, world),
                state=tmp_path / f"{rank}-{world}",
            )
            for rank in range(world)
        ]
        whole = whole or parts[0]
        assert same(add_up(parts), whole), world
    assert whole is not None
    for bits in whole.robust.values():
        assert 0 < bits.sum() < whole.clean.sum() < len(split)


def test_shards_see_the_very_batches_of_one_process() -> None:
    """The last bits of logits may depend on the size of a batch, so no shard makes other batches."""

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.randn(10, 192)), []

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen.append((len(images), images.sum().item()))
            return images.flatten(1) @ self.weight.T

    model, split = Watched(), pt.load_data("digits", img_size=8, limit=400).report
    seen = {}
    for world in (1, 3):
        model.seen.clear()
        for rank in range(world):
            pt.evaluate(model, split, ATTACKS, batch_size=2, shard=(rank, world))
        seen[world] = sorted(model.seen)
    assert seen[1] == seen[3]


@pytest.mark.slow
def test_processes_share_an_evaluation_on_the_command_line(tmp_path: Path) -> None:
    data = pt.load_data("digits", img_size=24, limit=200)
    model = pt.adapt(pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24), pt.BitFit())
    attack = pt.PGD(Linf(1 / 255), steps=1)
    pt.train(
        model, data, pt.AdversarialTraining(attack), out=tmp_path / "run", steps=6, points=1, progress=False
    )
    arguments = [
        "-m",
        "paretune",
        "evaluate",
        str(tmp_path / "run"),
        "--batch-size",
        "8",
        "--shifts",
        "Grey()",
    ]
    arguments += [
        "--attacks",
        "AutoAttack(Linf(1/255), steps=2, queries=5, targets=1), PGD(Linf(1/255), steps=2)",
    ]
    one = launch(1, *arguments).stdout
    state = ["--state", str(tmp_path / "state")]
    for _ in range(2):  # the second time from what is kept
        assert launch(2, *arguments, *state).stdout == one
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["1-of-2", "2-of-2"]
    assert one.count("AutoAttack") == 1
    with pytest.raises(AssertionError, match="name one for all: --precision fp32 or bf16"):
        launch(2, *arguments, "--precision", "auto")

"""Classes of different sizes: weights, and draws in equal shares."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import paretune as pt
from paretune.data.images import ImageData
from paretune.training import TRADES, Natural, plan
from paretune.training.balance import balanced_order, example_weights
from paretune.training.objectives import TrainingBatch
from tests import tiny
from tests.unit.training.objectives.batches import ATTACK, batch, network, without_dropout

LABELS = np.array([0] * 50 + [1] * 10 + [3] * 3)


def test_weights_are_those_that_scikit_learn_calls_balanced_and_have_mean_one() -> None:
    from sklearn.utils.class_weight import compute_sample_weight

    weights = example_weights(LABELS).numpy()
    assert np.allclose(weights, compute_sample_weight("balanced", LABELS))
    assert weights.mean() == pytest.approx(1)


def test_an_epoch_of_balanced_draws_has_each_class_equally_often() -> None:
    for seed, size in itertools.product(range(5), (61, 62, 63)):
        labels = LABELS[:size]
        order = balanced_order(labels, np.random.default_rng(seed))
        assert len(order) == size
        _, drawn = np.unique(labels[order], return_counts=True)
        assert len(drawn) == 3
        assert drawn.max() - drawn.min() <= 1
        often = np.bincount(order, minlength=size)
        for label in (1, 3):  # each example of a small class is drawn as often as any other of it, up to once
            assert np.ptp(often[labels == label]) <= 1
            assert often[labels == label].min() >= 1
        assert often[labels == 0].max() == 1


def test_the_order_follows_from_seed_and_epoch_alone(tmp_path: Path) -> None:
    def order(epoch: int, **changes: Any) -> list[int]:
        made = tiny_plan(**changes)
        return [int(row) for row in made.tasks[0].order(epoch)]

    assert order(2) == order(2)
    assert order(2) != order(3)
    assert order(2) != order(2, seed=1)
    whole = [rows for _, rows, _ in plan.Batches(tiny_plan(), 0, 0, 1)]
    later = [rows for _, rows, _ in plan.Batches(tiny_plan(), 5, 0, 1)]
    assert later == whole[5:]
    shared = zip(
        *([rows for _, rows, _ in plan.Batches(tiny_plan(), 0, rank, 2)] for rank in (0, 1)), strict=True
    )
    assert [sorted(one + other) for one, other in shared] == [sorted(rows) for rows in whole]


def tiny_plan(**changes: Any) -> plan.Plan:

    arguments: dict[str, Any] = dict.fromkeys(("epochs", "optimizer", "epsilon", "eval_every", "points"))
    arguments |= {
        "steps": 12,
        "batch_size": 32,
        "accumulate": 1,
        "attacks": [ATTACK],
        "seed": 0,
        "balance": "sampling",
    }
    arguments |= {**changes}
    return plan.Plan.of(without_dropout(pt.LinearProbe()), tiny.data(), Natural(), **arguments)


def test_a_weighted_loss_is_the_mean_of_each_loss_times_its_weight() -> None:
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1, 1.0])
    model, examples = network(), batch(weights=weights)
    losses = F.cross_entropy(model(examples.images), examples.labels, reduction="none")
    assert torch.allclose(Natural().loss(model, examples, None)[0], (weights * losses).sum() / 6)
    moved = examples.images.flip(0)
    whole = TRADES(ATTACK).loss(model, examples, moved)[0]
    alone = [
        TRADES(ATTACK).loss(model, one, moved[row : row + 1])[0]
        for row, one in enumerate(batch(weights=weights).parts(6))
    ]
    assert torch.allclose(whole, torch.stack(alone).mean())


def test_a_weighted_batch_in_parts_gives_the_gradient_of_the_whole(tmp_path: Path) -> None:
    def end(name: str, **options: Any) -> dict[str, Tensor]:
        model = without_dropout(pt.LoRA(rank=2))
        tiny.run(tmp_path / name, model=model, objective=TRADES(ATTACK), steps=3, batch_size=10, **options)
        return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}

    weighted = end("weighted", balance="weights")
    for name, value in end("parts", balance="weights", accumulate=3).items():
        assert torch.allclose(value, weighted[name], atol=1e-5), name
    assert any(not torch.allclose(value, weighted[name]) for name, value in end("plain").items())


def test_training_weighs_and_draws_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainingBatch] = []
    loss = Natural.loss
    monkeypatch.setattr(
        Natural, "loss", lambda self, model, part, _: seen.append(part) or loss(self, model, part, _)
    )
    images, labels = tiny.data(600).train[:]
    frequent = [*range(100), *(row for row in range(100, len(labels)) if labels[row] < 2)]
    data = ImageData.from_tensors(images[frequent], labels[frequent])
    for balance in ("none", "weights", "sampling"):
        seen.clear()
        pt.train(
            without_dropout(pt.LinearProbe()),
            data,
            Natural(),
            out=tmp_path / balance,
            epochs=2,
            batch_size=8,
            balance=balance,
            attacks=[ATTACK],
            progress=False,
        )
        counts = torch.bincount(torch.cat([part.labels for part in seen]), minlength=10).float()
        if balance == "weights":
            expected = example_weights(data.train.labels.numpy())
            by_id = dict(zip(data.train.ids.tolist(), expected.tolist(), strict=True))
            for part in seen:
                assert part.weights is not None
                assert part.weights.tolist() == [by_id[each] for each in part.ids.tolist()]
        else:
            assert all(part.weights is None for part in seen)
        assert (counts.max() <= 1.7 * counts.min()) == (balance == "sampling")


def test_what_is_done_about_classes_belongs_to_the_run(tmp_path: Path) -> None:
    run = tiny.run(tmp_path / "run", balance="weights", steps=1)
    assert run.config["balance"] == "weights"
    with pytest.raises(ValueError, match="balance"):
        tiny.run(tmp_path / "run", steps=1)
    assert "balance" not in tiny.run(tmp_path / "other", steps=1).config
    with pytest.raises(ValueError, match="balance must be one of none, weights, sampling, got 'oversample'"):
        tiny.run(tmp_path / "wrong", balance="oversample")

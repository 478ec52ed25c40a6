"""Accuracy of each class: the numbers, and intervals that hold where few examples, or none, are right."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t
from sklearn.metrics import balanced_accuracy_score, recall_score

from paretune.frontiers.classes import by_class


def some(seeds: int = 1, examples: int = 120, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, examples, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    return labels, rng.random((seeds, examples)) < 0.1 + 0.15 * labels


def test_accuracies_are_the_recalls_that_scikit_learn_has() -> None:
    labels, bits = some()
    answers = np.where(bits[0], labels, (labels + 1) % 5)
    found = by_class(labels, bits)
    assert found.accuracy == pytest.approx(recall_score(labels, answers, average=None))
    assert found.balanced[0] == pytest.approx(balanced_accuracy_score(labels, answers))
    assert found.plain[0] == pytest.approx((answers == labels).mean())
    assert found.examples.tolist() == np.bincount(labels).tolist()
    assert found.accuracy[found.worst_first].tolist() == sorted(found.accuracy)


def test_balanced_accuracy_by_hand() -> None:
    """3 of 4 of one class and 0 of 1 of the other: (3/4 + 0) / 2, where the plain accuracy is 3/5."""
    found = by_class(np.array([7, 7, 7, 7, 2]), np.array([[True, True, True, False, False]]))
    assert (found.balanced[0], found.plain[0]) == (0.375, 0.6)
    assert found.labels.tolist() == [2, 7]


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_of_one_seed_are_wilsons(level: float) -> None:
    labels, bits = some()
    found = by_class(labels, bits, level=level)
    for place, label in enumerate(found.labels):
        own = bits[0, labels == label]
        expected = binomtest(int(own.sum()), len(own)).proportion_ci(level, method="wilson")
        assert (found.low[place], found.high[place]) == pytest.approx((expected.low, expected.high))
    whole = binomtest(int(bits.sum()), bits.size).proportion_ci(level, method="wilson")
    assert found.plain[1:] == pytest.approx((whole.low, whole.high))


@pytest.mark.parametrize("right", [False, True])
def test_none_or_all_of_a_few_right_is_not_certain(right: bool) -> None:
    found = by_class(np.zeros(15, int), np.full((3, 15), right))
    assert (found.low[0], found.high[0]) == pytest.approx((0.796, 1.0) if right else (0.0, 0.204), abs=5e-4)
    assert found.balanced == pytest.approx((float(right), found.low[0], found.high[0]))


def test_balanced_intervals_combine_the_classes_by_their_squares() -> None:
    labels, bits = some()
    found = by_class(labels, bits)
    below = np.sqrt(((found.accuracy - found.low) ** 2).sum()) / 5
    above = np.sqrt(((found.high - found.accuracy) ** 2).sum()) / 5
    estimate = found.accuracy.mean()
    assert found.balanced == pytest.approx((estimate, estimate - below, estimate + above))


@pytest.mark.parametrize("chance", [0.03, 0.3, 0.9])
def test_intervals_hold_the_truth_as_often_as_they_say(chance: float) -> None:
    """Of a class of 20, of an unbalanced mean of three classes, and of three seeds that are averaged."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [20, 40, 200])
    truth = np.array([chance, 0.5 * chance, 0.2])[labels]
    held = np.zeros(3)
    for _ in range(400):
        hard = rng.random(260)
        bits = np.stack([np.where(rng.random(260) < 0.7, hard, rng.random(260)) < truth for _ in range(3)])
        found = by_class(labels, bits[:1])
        averaged = by_class(labels, bits)
        mean = (1.5 * chance + 0.2) / 3
        held += [
            found.low[0] <= chance <= found.high[0],
            found.balanced[1] <= mean <= found.balanced[2],
            averaged.low[0] <= chance <= averaged.high[0],
        ]
    assert (held / 400 >= 0.92).all()


def test_copies_of_examples_in_groups_add_nothing_but_certainty_without_groups() -> None:
    labels, bits = some()
    copied, groups = np.repeat(labels, 4), np.repeat(np.arange(len(labels)), 4)
    once, grouped = by_class(labels, bits), by_class(copied, np.repeat(bits, 4, axis=1), groups=groups)
    assert (grouped.low, grouped.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert (grouped.plain, grouped.balanced) == (pytest.approx(once.plain), pytest.approx(once.balanced))
    alone = by_class(copied, np.repeat(bits, 4, axis=1))
    assert (alone.high - alone.low < once.high - once.low).all()


def test_groups_across_classes_let_these_err_together() -> None:
    labels, bits = some()
    apart = by_class(labels, bits)
    pairs = by_class(labels, bits, groups=np.arange(len(labels)) % 60)
    assert pairs.balanced[2] - pairs.balanced[1] > 1.5 * (apart.balanced[2] - apart.balanced[1])


def test_from_five_seeds_on_the_luck_of_training_is_added() -> None:
    labels, bits = some(seeds=5)
    bits[4] &= labels != 4  # one training that fails on a class
    own = bits[:, labels == 4].mean(axis=1)
    p, n, z = own.mean(), int((labels == 4).sum()), norm.ppf(0.975)
    wilson = min(np.roots([1 + z**2 / n, -2 * p - z**2 / n, p**2]))
    luck = t.ppf(0.975, 4) * own.std(ddof=1) / np.sqrt(5)
    assert by_class(labels, bits).low[4] == pytest.approx(max(0, p - np.hypot(p - wilson, luck)))
    p = own[:4].mean()
    wilson = min(np.roots([1 + z**2 / n, -2 * p - z**2 / n, p**2]))
    assert by_class(labels, bits[:4]).low[4] == pytest.approx(wilson)


def test_what_makes_no_sense_is_refused() -> None:
    labels, bits = some()
    with pytest.raises(ValueError, match="level must lie in"):
        by_class(labels, bits, level=95)
    with pytest.raises(ValueError, match="bits must have the shape"):
        by_class(labels, bits[0])
    with pytest.raises(ValueError, match="with examples"):
        by_class(labels[:0], bits[:, :0])

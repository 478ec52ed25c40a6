"""The optimal-transport data set distance, against assignments that are solved otherwise."""

import math
import sys
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from paretune.shifts.distances import OTDD
from paretune.shifts.distances.transport import entropic_cost, exact_cost
from tests.unit.shifts.distances.samples import labelled, pair

Points = np.ndarray


def squares(a: Points, b: Points) -> Points:
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def assigned(cost: Points) -> float:
    """The least mean cost of one-to-one assignments, of so many copies of each example that both sides have as many."""
    n, m = cost.shape
    cost = cost.repeat(math.lcm(n, m) // n, 0).repeat(math.lcm(n, m) // m, 1)
    return float(cost[linear_sum_assignment(cost)].mean())


def written_out(a: Points, labels_a: Points, b: Points, labels_b: Points) -> float:
    cost = squares(a, b)
    for first, second in product(np.unique(labels_a), np.unique(labels_b)):
        block = np.ix_(labels_a == first, labels_b == second)
        cost[block] += assigned(squares(a[labels_a == first], b[labels_b == second]))
    return assigned(cost)


def test_it_is_what_assignments_within_assignments_give() -> None:
    (a, labels_a), (b, labels_b) = labelled(24, 0, classes=3), labelled(24, 1, shift=1, classes=3)
    known = written_out(a, labels_a, b, labels_b)
    assert OTDD().of(pair(a, b, labels_a, labels_b)) == pytest.approx(known)
    a, labels_a = labelled(24, 0, classes=2)  # other labels, and another number of them
    known = written_out(a, labels_a, b, labels_b)
    assert OTDD().of(pair(a, b, labels_a, labels_b)) == pytest.approx(known)
    a, labels_a = a[:7], np.array([0, 0, 0, 0, 0, 0, 1])  # another size, and a class of one example
    known = written_out(a, labels_a, b, labels_b)
    assert OTDD().of(pair(a, b, labels_a, labels_b)) == pytest.approx(known)


@pytest.mark.some(1)
@pytest.mark.parametrize("kind", [OTDD(), OTDD(inner="gaussian"), OTDD(entropy=0.1, debiased=True)], ids=repr)
def test_the_same_set_is_at_zero_whatever_its_labels_are_called_and_its_order(kind: OTDD) -> None:
    points, labels = labelled(20, 0)
    order = np.random.default_rng(0).permutation(20)
    assert kind.of(pair(points, points, labels, labels)) == pytest.approx(0, abs=1e-6)
    assert kind.of(pair(points, points[order], labels, labels[order])) == pytest.approx(0, abs=1e-6)
    assert kind.of(pair(points, points, labels, 7 - labels)) == pytest.approx(0, abs=1e-6)
    swapped = np.where(np.arange(20) < 10, labels, 1 - labels)  # half of the examples have another label
    assert kind.of(pair(points, points, labels, swapped)) > 0.5


@pytest.mark.parametrize("kind", [OTDD(), OTDD(inner="gaussian"), OTDD(entropy=0.1)], ids=repr)
def test_order_sides_and_names_of_labels_have_no_effect(kind: OTDD) -> None:
    (a, labels_a), (b, labels_b) = labelled(15, 0, classes=3), labelled(16, 1, shift=1)
    value = kind.of(pair(a, b, labels_a, labels_b))
    order = np.random.default_rng(0).permutation(15)
    assert kind.of(pair(b, a, labels_b, labels_a)) == pytest.approx(value, rel=1e-5)
    assert kind.of(pair(a[order], b, labels_a[order], labels_b)) == pytest.approx(value, rel=1e-5)
    renamed = np.array([5, 0, 9])[labels_a]
    assert kind.of(pair(a, b, renamed, labels_b)) == pytest.approx(value, rel=1e-5)


def test_sets_of_one_class_are_at_twice_their_wasserstein_distance() -> None:
    """Once for the images, once for the class. On a line it is known: sorted, the first goes to the first."""
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((30, 1)), 2 + 3 * generator.standard_normal((30, 1))
    wasserstein = float(((np.sort(a, 0) - np.sort(b, 0)) ** 2).mean())
    assert OTDD().of(pair(a, b)) == pytest.approx(2 * wasserstein)
    assert exact_cost(squares(a, b)) == pytest.approx(wasserstein)


def test_gaussian_classes_are_at_the_distance_of_gaussians() -> None:
    """All of a class moved by 2: the covariances are the same, so 4 for the class, and 4 for the images."""
    points, labels = labelled(20, 0, dimensions=1, classes=1)
    kind = OTDD(inner="gaussian")
    assert kind.of(pair(points, points + 2, labels, labels)) == pytest.approx(8)
    # N(0, 1) and N(1, 4) in large samples: 1 + (2 − 1)², twice.
    generator = np.random.default_rng(1)
    a, b = generator.standard_normal((600, 1)), 1 + 2 * generator.standard_normal((600, 1))
    assert kind.of(pair(a, b)) == pytest.approx(4, abs=0.6)


def test_the_gaussian_distance_is_a_lower_bound_up_to_the_factor_of_covariances() -> None:
    """Gelbrich's bound is on moments of n, these covariances are of n − 1."""
    (a, labels_a), (b, labels_b) = labelled(40, 0, classes=2), labelled(40, 1, shift=1, classes=4)
    exact = OTDD().of(pair(a, b, labels_a, labels_b))
    gaussian = OTDD(inner="gaussian").of(pair(a, b, labels_a, labels_b))
    assert 0.5 * exact < gaussian < exact


def test_sinkhorn_falls_to_the_exact_value_as_entropy_does() -> None:
    (a, labels_a), (b, labels_b) = labelled(20, 0), labelled(14, 1, shift=1)
    sides = pair(a, b, labels_a, labels_b)
    exact = OTDD().of(sides)
    mean = OTDD().cost(sides).mean()
    entropies = (100, 1, 0.1, 0.01, 0.001)
    values = [OTDD(entropy=entropy).of(sides) for entropy in entropies]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(mean, rel=0.01)  # the cost of the coupling a ⊗ b
    for entropy, value in zip(entropies, values, strict=True):  # the divergence is at most log(14), that of b
        assert exact < value < exact + entropy * mean * math.log(14)


def test_sinkhorn_is_the_regularised_cost_of_the_coupling_that_is_known() -> None:
    """Between two and two points, couplings have one free number, and the best is a root of a quadratic."""
    cost, strength = np.array([[0.0, 1.0], [1.0, 0.0]]), 0.5
    odds = math.exp(1 / strength)  # of staying: p / (½ − p)
    stays = odds / (1 + odds) / 2
    plan = np.array([[stays, 0.5 - stays], [0.5 - stays, stays]])
    known = (plan * cost).sum() + strength * (plan * np.log(plan / 0.25)).sum()
    assert entropic_cost(cost, strength) == pytest.approx(known)


def test_what_does_not_converge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paretune.shifts.distances.transport.MOST_STEPS", 2)
    (a, labels_a), (b, labels_b) = labelled(20, 0), labelled(14, 1, shift=1)
    with pytest.raises(ValueError, match=r"off by .* after 2 steps, .* larger entropy, or 0, which is exact"):
        OTDD(entropy=0.001).of(pair(a, b, labels_a, labels_b))


def test_an_exact_solver_that_gives_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paretune.shifts.distances.transport.MOST_PIVOTS", 1)
    (a, labels_a), (b, labels_b) = labelled(20, 0), labelled(14, 1, shift=1)
    with (
        pytest.warns(UserWarning, match="numItermax"),
        pytest.raises(RuntimeError, match="between 10 and 7 examples was not found"),
    ):
        OTDD().of(pair(a, b, labels_a, labels_b))


def test_examples_that_are_all_the_same_are_at_zero_with_entropy_too() -> None:
    same = np.ones((4, 3))
    assert OTDD(entropy=0.1).of(pair(same, same)) == 0
    assert OTDD().of(pair(same, same)) == 0


def test_without_pot_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    points, labels = labelled(6, 0)
    with pytest.raises(ImportError, match=r'needs POT: pip install "paretune\[distance\]"'):
        OTDD().of(pair(points, points, labels, labels))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner": "sinkhorn"}, "inner must be 'exact' or 'gaussian', got 'sinkhorn'"),
        ({"on": "labels"}, "on must be 'features' or 'pixels', got 'labels'"),
        ({"entropy": -0.1}, "entropy must be finite and at least 0"),
        ({"entropy": math.nan}, "entropy must be finite and at least 0"),
        ({"debiased": True}, "give one, such as entropy=0.05"),
    ],
)
def test_what_means_nothing_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OTDD(**wrong)  # type: ignore[arg-type]

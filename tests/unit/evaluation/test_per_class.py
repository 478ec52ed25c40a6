"""What scores say of single classes."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

import paretune as pt
from paretune.evaluation import Scores
from tests import tiny

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=2)
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
CLEAN = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 1], dtype=bool)
ROBUST = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 1], dtype=bool)
SCORES = Scores(CLEAN, {ATTACK: ROBUST}, "split", 4, LABELS, ("ant", "bee", "cat", "dog"))


def test_one_row_per_class_worst_first() -> None:
    table = SCORES.per_class(ATTACK)
    intervals = ["clean", "clean_low", "clean_high", "robust", "robust_low", "robust_high"]
    assert [*table.columns] == ["class", "examples", *intervals]
    assert [*table["class"]] == ["cat", "ant", "bee"]
    assert [*table["examples"]] == [4, 4, 2]
    assert [*table["clean"]] == [1.0, 0.75, 1.0]
    assert [*table["robust"]] == [0.25, 0.5, 0.5]
    expected = binomtest(1, 4).proportion_ci(0.95, method="wilson")
    assert (table["robust_low"][0], table["robust_high"][0]) == pytest.approx((expected.low, expected.high))


def test_without_an_attack_it_is_about_clean_images() -> None:
    table = SCORES.per_class(level=0.5)
    assert [*table.columns] == ["class", "examples", "clean", "clean_low", "clean_high"]
    assert [*table["class"]] == ["ant", "bee", "cat"]
    assert (
        table["clean_high"] - table["clean_low"]
        < SCORES.per_class()["clean_high"] - SCORES.per_class()["clean_low"]
    ).all()


def test_balanced_accuracy_is_the_mean_over_classes() -> None:
    assert SCORES.balanced_accuracy() == pytest.approx((0.75 + 1 + 1) / 3)
    assert SCORES.balanced_accuracy(ATTACK) == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    answers = np.where(CLEAN, LABELS, (LABELS + 1) % 3)
    assert SCORES.balanced_accuracy() == pytest.approx(balanced_accuracy_score(LABELS, answers))


def test_evaluate_gives_labels_and_names() -> None:
    model, data = tiny.backbone(pt.FullFineTune()).eval(), tiny.data()
    scores = pt.evaluate(model, data.report, [ATTACK])
    table = scores.per_class(ATTACK)
    weighted = (table["robust"] * table["examples"]).sum() / table["examples"].sum()
    assert weighted == pytest.approx(scores.robust_accuracy(ATTACK))
    assert sorted(table["class"]) == sorted(data.classes)
    assert scores.balanced_accuracy(ATTACK) == pytest.approx(table["robust"].mean())


def test_classes_without_names_are_numbers_and_scores_without_labels_say_so() -> None:
    nameless = Scores(CLEAN, {ATTACK: ROBUST}, "split", 4, LABELS)
    assert [*nameless.per_class(ATTACK)["class"]] == ["2", "0", "1"]
    with pytest.raises(ValueError, match="no labels"):
        Scores(CLEAN, {ATTACK: ROBUST}, "split").balanced_accuracy()


def test_scores_print_as_a_table_with_intervals() -> None:
    attack = pt.PGD(pt.Linf(1 / 255), steps=2)
    clean = np.array([True] * 8 + [False] * 2)
    robust = clean & (np.arange(10) < 5)
    labels = np.array([0] * 8 + [1] * 2)
    scores = Scores(clean, {attack: robust}, "split", 2, labels)
    heading, columns, first, second = str(scores).splitlines()
    assert heading == "10 examples"
    assert columns.split() == ["accuracy", "95%", "interval", "balanced"]
    low, high = binomtest(8, 10).proportion_ci(method="wilson")
    assert first.split() == ["clean", "0.800", f"{low:.3f}", "to", f"{high:.3f}", "0.500"]
    low, high = binomtest(5, 10).proportion_ci(method="wilson")
    assert second.startswith("PGD(Linf(1/255), steps=2)")
    assert second.split()[2:] == ["0.500", f"{low:.3f}", "to", f"{high:.3f}", "0.312"]
    assert repr(scores) == str(scores)

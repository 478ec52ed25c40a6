"""RI and mRI as they are published, and intervals that cover them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paretune.frontiers.inherited import inherited, robustness_inheritance

Bits = NDArray[np.bool_]


def exactly(right: int, of: int = 10) -> Bits:
    """So many right, the first ones."""
    return np.arange(of) < right


def by_method(table: Mapping[str, Mapping[str, Mapping[str, int]]], seeds: tuple[int, ...] = (0,)) -> Any:
    return {
        method: {
            task: {seed: {name: exactly(right) for name, right in row.items()} for seed in seeds}
            for task, row in rows.items()
        }
        for method, rows in table.items()
    }


BEFORE = {"a": exactly(5), "b": exactly(6), "c": exactly(7), "pretraining": exactly(9)}
FULL = {
    "a": {"a": 10, "b": 3, "c": 8, "pretraining": 6},
    "b": {"a": 4, "b": 9, "c": 7, "pretraining": 7},
    "c": {"a": 6, "b": 7, "c": 8, "pretraining": 8},
}


def test_ri_and_mri_are_those_of_a_table_computed_by_hand() -> None:
    found = inherited(BEFORE, by_method({"full": FULL}), pretraining="pretraining", resamples=100)
    (full,) = found.methods
    # On a: (0.3 - 0.6 + 0.8 - 0.7) / 2; on b: (0.4 - 0.5 + 0.7 - 0.7) / 2; on c: (0.6 - 0.5 + 0.7 - 0.6) / 2.
    by_hand = {"a": -0.1, "b": -0.05, "c": 0.1}
    assert {task: each.estimate for task, each in full.ri.items()} == pytest.approx(by_hand)
    assert full.mri.estimate == pytest.approx(-0.05 / 3)
    assert full.gain.estimate == pytest.approx((0.5 + 0.3 + 0.1) / 3)
    assert full.drop is not None
    assert full.drop.estimate == pytest.approx(0.9 - (0.6 + 0.7 + 0.8) / 3)
    assert full.after["a"] == {"a": 1.0, "b": 0.3, "c": 0.8, "pretraining": 0.6}
    assert found.before == {"a": 0.5, "b": 0.6, "c": 0.7, "pretraining": 0.9}
    assert found.tasks == ("a", "b", "c")


def test_what_is_fine_tuned_on_and_the_pretraining_task_take_no_part_in_ri() -> None:
    other = {task: row | {task: 0, "pretraining": 0} for task, row in FULL.items()}
    one = inherited(BEFORE, by_method({"full": FULL}), pretraining="pretraining", resamples=100)
    two = inherited(BEFORE, by_method({"full": other}), pretraining="pretraining", resamples=100)
    assert one.methods[0].ri == two.methods[0].ri
    assert one.methods[0].mri == two.methods[0].mri
    assert one.methods[0].gain != two.methods[0].gain
    assert one.methods[0].drop != two.methods[0].drop


def test_many_tables_at_once_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(0)
    after, before = rng.random((5, 4, 4)), rng.random((5, 4))
    every = robustness_inheritance(after, before)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        expected = np.mean([after[:, i, j] - before[:, j] for j in others], axis=0)
        np.testing.assert_allclose(every[:, i], expected)


def test_seeds_are_averaged_and_shown_one_by_one() -> None:
    after = by_method({"full": FULL}, seeds=(0, 1))
    after["full"]["a"][1] = {name: exactly(10) for name in BEFORE}
    (full,) = inherited(BEFORE, after, pretraining="pretraining", resamples=100).methods
    ri = (0.4 + 0.3) / 2
    assert full.per_seed == pytest.approx((-0.05 / 3, (ri - 0.05 + 0.1) / 3))
    assert full.mri.estimate == pytest.approx(np.mean(full.per_seed))
    assert full.after["a"]["b"] == pytest.approx((0.3 + 1.0) / 2)


def test_an_interval_of_a_model_that_did_not_change_has_no_width() -> None:
    same = {task: {name: int(bits.sum()) for name, bits in BEFORE.items()} for task in ("a", "b", "c")}
    found = inherited(BEFORE, by_method({"nothing": same, "full": FULL}), pretraining="pretraining")
    nothing = next(each for each in found.methods if each.method == "nothing")
    assert nothing.mri == (0, 0, 0)
    assert found.best.method == "nothing"
    assert found.best.mri.estimate == max(each.mri.estimate for each in found.methods)


def test_versions_of_the_same_pictures_are_drawn_together() -> None:
    """Errors that all tasks share add up; drawn apart they would seem to cancel out."""
    rng = np.random.default_rng(1)
    lost = rng.random(200) < 0.3
    sets = ("a", "b", "c", "d")
    before = dict.fromkeys(sets, np.ones(200, dtype=bool))
    after = {"full": {task: {0: dict.fromkeys(sets, ~lost)} for task in sets}}
    together = inherited(before, after, units=dict.fromkeys(sets, np.arange(200)))
    apart = inherited(before, after)
    one = np.sqrt(lost.mean() * (1 - lost.mean()) / 200)
    for found, error in ((together, one), (apart, one / 2)):
        (full,) = found.methods
        assert full.mri.high - full.mri.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_pictures_that_some_tasks_share_leave_each_task_its_number_of_examples() -> None:
    """So that the accuracy of a model that is always right has no spread."""
    before = {"a": np.zeros(30, dtype=bool), "b": np.zeros(40, dtype=bool)}
    right = {"a": np.ones(30, dtype=bool), "b": np.ones(40, dtype=bool)}
    after = {"full": {task: {0: right} for task in before}}
    (full,) = inherited(before, after, units={"a": np.arange(30), "b": np.arange(20, 60)}).methods
    assert full.mri == (1, 1, 1)


@pytest.mark.some(1)
@pytest.mark.parametrize("shared", [False, True])
def test_intervals_cover_the_truth(shared: bool) -> None:
    """Of examples drawn anew, in nineteen of twenty cases or more; also where tasks show the same pictures."""
    rng, sets, count, covered, trials = np.random.default_rng(2), ("a", "b", "c"), 150, 0, 200
    p_before, p_after = (
        0.7,
        {("a", "b"): 0.6, ("a", "c"): 0.8, ("b", "a"): 0.5, ("b", "c"): 0.7, ("c", "a"): 0.75},
    )
    p_after |= {("c", "b"): 0.65} | {(each, each): 0.9 for each in sets}
    truth = np.mean([p - p_before for (i, j), p in p_after.items() if i != j])
    for _ in range(trials):
        luck = rng.random(count)
        hard = {name: luck if shared else rng.random(count) for name in sets}

        def bits(p: float, name: str, hard: dict[str, NDArray[np.float64]] = hard) -> Bits:
            mixed = np.where(rng.random(count) < 0.7, hard[name], rng.random(count))
            return mixed < p

        before = {name: bits(p_before, name) for name in sets}
        after = {"full": {i: {0: {j: bits(p_after[i, j], j) for j in sets}} for i in sets}}
        units = dict.fromkeys(sets, np.arange(count)) if shared else None
        (full,) = inherited(before, after, units=units, resamples=300).methods
        covered += full.mri.low <= truth <= full.mri.high
    assert covered / trials > 0.91


def test_methods_are_told_apart_where_they_differ_and_only_there() -> None:
    rng, sets = np.random.default_rng(3), ("a", "b", "c")
    before = {name: rng.random(600) < 0.7 for name in sets}

    def after(lost: float) -> Any:
        return {
            task: {
                seed: {name: bits & (rng.random(600) >= lost) for name, bits in before.items()}
                for seed in (0, 1)
            }
            for task in sets
        }

    found = inherited(before, {"harsh": after(0.3), "mild": after(0.02), "gentle": after(0.02)})
    assert [each.method for each in found.methods][2] == "harsh"
    assert {*found.tied} == {"mild", "gentle"}
    assert found.certainty == "tie"
    p_values = {(gap.method_a, gap.method_b): gap.p_value for gap in found.differences}
    assert p_values[found.best.method, "harsh"] < 0.01
    assert "not told to be behind" in found.sentence
    for gap in found.differences:
        assert gap.low <= gap.difference <= gap.high


def test_five_seeds_add_the_luck_of_training() -> None:
    rng, sets = np.random.default_rng(4), ("a", "b")
    before = {name: rng.random(2000) < 0.7 for name in sets}

    def of_seed(seed: int) -> dict[str, Bits]:
        kept = 0.7 + 0.06 * seed
        return {name: bits & (rng.random(2000) < kept) for name, bits in before.items()}

    def widths(seeds: int) -> float:
        after = {"full": {task: {seed: of_seed(seed) for seed in range(seeds)} for task in sets}}
        found = inherited(before, after)
        assert ("do not cover" in found.covers) == (seeds < 5)
        return found.best.mri.high - found.best.mri.low

    assert widths(5) > 3 * widths(4)


def test_the_tables_have_every_number() -> None:
    found = inherited(BEFORE, by_method({"full": FULL}), pretraining="pretraining", resamples=100)
    (row,) = found.to_frame().to_dict("records")
    assert row["mri"] == pytest.approx(-0.05 / 3)
    assert row["ri c"] == pytest.approx(0.1)
    assert row["ri c low"] <= row["ri c"] <= row["ri c high"]
    cells = found.matrix().set_index(["fine_tuned_on", "measured_on"])
    assert len(cells) == 12
    assert cells.loc[("a", "b"), "change"] == pytest.approx(-0.3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda before, after: before.pop("b") is before.pop("c") or after["full"].clear(), "at least two"),
        (lambda before, after: after["full"].pop("b"), "was fine-tuned on a, c"),
        (lambda before, after: after["full"]["b"].update({7: after["full"]["b"][0]}), "seeds"),
        (lambda before, after: after["full"]["b"][0].update(c=exactly(3, 9)), "other examples of 'c'"),
        (lambda before, after: after.clear(), "after is empty"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: Any, told: str) -> None:
    before, after = dict(BEFORE), by_method({"full": FULL})
    change(before, after)
    with pytest.raises(ValueError, match=told):
        inherited(before, after, pretraining="pretraining")


def test_units_need_a_label_for_each_example() -> None:
    with pytest.raises(ValueError, match="one label an example"):
        inherited(BEFORE, by_method({"full": FULL}), pretraining="pretraining", units={"a": [1, 2]})

"""Anybody's tables: areas by hand, intervals by scipy, errors that name the cell, and only what the table allows."""

import html
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import paretune as pt
from paretune.frontiers.power import needed_seeds
from paretune.frontiers.volumes import volume
from paretune.report import shell
from tests.synthetic import STRATEGIES, There, write_run, write_runs


def table(
    groups: dict[str, float],
    *,
    seeds: int = 1,
    points: int = 6,
    tasks: tuple[str, ...] = ("",),
    noise: float = 0.01,
) -> pd.DataFrame:
    """Curves that trade clean for robust accuracy; the number of a group is added to its robust accuracies."""
    rng = np.random.default_rng(0)
    progress = np.linspace(0.1, 1, points)
    rows = []
    for task in tasks:
        for group, gain in groups.items():
            for seed in range(seeds):
                luck = noise * rng.standard_normal()
                clean, robust = 0.93 - 0.2 * progress**2, 0.2 + 0.3 * np.sqrt(progress) + gain + luck
                rows.append(
                    pd.DataFrame(
                        {"strategy": group, "seed": seed, "task": task, "clean": clean, "robust": robust}
                    )
                )
    return pd.concat(rows, ignore_index=True)


def written(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_the_area_of_each_group_is_that_of_its_points() -> None:
    frame = table({"A": 0.0, "B": 0.05, "C": -0.1})
    result = pt.analyze(frame)
    (ranking,) = result.tasks
    assert [each.strategy for each in ranking.areas] == ["B", "A", "C"]
    assert ranking.ranks == (1, 2, 3)
    assert ranking.points == ((6, 6),) * 3
    for each in ranking.areas:
        own = frame[frame["strategy"] == each.strategy]
        assert each.area == pytest.approx(pt.area(own["clean"], own["robust"]))
        assert (each.low, each.high, each.k) == (None, None, 6)


def test_a_reference_and_floors_make_partial_areas() -> None:
    frame = table({"A": 0.0, "B": 0.05})
    result = pt.analyze(frame, reference=(0.1, 0.0), min_clean=0.8, min_robust=0.3)
    assert result.reference == (0.8, 0.3)
    for each in result.areas:
        own = frame[frame["strategy"] == each.strategy]
        assert each.area == pytest.approx(pt.area(own["clean"], own["robust"], (0.8, 0.3)))


def test_the_table_of_areas_has_exactly_the_promised_columns() -> None:
    frame = pt.analyze(table({"A": 0.0, "B": 0.05}), reference=(0.1, 0)).to_frame()
    assert [*frame] == ["task", "group", "area", "low", "high", "k", "reference_clean", "reference_robust"]
    assert frame["low"].isna().all()
    assert {*frame["reference_clean"]} == {0.1}


def test_without_repeats_it_cannot_say_how_certain_it_is() -> None:
    for seeds in (1, 2):
        (ranking,) = pt.analyze(table({"A": 0.0, "B": 0.05}, seeds=seeds), seed="seed").tasks
        assert ranking.certainty == "unknown"
        assert "cannot say how certain" in ranking.verdict
        assert ranking.differences[0].p_value is None
    (alone,) = pt.analyze(table({"A": 0.0})).tasks
    assert alone.certainty == "alone"
    assert "no other group to compare it with" in alone.verdict


def test_repeats_give_students_intervals_and_paired_tests() -> None:
    (ranking,) = pt.analyze(table({"A": 0.0, "B": 0.05, "C": 0.052}, seeds=5), seed="seed").tasks
    areas = {each.strategy: np.array(each.per_seed) for each in ranking.areas}
    for each in ranking.areas:
        expected = stats.ttest_1samp(areas[each.strategy], 0).confidence_interval(0.95)
        assert (each.low, each.high) == pytest.approx((expected.low, expected.high))
        assert each.seeds == ("0", "1", "2", "3", "4")
    raw = {
        (a, b): stats.ttest_rel(areas[a], areas[b])
        for a, b in combinations([e.strategy for e in ranking.areas], 2)
    }
    for d in ranking.differences:
        expected = raw[d.strategy_a, d.strategy_b].confidence_interval(0.95)
        assert (d.low, d.high) == pytest.approx((expected.low, expected.high))
    adjusted = sorted(d.p_value for d in ranking.differences if d.p_value is not None)
    assert adjusted[0] == pytest.approx(3 * min(test.pvalue for test in raw.values()))
    assert "cover the luck of training, not of the test examples" in ranking.verdict


def test_repeats_of_other_names_are_two_samples() -> None:
    frame = table({"A": 0.0, "B": 0.05}, seeds=4)
    frame["seed"] += 10 * (frame["strategy"] == "B")
    (ranking,) = pt.analyze(frame, seed="seed").tasks
    first, second = (np.array(each.per_seed) for each in ranking.areas)
    expected = stats.ttest_ind(first, second, equal_var=False)
    (d,) = ranking.differences
    assert d.p_value == pytest.approx(expected.pvalue)
    assert (d.low, d.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_clear_winner_is_clear_and_equals_are_not_told_apart() -> None:
    (clear,) = pt.analyze(table({"A": 0.0, "B": 0.3}, seeds=5), seed="seed").tasks
    assert clear.certainty == "clear"
    assert "every other group is told apart from it" in clear.verdict
    (equal,) = pt.analyze(table({"A": 0.0, "B": 0.0}, seeds=5, noise=0.05), seed="seed").tasks
    assert equal.certainty == "cannot tell"
    (close,) = pt.analyze(table({"A": 0.0, "B": 0.0}, seeds=30, noise=1e-4), seed="seed").tasks
    assert close.certainty == "equivalent"


def test_intervals_hold_the_truth_and_equals_are_seldom_told_apart() -> None:
    """Over 200 tables of three equal groups with five seeds; bounds are three standard errors off 95 % and 5 %."""
    truth = pt.analyze(table({"A": 0.0}, points=3, noise=0.0)).areas[0].area
    rng = np.random.default_rng(0)
    shape = table({"A": 0.0, "B": 0.0, "C": 0.0}, seeds=5, points=3, noise=0.0)
    held, told_apart = [], 0
    for _ in range(200):
        luck = np.repeat(0.02 * rng.standard_normal(15), 3)
        (ranking,) = pt.analyze(shape.assign(robust=shape["robust"] + luck), seed="seed").tasks
        held += [each.low <= truth <= each.high for each in ranking.areas]
        told_apart += any(d.p_value < 0.05 for d in ranking.differences)
    assert 0.92 <= np.mean(held) <= 0.98
    assert told_apart / 200 <= 0.05 + 3 * 0.0154


def test_copies_are_no_repeats() -> None:
    frame = table({"A": 0.0, "B": 0.05})
    copies = pd.concat([frame.assign(seed=seed) for seed in range(4)])
    (ranking,) = pt.analyze(copies, seed="seed").tasks
    assert ranking.certainty == "unknown"
    assert {each.low for each in ranking.areas} == {None}
    assert any("copies say nothing" in note for note in ranking.notes)


def test_more_points_are_no_advantage() -> None:
    """Of a frontier with more points, those count that evaluating it as often as the smallest would have given."""
    frame = pd.concat([table({"A": 0.0}, points=7), table({"B": 0.0}, points=3)])
    result = pt.analyze(frame)
    areas = {each.strategy: each for each in result.areas}
    own = frame[frame["strategy"] == "A"][["clean", "robust"]].to_numpy()
    assert areas["A"].area == pytest.approx(pt.area(*own[[1, 3, 6]].T))  # 7/3, 14/3 and 7, counted from 1
    assert areas["A"].k == 3
    (ranking,) = result.tasks
    assert {each.strategy: points for each, points in zip(ranking.areas, ranking.points, strict=True)} == {
        "A": (7, 7),
        "B": (3, 3),
    }
    assert any("have 3 (B) to 7 points; 3 evenly spaced" in note for note in result.tasks[0].notes)
    unequal = pt.analyze(frame, equal_budgets=False)
    areas = {each.strategy: each for each in unequal.areas}
    assert areas["A"].area == pytest.approx(pt.area(own[:, 0], own[:, 1]))
    assert any("unequal budgets" in note for note in unequal.tasks[0].notes)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_larger_budget_is_not_told_apart_from_an_equal_strategy(ordered: bool) -> None:
    """Of training curves in their order, and of points in no order; counting all points tells them apart."""
    rng = np.random.default_rng(0)
    frames = []
    for task in range(8):
        for strategy, points in (("few", 10), ("many", 50)):
            for seed in range(10):
                progress = np.arange(1, points + 1) / points if ordered else rng.random(points)
                clean = 0.9 - 0.2 * progress**2 + 0.008 * rng.standard_normal(points)
                robust = 0.1 + 0.35 * np.sqrt(progress) + 0.008 * rng.standard_normal(points)
                made = {"task": task, "strategy": strategy, "seed": seed, "clean": clean, "robust": robust}
                frames.append(pd.DataFrame(made))
    frame = pd.concat(frames)
    for equal_budgets in (True, False):
        across = pt.analyze(frame, task="task", seed="seed", equal_budgets=equal_budgets).across
        assert across is not None
        assert (across.pairs[0].p_value < 0.05) == (not equal_budgets)


def test_duplicates_change_nothing() -> None:
    frame = table({"A": 0.0, "B": 0.05})
    twice = pd.concat([frame, frame])
    assert pt.analyze(twice).to_frame()["area"].tolist() == pytest.approx(
        pt.analyze(frame).to_frame()["area"].tolist()
    )


def test_accuracies_on_other_examples_can_choose() -> None:
    """With a select split the front is chosen on it and measured on the other columns, as for runs."""
    frame = pd.DataFrame(
        {
            "strategy": "A",
            "clean": [0.9, 0.6, 0.95],
            "robust": [0.1, 0.5, 0.45],
            "vc": [0.9, 0.6, 0.5],
            "vr": [0.1, 0.5, 0.2],
        }
    )
    assert pt.analyze(frame, select=("vc", "vr")).areas[0].area == pytest.approx(0.9 * 0.1 + 0.6 * 0.4)
    (ranking,) = pt.analyze(frame).tasks
    assert ranking.areas[0].area > 0.4
    assert any("too high" in note for note in ranking.notes)
    assert not any("too high" in note for note in pt.analyze(frame, select=("vc", "vr")).tasks[0].notes)


def test_several_tasks_are_ranked_and_tested_together() -> None:
    tasks = tuple(f"t{number}" for number in range(8))
    frame = table({"A": 0.0, "B": 0.05, "C": -0.05}, tasks=tasks)
    result = pt.analyze(frame, task="task")
    assert len(result.tasks) == 8
    assert result.across is not None
    assert result.across.ranked == ("B", "A", "C")
    assert result.across.certainty == "clear"
    assert result.across.mean_ranks == (1, 2, 3)
    assert {winner.certainty for winner in result.across.winners} == {"unknown"}
    assert result.verdict.count("\n") == 8
    apart = pd.concat([table({"A": 0.0}, tasks=("x",)), table({"B": 0.0}, tasks=("y",))])
    assert pt.analyze(apart, task="task").across is None


def test_several_columns_name_a_group() -> None:
    frame = table({"A": 0.0, "B": 0.05})
    frame["rank"] = [4, 8] * 6
    groups = {each.strategy for each in pt.analyze(frame, group="strategy,rank").areas}
    assert groups == {"A / 4", "A / 8", "B / 4", "B / 8"}
    assert (
        pt.analyze(frame, group=["strategy", "rank"]).areas == pt.analyze(frame, group="strategy, rank").areas
    )
    slashes = pd.DataFrame({"a": ["x / y", "x"], "b": ["z", "y / z"], "clean": 0.5, "robust": 0.5})
    assert len(pt.analyze(slashes, group="a,b").areas) == 2


def test_points_lead_back_to_their_runs(tmp_path: Path) -> None:
    """The table of load_points has the areas, intervals and p-values of compare; so has its CSV file."""
    write_runs(tmp_path / "runs", points=4)
    points = pt.load_points(tmp_path / "runs")
    points.to_csv(tmp_path / "p.csv", index=False)
    (condition,) = pt.compare(tmp_path / "runs").conditions
    for source in (points, tmp_path / "p.csv", pd.concat([points, points.iloc[::3]])):
        (ranking,) = pt.analyze(source, task="task", seed="seed").tasks
        assert [(a.strategy, a.area, a.low, a.high) for a in ranking.areas] == [
            (a.strategy, a.area, a.low, a.high) for a in condition.areas
        ]
        assert [d.p_value for d in ranking.differences] == [d.p_value for d in condition.differences]
        assert ranking.certainty == condition.certainty
        assert "400 test examples" in ranking.verdict
    kept = points[points["step"] > 20]
    (ranking,) = pt.analyze(kept, task="task", seed="seed").tasks
    assert ranking.k == 3
    assert ranking.areas[0].low is not None


def test_several_attacks_of_own_runs_are_tasks(tmp_path: Path) -> None:
    attacks = (("PGD(Linf(0.01))", "Linf", 0.01, 1.0), ("PGD(Linf(0.02))", "Linf", 0.02, 0.7))
    write_runs(tmp_path, points=3, attacks=attacks)
    result = pt.analyze(pt.load_points(tmp_path), task="task,epsilon,attack")
    compared = pt.compare(tmp_path)
    assert [each.area for each in result.areas] == [each.area for each in compared.areas]
    assert result.tasks[0].task == "digits / 0.01 / PGD(Linf(0.01))"


def test_runs_that_are_gone_changed_or_cut_across_leave_the_table_alone(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", points=4, seeds=(0,))
    points = pt.load_points(tmp_path / "runs")
    cut = points.assign(half=points["step"] > 40)
    changed = points.assign(clean=points["clean"] * 0.9)
    gone = points.assign(path="nowhere")
    for frame, group in ((cut, "strategy,half"), (changed, "strategy"), (gone, "strategy")):
        (ranking,) = pt.analyze(frame, group=group).tasks
        assert ranking.certainty == "unknown"
        assert any("table is of runs" in note for note in ranking.notes)


def test_other_runs_than_the_table_names_are_not_read(tmp_path: Path) -> None:
    """A table that names a run but not its points is left alone: what is compared is what the table says."""
    write_run(tmp_path / "a", STRATEGIES[0], points=3)
    points = pt.load_points(tmp_path).assign(step=[7, 8, 9])
    assert pt.analyze(points).tasks[0].areas[0].low is None


def test_the_page_stands_beside_the_areas(tmp_path: Path) -> None:
    """areas.csv holds the table as it is, and the page every group, as text, and both verdicts."""
    frame = table({"A": 0.0, "<b>": 0.05, "C": -0.1}, tasks=("one", "two"), seeds=3)
    analysis = pt.analyze(frame, task="task", seed="seed")
    page = pt.report.write_analysis(analysis, tmp_path / "out", title="<i>mine</i>")
    areas = pd.read_csv(tmp_path / "out" / "areas.csv")
    pd.testing.assert_frame_equal(areas, analysis.to_frame(), check_dtype=False)
    text = page.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "<i>" not in text
    for task in analysis.tasks:
        assert html.escape(task.sentence) in text
        assert html.escape(task.covers) in text
    assert analysis.across is not None
    assert html.escape(analysis.across.verdict) in text


def test_without_the_renderer_the_areas_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell._library.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ImportError, match=r'pip install "paretune\[report\]"'):
        pt.report.write_analysis(pt.analyze(table({"A": 0.0})), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["areas.csv"]


def test_ties_are_named() -> None:
    """A lead below the margin and equal areas, whether or not there are repeats."""
    (ranking,) = pt.analyze(table({"A": 0.0, "B": 0.003}, noise=0.0)).tasks
    assert ranking.tied == ("B", "A")
    assert ranking.certainty == "unknown"
    assert "A is less than 0.005 behind" in ranking.sentence
    (ranking,) = pt.analyze(table({"A": 0.0, "B": 0.0, "C": 0.0, "D": -0.2}, noise=0.0)).tasks
    assert (ranking.tied, ranking.ranks) == (("A", "B", "C"), (2, 2, 2, 4))
    assert "B and C have the same area" in ranking.sentence
    frame = table({"A": 0.0, "B": 0.003, "C": -0.1}, seeds=5, noise=1e-3)
    (ranking,) = pt.analyze(frame, seed="seed").tasks
    assert (ranking.tied, ranking.certainty) == (("B", "A"), "tie")
    assert "A is less than 0.005 behind" in ranking.sentence
    frame.loc[frame["strategy"] == "B", "robust"] = frame.loc[frame["strategy"] == "A", "robust"].to_numpy()
    (ranking,) = pt.analyze(frame, seed="seed").tasks
    assert (ranking.tied, ranking.certainty) == (("A", "B"), "tie")
    assert "B has the same area" in ranking.sentence


def test_three_tasks_of_five_seeds_have_a_pooled_estimate_and_what_more_would_settle_it() -> None:
    frame = table({"A": 0.0, "B": 0.01, "C": -0.1}, seeds=5, tasks=("x", "y", "z"), noise=0.02)
    analysis = pt.analyze(frame, task="task", seed="seed")
    assert analysis.across is not None
    pair = analysis.across.pairs[0]
    gaps, errors = [], []
    for task in analysis.tasks:
        areas = {each.strategy: np.array(each.per_seed) for each in task.areas}
        gaps.append((areas["B"] - areas["A"]).mean())
        errors.append(stats.sem(areas["B"] - areas["A"]))
    assert (pair.strategy_a, pair.strategy_b) == ("B", "A")
    assert pair.mean_difference == pytest.approx(np.mean(gaps))
    error = np.sqrt(np.square(errors).sum()) / 3
    freedom = np.square(errors).sum() ** 2 / (np.power(errors, 4) / 4).sum()
    assert pair.here == pytest.approx(stats.t.interval(0.95, freedom, np.mean(gaps), error))
    half = stats.t.ppf(0.975, 2) * max(error, stats.sem(gaps))
    assert (pair.low, pair.high) == pytest.approx((np.mean(gaps) - half, np.mean(gaps) + half))
    assert f"B is ahead of A by {pair.mean_difference:.3f} on average" in analysis.verdict
    assert "such tasks would settle it in general" in analysis.verdict
    assert "signed-rank" not in analysis.verdict
    noisy = table({"A": 0.0, "B": 0.004}, seeds=3, tasks=("x", "y"), noise=0.03)
    across = pt.analyze(noisy, task="task", seed="seed").across
    assert across is not None
    assert f"about {across.pairs[0].repeats_needed} seeds on these tasks" in across.verdict


def test_fractions_among_percentages_are_refused(tmp_path: Path) -> None:
    """In one column, in that of one task, in the clean ones of one group, in a column that chooses."""
    fractions = table({"A": 0.0, "B": 0.05}, tasks=("x", "y"))
    percent = fractions.assign(clean=100 * fractions["clean"], robust=100 * fractions["robust"])
    for wrong in ("clean", "robust"):
        mixed = percent.assign(**{wrong: fractions[wrong]})
        with pytest.raises(ValueError, match=rf"row 0: column '{wrong}' has nothing above 1, so .* one unit"):
            pt.analyze(mixed, percent=True)
        with pytest.raises(ValueError, match=rf"look like percentages, but '{wrong}' like fractions"):
            pt.analyze(mixed)
        here = percent["task"] == "y"
        of_task = percent.assign(**{wrong: percent[wrong].where(~here, fractions[wrong])})
        with pytest.raises(ValueError, match=rf"row 12: column '{wrong}' has nothing above 1 of task 'y'"):
            pt.analyze(of_task, percent=True, task="task")
    here = percent["strategy"] == "B"
    both = percent.assign(
        **{name: percent[name].where(~here, fractions[name]) for name in ("clean", "robust")}
    )
    with pytest.raises(
        ValueError, match=r"row 6: column 'clean' has nothing above 1 of group 'B' of task 'x'"
    ):
        pt.analyze(both, percent=True, task="task")
    chosen = percent.assign(vc=percent["clean"], vr=fractions["robust"])
    with pytest.raises(ValueError, match="column 'vr' has nothing above 1"):
        pt.analyze(chosen, percent=True, select=("vc", "vr"))
    path = written(tmp_path, "strategy,clean,robust\nA,93.1,0.45\nB,91.0,0.41\n")
    with pytest.raises(ValueError, match=r"t.csv, line 2: column 'robust' has nothing above 1.* got 0.45"):
        pt.analyze(path, percent=True)


def test_percentages_below_one_are_percentages_where_others_are_not() -> None:
    frame = pd.DataFrame(
        {"strategy": ["A", "A", "B", "B"], "clean": [0.5, 90, 93, 94], "robust": [0.2, 45, 0.4, 0.0]}
    )
    (ranking,) = pt.analyze(frame, percent=True).tasks
    areas = {each.strategy: each.area for each in ranking.areas}
    assert areas == pytest.approx({"A": 0.9 * 0.45, "B": 0.93 * 0.004})
    assert any("No robust accuracy of B is above 1 %" in note for note in ranking.notes)
    (nothing,) = pt.analyze(frame.assign(robust=0), percent=True).tasks
    assert {each.area for each in nothing.areas} == {0.0}
    with pytest.raises(ValueError, match="accuracies from 0 to 100; got 101"):
        pt.analyze(frame.assign(clean=101), percent=True)
    with pytest.raises(ValueError, match="accuracies from 0 to 100; got -1"):
        pt.analyze(frame.assign(robust=-1), percent=True)


def test_repeats_that_would_settle_a_tie_are_counted() -> None:
    (ranking,) = pt.analyze(table({"A": 0.0, "B": 0.01, "C": -0.2}, seeds=4, noise=0.03), seed="seed").tasks
    a, b = (np.array(each.per_seed) for each in sorted(ranking.areas[:2], key=lambda each: each.strategy))
    effect = abs((b - a).mean())
    number = needed_seeds(
        effect, seeds=4, v_examples=0.0, v_seeds=(b - a).var(ddof=1) / 4, alpha=0.05 / 3, power=0.8
    )
    (note,) = [note for note in ranking.notes if "seeds, instead of 4" in note]
    assert note.startswith(f"About {number} seeds, instead of 4, would tell ")
    assert f"if the true difference is {effect:.3f}" in note
    (clear,) = pt.analyze(table({"A": 0.0, "B": 0.3}, seeds=4), seed="seed").tasks
    assert not any("would tell" in note for note in clear.notes)


def shifted_table(seeds: int = 1) -> pd.DataFrame:
    """Two groups, of which B keeps more of its clean accuracy where images are shifted."""
    frame = table({"A": 0.02, "B": 0.0}, seeds=seeds)
    keeps = frame["strategy"].map({"A": 0.5, "B": 0.9}) - 0.01 * frame["seed"]
    return frame.assign(art=frame["clean"] * keeps)


def test_shifted_accuracies_give_volumes_beside_areas() -> None:
    frame = shifted_table()
    result = pt.analyze(frame, shifted="art", reference=(0.1, 0.05))
    plain = pt.analyze(frame, reference=(0.1, 0.05))
    assert result.areas == plain.areas
    ((ranking,), (without,)) = result.tasks, plain.tasks
    assert without.volumes is None
    assert "volume" not in plain.to_frame()
    assert ranking.volumes is not None
    for name, estimate in ranking.volume_of.items():
        rows = frame[frame["strategy"] == name]
        expected = volume(rows["clean"], rows["robust"], rows["art"], (0.1, 0.05, 0.1))
        assert estimate.area == pytest.approx(expected)
    assert ranking.best.strategy == "A"
    assert ranking.volumes.best.strategy == "B"
    assert ranking.volumes.sentence.startswith("B has the largest volume, 0.")
    told = result.to_frame().set_index("group")
    assert told["volume"].to_dict() == {name: each.area for name, each in ranking.volume_of.items()}
    assert told["volume_low"].isna().all()


def test_what_is_shifted_chooses_no_point() -> None:
    """The point with the best shifted accuracy is behind another in clean and robust accuracy, and counts for nothing."""
    frame = pd.DataFrame({"strategy": "A", "clean": [0.9, 0.8], "robust": [0.5, 0.4], "art": [0.3, 0.9]})
    (ranking,) = pt.analyze(frame, shifted="art").tasks
    assert ranking.volume_of["A"].area == pytest.approx(0.9 * 0.5 * 0.3)


def test_seeds_give_volumes_intervals_and_tests() -> None:
    (ranking,) = pt.analyze(shifted_table(seeds=4), shifted="art", seed="seed").tasks
    assert ranking.volumes is not None
    estimate = ranking.volumes.best
    expected = stats.t.interval(0.95, 3, estimate.area, np.std(estimate.per_seed, ddof=1) / 2)
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    (gap,) = ranking.volumes.differences
    assert gap.p_value is not None
    assert gap.p_value < 0.05
    assert ranking.volumes.notes == ()  # said once, of the areas


def test_shifted_accuracies_of_own_runs_have_the_volumes_of_compare(tmp_path: Path) -> None:
    there = {"fog 1": There(0.8, "Corruption('fog', severity=1)"), "art": There(0.6, None, 70)}
    write_runs(tmp_path, STRATEGIES[:2], points=4, elsewhere=there)
    points = pt.load_points(tmp_path)
    (ranking,) = pt.analyze(points, shifted="clean_elsewhere").tasks
    volumes = pt.compare(tmp_path).conditions[0].volumes
    assert volumes is not None
    assert ranking.volumes is not None
    assert [(e.strategy, e.area, e.low) for e in ranking.volumes.areas] == [
        (e.strategy, e.area, e.low) for e in volumes.areas
    ]
    # Of another column, such as one domain alone, the runs say nothing together: the table itself is judged.
    (alone,) = pt.analyze(points, shifted="clean_in_art", seed="seed").tasks
    assert alone.volumes is not None
    assert alone.volumes.best.low is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("sketch", "has no column 'sketch' \\(shifted\\)"),
        ("clean", "clean and shifted are both column 'clean'"),
        ("wrong", "column 'wrong' must hold accuracies from 0 to 1; got 71"),
    ],
)
def test_shifted_accuracies_that_are_none_are_refused(column: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pt.analyze(shifted_table().assign(wrong=71.0), shifted=column)

"""Areas, intervals and verdicts, against plain loops and simulations with a known truth."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from paretune.frontiers.bootstrap import Units, resample_counts
from paretune.frontiers.cells import HALVINGS, SELECTIONS, Samples, spaced_subsets
from paretune.frontiers.comparing import compare, labelled_points, recommend
from paretune.frontiers.pareto import area
from paretune.frontiers.verdict import attack_text, condition_names, epsilon_text, threat_text
from paretune.runs.store import load_runs
from tests.synthetic import ATTACK, STRATEGIES, Strategy, write_run, write_runs

LORA, COMPACTER, BITFIT, FULL = STRATEGIES


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs"))


def signed_area(points: list[tuple[float, float]]) -> float:
    """The staircase through points in this order, by its definition."""
    total, robust_before = 0.0, 0.0
    for clean, robust in points:
        total += clean * (robust - robust_before)
        robust_before = robust
    return total


def front_of(accuracies: list[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other dominates, the first of equals, by falling clean accuracy."""
    chosen = []
    for i, (clean, robust) in enumerate(accuracies):
        others = [(c, r, j) for j, (c, r) in enumerate(accuracies) if j != i]
        beaten = any(
            c >= clean and r >= robust and ((c, r) != (clean, robust) or j < i) for c, r, j in others
        )
        if clean > 0 and robust > 0 and not beaten:
            chosen.append(i)
    return sorted(chosen, key=lambda i: -accuracies[i][0])


def means_of(bits: list[dict[str, NDArray[np.bool_]]], split: str, weights: NDArray[np.float64]) -> list:  # type: ignore[type-arg]
    total = weights.sum()
    return [((weights @ b[f"{split}/clean"]) / total, (weights @ b[f"{split}/robust"]) / total) for b in bits]


def test_everything_agrees_with_a_plain_loop(runs: Path) -> None:
    """Choice on select, measurement on report, paired resamples, errors of the choice, averaged seeds."""
    comparison = compare(runs, resamples=300, seed=4)
    counts = np.concatenate([*resample_counts(400, 300, 4)]).astype(float)
    assert counts.shape == (300, 400)
    samples = Samples.of(Units.of(400), Units.of(200), 4)
    choosing, halves = samples.choosing.astype(float), samples.halves.astype(float)
    expected: dict[str, list[list[float]]] = {}
    chosen: dict[str, list[NDArray[np.float64]]] = {}
    for run in load_runs(runs):
        bits = [run.bits(row) for _, row in run.points.iterrows()]
        front = front_of([(row["clean_select"], row["robust_select"]) for _, row in run.points.iterrows()])
        areas = []
        for weights in [np.ones(400), *counts]:
            measured = means_of(bits, "report", weights)
            areas.append(signed_area([measured[i] for i in front]))
        expected.setdefault(run.config["strategy"], []).append(areas)
        fronts = [front_of(means_of(bits, "select", weights)) for weights in choosing]
        on_parts = [means_of(bits, "report", weights) for weights in [np.ones(400), *halves]]
        chosen.setdefault(run.config["strategy"], []).append(
            np.array([[signed_area([part[i] for i in front]) for front in fronts] for part in on_parts])
        )
    pooled = {name: np.mean(areas, axis=0) for name, areas in expected.items()}
    assert [*pooled] == ["LoRA", "Compacter", "BitFit", "FullFineTune"]
    for name in pooled:
        whole, *parts = np.mean(chosen[name], axis=0)
        agreed = [np.cov(a, b, ddof=0)[0, 1] for a, b in zip(parts[::2], parts[1::2], strict=True)]
        assert len(agreed) == HALVINGS
        errors = (whole - whole.mean()) * np.sqrt(max(0.0, np.mean(agreed)) / whole.var())
        assert len(errors) == SELECTIONS
        wider = np.sqrt(400 / 399) * student.ppf(0.975, 399) / norm.ppf(0.975)
        centre = pooled[name][1:].mean()
        pooled[name][1:] = centre + wider * (pooled[name][1:] - centre)
        pooled[name][1:] += [errors[b % SELECTIONS] for b in range(300)]
    for estimate in comparison.areas:
        whole, *resampled = pooled[estimate.strategy]
        assert estimate.area == pytest.approx(whole)
        assert estimate.per_seed == pytest.approx([areas[0] for areas in expected[estimate.strategy]])
        assert estimate.low == pytest.approx(2 * whole - np.quantile(resampled, 0.975))
        assert estimate.high == pytest.approx(2 * whole - np.quantile(resampled, 0.025))
    errors_of, statistics = {}, {}
    for difference in comparison.differences:
        whole, *resampled = pooled[difference.strategy_a] - pooled[difference.strategy_b]
        errors = np.abs(np.array(resampled) - whole)
        half = sorted(errors)[
            -15
        ]  # fifteen of 300 are beyond: (14 + 1) / 301 is below 5 %, (15 + 1) / 301 is not
        assert difference.difference == pytest.approx(whole)
        assert (difference.low, difference.high) == pytest.approx((whole - half, whole + half))
        assert difference.p_unadjusted == pytest.approx((sum(errors >= abs(whole)) + 1) / 301)
        assert difference.ahead == pytest.approx(np.mean(2 * whole - np.array(resampled) > 0.005))
        scale = np.sqrt(np.mean(errors**2))
        pair = difference.strategy_a, difference.strategy_b
        errors_of[pair], statistics[pair] = errors / scale, abs(whole) / scale
    worst = 0.0
    left = sorted(statistics, key=lambda pair: -statistics[pair])
    while left:
        widest = np.max([errors_of[pair] for pair in left], axis=0)
        worst = max(worst, (sum(widest >= statistics[left[0]]) + 1) / 301)
        (difference,) = [d for d in comparison.differences if (d.strategy_a, d.strategy_b) == left[0]]
        assert difference.p_value == pytest.approx(worst)
        left.pop(0)


def test_the_best_comes_first_and_the_numbers_are_reported(runs: Path) -> None:
    comparison = compare(runs)
    areas = [estimate.area for estimate in comparison.areas]
    assert areas == sorted(areas, reverse=True)
    best = comparison.areas[0]
    assert best.k == 8
    assert best.seeds == (0, 1)
    assert best.area == pytest.approx(np.mean(best.per_seed))
    assert best.low < best.area < best.high
    assert best.optimistic >= best.area  # choosing on the report split flatters
    assert (best.trainable_parameters, best.train_seconds) == (52_000, 24.0)
    lora = next(estimate for estimate in comparison.areas if estimate.strategy == "LoRA")
    points = labelled_points(load_runs(runs)).query("label == 'LoRA'")
    naive = [area(rows["clean"], rows["robust"]) for _, rows in points.groupby("seed")]
    assert lora.optimistic == pytest.approx(np.mean(naive))
    best_clean = [rows.loc[rows["clean_select"].idxmax(), "clean"] for _, rows in points.groupby("seed")]
    assert lora.best_clean == pytest.approx(np.mean(best_clean))
    frame = comparison.to_frame()
    assert [*frame["strategy"]] == [estimate.strategy for estimate in comparison.areas]
    assert {"task", "attack", "epsilon", "area", "low", "high", "optimistic", "k"} <= {*frame.columns}


def test_the_verdict_names_the_ties_the_cheapest_and_what_the_interval_covers(runs: Path) -> None:
    (condition,) = compare(runs).conditions
    assert condition.tied == ("Compacter", "LoRA")
    assert condition.verdict.startswith("Compacter has the largest area, 0.567 (95% interval 0.52")
    assert "8 points per run, 2 training seeds" in condition.verdict
    assert "LoRA cannot be told apart from it" in condition.verdict
    assert "the cheapest of these is Compacter, with 52,000 trainable parameters" in condition.verdict
    assert condition.verdict.endswith("not the luck of training (fewer than five seeds).")
    (recommendation,) = recommend(runs)
    assert recommendation.strategy == "Compacter"
    assert str(recommendation).startswith("Compacter. ")
    assert recommendation.certainty == "tie"
    assert recommendation.runners_up == ("LoRA",)
    assert recommendation.confidence_set == ("Compacter", "LoRA")
    best = condition.best
    assert (recommendation.area, recommendation.low, recommendation.high) == (best.area, best.low, best.high)
    (need,) = recommendation.needed
    assert (need.strategy_a, need.strategy_b, need.effect) == ("Compacter", "LoRA", condition.margin)
    assert need.examples is not None
    assert need.examples > condition.examples
    assert any("report examples, instead of 400" in change for change in recommendation.would_change)
    assert any("Five or more training seeds" in change for change in recommendation.would_change)


def test_a_tie_goes_to_the_cheapest(tmp_path: Path) -> None:
    cheap = Strategy("Cheap", "Cheap()", LORA.gain - 0.005, 10)
    write_runs(tmp_path, [LORA, cheap, FULL], (0,))
    (condition,) = compare(tmp_path).conditions
    assert condition.tied[0] == "LoRA"
    assert condition.recommended.strategy == "Cheap"
    assert "the cheapest of these is Cheap, with 10 trainable parameters" in condition.verdict
    assert any("would tell Cheap from LoRA" in change for change in condition.recommendation.would_change)


def test_a_difference_without_practical_meaning_is_a_tie(runs: Path) -> None:
    (condition,) = compare(runs, margin=0.1).conditions
    assert condition.tied == ("Compacter", "LoRA", "BitFit")
    assert condition.indistinguishable == ("LoRA",)
    assert condition.recommended.strategy == "BitFit"
    assert "BitFit is less than 0.1 behind" in condition.verdict


def test_the_winner_is_named_alone_when_it_is_alone(tmp_path: Path) -> None:
    write_runs(tmp_path, [LORA, FULL], (0,))
    (condition,) = compare(tmp_path).conditions
    assert condition.tied == ("LoRA",)
    assert "every other strategy is told apart from it" in condition.verdict


def test_one_run_is_enough(tmp_path: Path) -> None:
    write_run(tmp_path, LORA, points=1)
    comparison = compare(load_runs(tmp_path)[0])
    assert len(comparison.areas) == 1
    assert comparison.differences == ()
    assert "1 point per run, 1 training seed" in comparison.verdict
    assert "no other strategy" in comparison.verdict


def test_five_seeds_are_resampled_too(tmp_path: Path) -> None:
    write_runs(tmp_path, [LORA, FULL], range(5), points=4, examples=100)
    (condition,) = compare(tmp_path, resamples=300).conditions
    assert condition.seeds_resampled
    assert condition.verdict.endswith("the choice of checkpoints and the luck of training.")


def test_more_points_and_runs_do_not_pay(tmp_path: Path) -> None:
    """Of a longer run, and of more runs, as much is used as of the others."""
    write_run(tmp_path / "few", LORA, 0, points=8)
    many = Strategy("Many", "Many()", LORA.gain, 1)
    write_run(tmp_path / "many", many, 0, points=24)
    write_run(tmp_path / "more", many, 0, points=17, lr=0.1)
    (condition,) = compare(tmp_path).conditions
    assert (condition.k, condition.runs_per_seed) == (8, 1)
    assert condition.notes[:-1] == (
        "Runs have 8 (few) to 24 points; 8 evenly spaced ones of each are used.",
        "Strategies have 1 to 2 runs per seed; areas are averages over choices of 1.",
    )
    runs = load_runs(tmp_path)
    thinned = [
        run.points[run.points["step"].isin(steps)]
        for run, steps in zip(
            runs[1:], [range(60, 481, 60), [40, 80, 120, 160, 200, 240, 280, 340]], strict=True
        )
    ]
    assert [len(rows) for rows in thinned] == [8, 8]
    alone = [
        compare(dataclasses.replace(run, points=rows)).areas[0]
        for run, rows in zip(runs[1:], thinned, strict=True)
    ]
    together = next(estimate for estimate in condition.areas if estimate.strategy == "Many")
    assert together.area == pytest.approx(np.mean([estimate.area for estimate in alone]))
    assert together.optimistic == pytest.approx(np.mean([estimate.optimistic for estimate in alone]))


def test_choices_of_many_runs_are_bounded() -> None:
    runs = np.repeat(np.arange(20), 3)
    subsets = spaced_subsets(runs, 2, 10, seed=0)
    assert len(subsets) == 64
    assert all(
        np.array_equal(np.bincount(runs[subset], minlength=20)[np.unique(runs[subset])], [2] * 10)
        for subset in subsets
    )
    assert len(spaced_subsets(runs, 3, 20, seed=0)) == 1
    assert np.array_equal(spaced_subsets(runs, 3, 20, seed=0)[0], np.arange(60))


def test_other_strategies_do_not_change_the_numbers_of_one(runs: Path, tmp_path: Path) -> None:
    both = {estimate.strategy: estimate for estimate in compare(runs).areas}
    alone = compare([run for run in load_runs(runs) if run.config["strategy"] == "LoRA"]).areas[0]
    assert alone == dataclasses.replace(both["LoRA"], p_best=1.0)  # alone, it is the best for sure
    assert compare(runs, seed=1).areas[0].low != both["Compacter"].low


def test_conditions_are_kept_apart(tmp_path: Path) -> None:
    attacks = (
        (ATTACK, "Linf", 4 / 255, 1.0),
        ("PGD(Linf(8/255))", "Linf", 8 / 255, 0.5),
        ("PGD(L2(0.5))", "L2", 0.5, 0.8),
    )
    write_runs(tmp_path / "a", [LORA, FULL], (0,), attacks=attacks)
    write_runs(tmp_path / "b", [LORA], (0,), task="other", examples=300)
    comparison = compare(tmp_path)
    named = [(c.task, c.threat, round(c.epsilon * 255, 3)) for c in comparison.conditions]
    assert named == [
        ("digits", "L2", 127.5),
        ("digits", "Linf", 4),
        ("digits", "Linf", 8),
        ("other", "Linf", 4),
    ]
    assert len(comparison.areas) == 7
    assert len(comparison.differences) == 3
    assert comparison.conditions[1].best.area > comparison.conditions[2].best.area
    assert comparison.verdict.splitlines()[1].startswith("digits, L∞ ≤ 4/255: LoRA has")


def test_other_report_examples_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", LORA)
    write_run(tmp_path / "b", FULL, examples=300)
    with pytest.raises(
        ValueError, match=r"different report examples: .*a \(report-400\), .*b \(report-300\)"
    ):
        compare(tmp_path)


def test_configurations_and_backbones_of_one_name_are_told_apart(tmp_path: Path) -> None:
    wide = Strategy("LoRA", "LoRA(rank=16)", 0.0, 620_000)
    for name, strategy, options in [
        ("a", LORA, {"lr": 1}),
        ("b", LORA, {"lr": 2}),
        ("c", wide, {}),
        ("d", FULL, {}),
    ]:
        write_run(tmp_path / "one" / name, strategy, points=3, **options)
    labels = {estimate.strategy: estimate for estimate in compare(tmp_path / "one").areas}
    assert {*labels} == {"LoRA(rank=8)", "LoRA(rank=16)", "FullFineTune"}
    assert (
        labels["LoRA(rank=8)"].train_seconds == 18.0
    )  # two learning rates are one strategy, at the cost of both
    for backbone in ("vit", "resnet"):
        write_run(tmp_path / "two" / backbone, LORA, points=2, backbone=backbone)
    assert {e.strategy for e in compare(tmp_path / "two").areas} == {"LoRA on vit", "LoRA on resnet"}


def test_what_a_reader_should_know_is_noted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", LORA, 0)
    write_run(tmp_path / "b", LORA, 1, finish=False)
    write_run(tmp_path / "c", FULL, 0)
    (condition,) = compare(tmp_path, resamples=100).conditions
    between, few_seeds, unfinished = condition.notes
    assert between == "Strategies have between 1 and 2 training seeds."
    assert few_seeds.startswith("With fewer than 5 training seeds, tests are about these trained models")
    assert unfinished == "1 of 3 runs are not finished: b."
    noted = compare([tmp_path / "a", tmp_path / "c"], resamples=100, level=0.995).conditions[0].notes
    assert "100 resamples cannot tell anything apart at the level 0.995; raise resamples." in noted
    write_run(tmp_path / "small", LORA, points=2, examples=50, examples_select=30)
    assert compare(tmp_path / "small").conditions[0].notes == (
        "There are 50 report examples; intervals were not verified below 60.",
        "There are 30 select examples; intervals were not verified below 60.",
    )


def test_wrong_arguments_are_named(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="level must lie"):
        compare(runs, level=95)
    with pytest.raises(ValueError, match="resamples must be at least 100"):
        compare(runs, resamples=10)
    with pytest.raises(ValueError, match="margin"):
        compare(runs, margin=-1)
    with pytest.raises(ValueError, match="reference"):
        compare(runs, reference=(1.0, 0.0))
    with pytest.raises(FileNotFoundError):
        compare(tmp_path)
    write_run(tmp_path / "empty", LORA, points=0)
    with pytest.raises(ValueError, match="none of the 1 runs has a point yet"):
        compare(tmp_path)


def test_a_reference_moves_the_axes(runs: Path) -> None:
    plain, moved = compare(runs), compare(runs, reference=(0.1, 0.0))
    assert moved.conditions[0].reference == (0.1, 0.0)
    assert moved.areas[0].area < plain.areas[0].area
    nothing = compare(runs, reference=(0.99, 0.0)).areas[0]
    assert (nothing.area, nothing.low, nothing.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(4 / 255, "4/255"), (0.5 / 255, "0.5/255"), (0.5, "0.5"), (0.2, "0.2"), (3.0, "3"), (0.0312, "0.0312")],
)
def test_epsilons_read_as_people_write_them(epsilon: float, text: str) -> None:
    assert epsilon_text(epsilon) == text
    assert threat_text("Linf", epsilon) == f"L∞ ≤ {text}"


def test_attacks_read_as_people_write_them() -> None:
    attack = "PGD(Linf(0.01568627450980392), steps=20, step_size=0.5)"
    assert attack_text(attack) == "PGD(Linf(4/255), steps=20, step_size=0.5)"


def test_conditions_are_named_by_what_tells_them_apart() -> None:
    one, two = ("digits", "Linf", 4 / 255, "PGD(steps=20)"), ("digits", "Linf", 4 / 255, "AutoAttack()")
    other = ("digits", "L2", 0.5, "PGD(steps=20)")
    assert condition_names([one, other]) == ["digits, L∞ ≤ 4/255", "digits, L2 ≤ 0.5"]
    assert condition_names([one, two]) == [
        "digits, L∞ ≤ 4/255, PGD(steps=20)",
        "digits, L∞ ≤ 4/255, AutoAttack()",
    ]


def test_pairing_narrows_the_interval_of_a_difference(runs: Path) -> None:
    comparison = compare(runs)
    width = {e.strategy: e.high - e.low for e in comparison.areas}
    for d in comparison.differences:
        unpaired = np.hypot(width[d.strategy_a], width[d.strategy_b])
        assert d.high - d.low < 0.8 * unpaired


def test_areas_that_cannot_be_told_apart_are_said_to_be(tmp_path: Path) -> None:
    same = [Strategy(name, f"{name}()", 0.0, size) for name, size in (("A", 30), ("B", 10), ("C", 20))]
    write_runs(tmp_path, same, (0,), examples=100)
    (recommendation,) = recommend(tmp_path)
    assert recommendation.certainty == "cannot tell"
    assert recommendation.strategy == "B"
    assert str(recommendation).startswith("Cannot tell; cheapest: B. ")
    assert "these data do not tell which strategy is best" in recommendation.reason
    assert len(recommendation.needed) == 2
    (recommendation,) = recommend(tmp_path, margin=0.5)
    assert recommendation.certainty == "equivalent"
    assert "all differ by less than 0.5 for practical purposes" in recommendation.reason


def test_practical_equivalence_is_decided_by_the_whole_interval(runs: Path) -> None:
    (difference, *_) = compare(runs).differences
    for low, high, expected in [
        (0.02, 0.05, "ahead"),
        (-0.05, -0.02, "behind"),
        (-0.01, 0.01, "equivalent"),
        (-0.01, 0.02, "undecided"),
        (0.005, 0.02, "undecided"),
    ]:
        moved = dataclasses.replace(difference, low=low, high=high, margin=0.01)
        assert moved.practically == expected
    assert difference.ahead + difference.equivalent + difference.behind == pytest.approx(1)
    assert difference.error_examples == pytest.approx((difference.high - difference.low) / 3.92, rel=0.1)
    assert difference.error_seeds is not None
    assert difference.error_seeds > 0


def test_one_example_cannot_be_resampled(tmp_path: Path) -> None:
    write_run(tmp_path, LORA, points=2, examples=1)
    with pytest.raises(ValueError, match="has 1 report example; nothing can be resampled below two"):
        compare(tmp_path)


def test_a_budget_leaves_out_what_does_not_fit(runs: Path) -> None:
    (everything,), (small,) = recommend(runs), recommend(runs, max_trainable=40_000)
    assert everything.strategy == "Compacter"
    assert (small.strategy, small.certainty) == ("BitFit", "alone")
    (fast,) = recommend(runs, max_seconds=24.0)
    assert fast == everything
    with pytest.raises(ValueError, match=r"max_trainable=10 .* smallest trains 31,000 parameters"):
        recommend(runs, max_trainable=10)
    with pytest.raises(ValueError, match=r"max_seconds=1: .* fastest takes 24 s"):
        recommend(runs, max_seconds=1)


def test_one_task_can_be_asked_for(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", [LORA, FULL], (0,), points=3, examples=60)
    write_run(tmp_path / "b", LORA, points=3, examples=80, task="flowers")
    assert [r.task for r in recommend(tmp_path)] == ["digits", "flowers"]
    assert [r.task for r in recommend(tmp_path, task="flowers")] == ["flowers"]
    with pytest.raises(ValueError, match=r"no runs of task 'flower'; did you mean 'flowers'\? Tasks: digits"):
        recommend(tmp_path, task="flower")


def test_floors_make_areas_partial(runs: Path) -> None:
    plain, floored = compare(runs).conditions[0], compare(runs, min_clean=0.75, min_robust=0.2).conditions[0]
    moved = compare(runs, reference=(0.75, 0.2)).conditions[0]
    assert (floored.reference, floored.min_clean, floored.min_robust) == ((0.0, 0.0), 0.75, 0.2)
    assert [e.area for e in floored.areas] == [e.area for e in moved.areas]
    assert floored.best.area != plain.best.area
    assert "the largest area above clean 0.75 above robust 0.2," in floored.verdict
    with pytest.raises(ValueError, match="min_clean must be"):
        compare(runs, min_clean=80)


def test_both_kinds_of_interval_agree_where_resamples_are_nearly_normal(runs: Path) -> None:
    basic, bca = compare(runs).conditions[0], compare(runs, interval="bca").conditions[0]
    assert bca.interval == "bca"
    for one, other in zip(basic.areas, bca.areas, strict=True):
        assert one.area == other.area
        width = one.high - one.low
        assert other.low == pytest.approx(one.low, abs=0.15 * width)
        assert other.high == pytest.approx(one.high, abs=0.15 * width)
    for d in bca.differences:
        assert (d.p_unadjusted < 0.05) == (d.low > 0 or d.high < 0)
    with pytest.raises(ValueError, match="interval must be 'basic' or 'bca'"):
        compare(runs, interval="percentile")  # type: ignore[arg-type]


def test_groups_are_resampled_instead_of_examples(runs: Path) -> None:
    alone = compare(runs).conditions[0]
    singles = compare(runs, groups={"digits": (np.arange(400), np.arange(200))}).conditions[0]
    assert (alone.groups, singles.groups) == (None, 400)
    assert singles.areas == alone.areas  # groups of one are examples
    run = load_runs(runs)[0]
    hard = np.mean([run.bits(row)["report/robust"] for _, row in run.points.iterrows()], axis=0)
    report = np.argsort(np.argsort(hard, kind="stable"), kind="stable") // 20  # 20 of like difficulty each
    grouped = compare(runs, groups={"digits": (report, np.arange(200) // 10)}).conditions[0]
    assert grouped.groups == 20
    assert [e.area for e in grouped.areas] == [e.area for e in alone.areas]
    for one, other in zip(alone.areas, grouped.areas, strict=True):
        assert other.high - other.low > 1.5 * (one.high - one.low)
    assert "the sampling of test examples in 20 groups and the choice of checkpoints" in grouped.verdict
    assert "There are 20 groups of report examples; below 100, intervals are too narrow." in grouped.notes
    assert not any("groups" in note for note in singles.notes)
    with pytest.raises(ValueError, match=r"groups names the tasks \['digitz'\]"):
        compare(runs, groups={"digitz": (report, report)})
    with pytest.raises(ValueError, match=r"the select split has 200 examples, .* got \(400,\)"):
        compare(runs, groups={"digits": (report, report)})
    with pytest.raises(ValueError, match="the report split has one group"):
        compare(runs, groups={"digits": (np.zeros(400), np.arange(200))})


def test_different_numbers_of_select_examples_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", LORA)
    write_run(tmp_path / "b", FULL, examples_select=100)
    with pytest.raises(ValueError, match=r"chose on different numbers of examples: \[100, 200\]"):
        compare(tmp_path)


def test_every_level_is_named_as_it_is(runs: Path) -> None:
    """99.5 % is not 100 %."""
    (condition,) = compare(runs, level=0.995).conditions
    assert "(99.5% interval" in condition.verdict


def test_a_budget_judges_those_that_it_allows(tmp_path: Path) -> None:
    """Beside a strategy that is too dear, none of the others could be the best; without it, one must be."""
    write_runs(tmp_path, [LORA, Strategy("A", "A()", -0.1, 20), Strategy("B", "B()", -0.2, 10)], (0,))
    (dear,) = recommend(tmp_path)
    assert (dear.confidence_set, dear.certainty) == (("LoRA",), "clear")
    (condition,) = compare(tmp_path).conditions
    within = condition.within(max_trainable=20)
    assert within.recommendation.confidence_set == within.recommendation.tied
    assert within.best.p_best == 1
    assert within.recommended.strategy in within.confidence_set
    (advice,) = recommend(tmp_path, max_trainable=20)
    assert advice == within.recommendation


def test_nothing_is_recommended_where_nothing_is_above_the_floors(runs: Path) -> None:
    (condition,) = compare(runs, min_clean=0.99).conditions
    assert {each.area for each in condition.areas} == {0.0}
    assert condition.certainty == "cannot tell"
    assert "no chosen checkpoint is above (0.99, 0) in both accuracies" in condition.verdict
    assert "have the same area" in condition.verdict


def test_an_interval_holds_its_estimate(tmp_path: Path) -> None:
    """Also where a strict floor and few examples make the area negative or the resamples biased."""
    write_runs(tmp_path, STRATEGIES, (0,), points=12, examples=60, examples_select=60)
    for floor in (0.0, 0.7, 0.85, 0.9):
        for interval in ("basic", "bca"):
            for each in compare(tmp_path, min_clean=floor, interval=interval, resamples=100).areas:  # type: ignore[arg-type]
                assert each.low <= each.area <= each.high


def test_fewer_examples_than_there_are_are_not_asked_for(tmp_path: Path) -> None:
    """Where a difference as wide as the margin would have been found, it is said that there is none."""
    same = [Strategy(name, f"{name}()", 0.0, size) for name, size in (("A", 30), ("B", 10))]
    write_runs(tmp_path, same, (0,), examples=800)
    (advice,) = recommend(tmp_path, margin=0.3)
    (need,) = advice.needed
    assert need.examples is not None
    assert need.examples < 800
    assert advice.would_change[0].startswith(f"A true difference of 0.300 between {need.strategy_a}")
    assert not any("instead of 800" in change for change in advice.would_change)

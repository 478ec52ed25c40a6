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
from paretune.runs.naming import attack_text, condition_names, epsilon_text, threat_text
from paretune.runs.store import load_points, load_runs
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
    assert condition.indistinguishable == ("LoRA",)
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
    assert unfinished == "1 of 3 runs is not finished: b."
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
    assert moved.conditions[0].settings.reference == (0.1, 0.0)
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
    attack = "PGD(Linf(4/255), steps=20, step_size=0.5)"
    assert attack_text(attack) == "PGD(Linf(4/255), steps=20, step_size=0.5)"


def test_conditions_are_named_by_what_tells_them_apart() -> None:
    one, two = ("digits", "Linf", 4 / 255, "PGD(steps=20)"), ("digits", "Linf", 4 / 255, "AutoAttack()")
    other = ("digits", "L2", 0.5, "PGD(steps=20)")
    assert condition_names([one, other]) == ["digits, L∞ ≤ 4/255", "digits, L2 ≤ 0.5"]
    assert condition_names([one, two]) == [
        "digits, L∞ ≤ 4/255, PGD(steps=20)",
        "digits, L∞ ≤ 4/255, AutoAttack()",
    ]


def test_points_are_compared_as_their_runs_are(runs: Path) -> None:
    assert compare(load_points(runs)) == compare(runs)


def test_only_the_points_that_are_given_count(runs: Path) -> None:
    points = load_points(runs)
    some = points[(points["seed"] < 2) & points["strategy"].isin(["LoRA", "BitFit"])]
    (condition,) = compare(some).conditions
    assert {(each.strategy, each.seeds) for each in condition.areas} == {("LoRA", (0, 1)), ("BitFit", (0, 1))}
    assert condition.areas == compare([run for run in load_runs(runs) if run.key in {*some["run"]}]).areas
    first = points.groupby("run").head(2)
    assert compare(first).conditions[0].k == 2


def test_points_that_no_run_has_are_refused(runs: Path) -> None:
    points = load_points(runs)
    with pytest.raises(ValueError, match=r"points lack path; .* paretune\.analyze"):
        compare(points.drop(columns="path"))
    with pytest.raises(ValueError, match=r"which has \d+ of these"):
        compare(points.assign(step=points["step"] + 1))

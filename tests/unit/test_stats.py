"""Areas, intervals and verdicts, against plain loops and simulations with a known truth."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from paretune import _bootstrap
from paretune._bootstrap import basic_interval, holm, p_value, pool_seeds, resample_counts, resampled_means
from paretune.pareto import area, ordered_area
from paretune.results import load_runs
from paretune.stats import _front, _subsets, compare, labelled_points, recommend
from paretune.verdict import attack_text, condition_names, epsilon_text, threat_text
from tests.synthetic import ATTACK, STRATEGIES, Strategy, right, write_run, write_runs

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


def test_everything_agrees_with_a_plain_loop(runs: Path) -> None:
    """Choice on select, measurement on report, paired resamples, averaged seeds: written out without arrays."""
    comparison = compare(runs, resamples=200, seed=4)
    counts = np.concatenate([*resample_counts(400, 200, 4)])
    assert counts.shape == (200, 400)
    expected: dict[str, list[list[float]]] = {}
    for run in load_runs(runs):
        rows = [row for _, row in run.points.iterrows()]
        chosen = [
            row
            for row in rows
            if not any(
                other["clean_select"] >= row["clean_select"]
                and other["robust_select"] >= row["robust_select"]
                and (other["clean_select"], other["robust_select"])
                != (row["clean_select"], row["robust_select"])
                for other in rows
            )
        ]
        chosen.sort(key=lambda row: -row["clean_select"])
        bits = [run.bits(row) for row in chosen]
        areas = [signed_area([(row["clean"], row["robust"]) for row in chosen])]
        for weights in counts.astype(float):
            means = [
                (
                    sum(w for w, hit in zip(weights, b["report/clean"], strict=True) if hit) / 400,
                    sum(w for w, hit in zip(weights, b["report/robust"], strict=True) if hit) / 400,
                )
                for b in bits
            ]
            areas.append(signed_area(means))
        expected.setdefault(run.config["strategy"], []).append(areas)
    pooled = {name: np.mean(areas, axis=0) for name, areas in expected.items()}
    assert [*pooled] == ["LoRA", "Compacter", "BitFit", "FullFineTune"]
    for estimate in comparison.areas:
        whole, *resampled = pooled[estimate.strategy]
        assert estimate.area == pytest.approx(whole)
        assert estimate.per_seed == pytest.approx([areas[0] for areas in expected[estimate.strategy]])
        assert estimate.low == pytest.approx(2 * whole - np.quantile(resampled, 0.975))
        assert estimate.high == pytest.approx(2 * whole - np.quantile(resampled, 0.025))
    p_values = {}
    for difference in comparison.differences:
        whole, *resampled = pooled[difference.strategy_a] - pooled[difference.strategy_b]
        assert difference.difference == pytest.approx(whole)
        assert difference.low == pytest.approx(2 * whole - np.quantile(resampled, 0.975))
        tail = min(sum(2 * whole - r <= 0 for r in resampled), sum(2 * whole - r >= 0 for r in resampled))
        p_values[difference.strategy_a, difference.strategy_b] = min(1, 2 * (tail + 1) / 201)
    worst = 0.0
    for place, pair in enumerate(sorted(p_values, key=lambda pair: p_values[pair])):
        worst = max(worst, min(1.0, p_values[pair] * (6 - place)))
        (difference,) = [d for d in comparison.differences if (d.strategy_a, d.strategy_b) == pair]
        assert difference.p_value == pytest.approx(worst)


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
    assert condition.verdict.endswith("test examples only (fewer than five training seeds).")
    (recommendation,) = recommend(runs)
    assert recommendation.strategy == "Compacter"
    assert str(recommendation).startswith("Compacter. ")
    assert any("margin below 0.00" in change for change in recommendation.would_change)
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
    assert condition.verdict.endswith("Intervals cover the sampling of test examples and of training seeds.")


def test_more_points_and_runs_do_not_pay(tmp_path: Path) -> None:
    """Of a longer run, and of more runs, as much is used as of the others."""
    write_run(tmp_path / "few", LORA, 0, points=8)
    many = Strategy("Many", "Many()", LORA.gain, 1)
    write_run(tmp_path / "many", many, 0, points=24)
    write_run(tmp_path / "more", many, 0, points=17, lr=0.1)
    (condition,) = compare(tmp_path).conditions
    assert (condition.k, condition.runs_per_seed) == (8, 1)
    assert condition.notes == (
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
    subsets = _subsets(runs, 2, 10, seed=0)
    assert len(subsets) == 64
    assert all(
        np.array_equal(np.bincount(runs[subset], minlength=20)[np.unique(runs[subset])], [2] * 10)
        for subset in subsets
    )
    assert len(_subsets(runs, 3, 20, seed=0)) == 1
    assert np.array_equal(_subsets(runs, 3, 20, seed=0)[0], np.arange(60))


def test_other_strategies_do_not_change_the_numbers_of_one(runs: Path, tmp_path: Path) -> None:
    both = {estimate.strategy: estimate for estimate in compare(runs).areas}
    alone = compare([run for run in load_runs(runs) if run.config["strategy"] == "LoRA"]).areas[0]
    assert alone == both["LoRA"]
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
    assert condition.notes == (
        "Strategies have between 1 and 2 training seeds.",
        "1 of 3 runs are not finished: b.",
    )
    many = [Strategy(f"S{n}", f"S{n}()", 0.01 * n, n) for n in range(4)]
    write_runs(tmp_path / "many", many, (0,), points=2, examples=60)
    assert (
        "100 resamples cannot separate 6 pairs"
        in compare(tmp_path / "many", resamples=100).conditions[0].notes[0]
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


def test_counts_are_multinomial_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.concatenate([*resample_counts(50, 4000, 0)])
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.08)
    assert counts.var(axis=0).mean() == pytest.approx(1 - 1 / 50, abs=0.02)
    monkeypatch.setattr(_bootstrap, "_BLOCK", 50 * 7)
    blocks = [*resample_counts(50, 4000, 0)]
    assert max(len(block) for block in blocks) == 7
    assert np.array_equal(np.concatenate(blocks), counts)
    bits = np.random.default_rng(0).random((3, 50)) < 0.5
    means = resampled_means(counts[:5], bits)
    assert means == pytest.approx(
        np.stack([[np.repeat(b, c.astype(int)).mean() for b in bits] for c in counts[:5]])
    )


def test_the_interval_turns_the_errors_round() -> None:
    resampled = np.linspace(0.5, 0.7, 1001)  # biased upwards by 0.1 around an estimate of 0.5
    assert basic_interval(0.5, resampled, 0.9) == pytest.approx((0.31, 0.49))


def test_the_p_value_goes_with_the_interval() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 0.3, 31):
        resampled = shift + 0.1 * rng.standard_normal(1999)
        low, _ = basic_interval(shift, resampled, 0.95)
        assert (p_value(shift, resampled) < 0.05) == (low > 0)
    assert p_value(0.0, np.zeros(1999)) == 1
    assert p_value(1.0, np.ones(1999)) == pytest.approx(2 / 2000)


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_resampled_seeds_have_the_variance_of_their_mean() -> None:
    areas = np.repeat(np.array([[0.1], [0.2], [0.4], [0.5], [0.9]]), 20_000, axis=1)
    drawn = pool_seeds(areas, resample=True, seed=0, name="a")
    assert drawn.mean() == pytest.approx(0.42, abs=0.005)
    assert drawn.std() == pytest.approx(np.std([0.1, 0.2, 0.4, 0.5, 0.9], ddof=1) / np.sqrt(5), rel=0.02)
    assert not np.array_equal(drawn, pool_seeds(areas, resample=True, seed=0, name="b"))


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


def simulate(points: int, examples: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Clean and robust bits of checkpoints along a smooth frontier, (points, examples)."""
    rng = np.random.default_rng(seed)
    difficulty = rng.standard_normal(examples)
    progress = np.linspace(0, 1, points)
    clean = np.stack([right(a, difficulty, rng) for a in 0.93 - 0.22 * progress**2])
    robust = np.stack([right(a, difficulty, rng) for a in 0.06 + 0.5 * np.sqrt(progress)])
    return clean, robust & clean


@pytest.mark.slow
@pytest.mark.parametrize(("points", "examples"), [(20, 500), (100, 500)])
def test_intervals_cover_what_they_claim_and_naive_ones_do_not(points: int, examples: int) -> None:
    """The value of the chosen frontier lies in 95 % of the intervals; the naive percentile interval misses the area."""
    clean, robust = (bits.mean(axis=1) for bits in simulate(points, 200_000, 10_000))
    covered, naive_covered, repetitions = 0, 0, 200
    for seed in range(repetitions):
        report, select = simulate(points, examples, 2 * seed), simulate(points, examples, 2 * seed + 1)
        counts = np.concatenate([*resample_counts(examples, 400, seed)])
        front = _front(np.column_stack([bits.mean(axis=1) for bits in select]), (0.0, 0.0))
        means = [resampled_means(counts, bits) for bits in report]
        estimate = float(ordered_area(report[0][front].mean(axis=1), report[1][front].mean(axis=1)))
        low, high = basic_interval(estimate, ordered_area(means[0][:, front], means[1][:, front]), 0.95)
        covered += low <= ordered_area(clean[front], robust[front]) <= high
        naive = [area(*np.minimum(1.0, pair)) for pair in zip(*means, strict=True)]
        naive_low, naive_high = np.quantile(naive, [0.025, 0.975])
        naive_covered += naive_low <= area(clean, robust) <= naive_high
    assert 0.91 <= covered / repetitions <= 0.99  # three standard errors around 0.95
    if points == 100:
        assert naive_covered / repetitions < 0.8

"""Volumes of runs: what chooses them, what they are measured on, how sure they are, and when they decide."""

import itertools
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import paretune as pt
from paretune.frontiers.bootstrap import Units, basic_interval, expanded, resample_counts
from paretune.frontiers.cells import HALVINGS, SELECTIONS, Samples, choice_errors, chosen_front
from paretune.frontiers.solids import Course, Places, Share, Solid, choose_and_measure, load_course
from paretune.frontiers.verdict import Condition
from paretune.frontiers.volumes import ordered_volume
from paretune.runs.store import Run, load_runs
from tests.synthetic import STRATEGIES, There, corruptions, write_run, write_runs

Floats = NDArray[np.float64]
THERE = {
    **corruptions(("fog", "snow"), (1, 3)),
    "half": There(0.8, "Grey()", examples=150),
    "art": There(0.7, None, 90),
}
CORNER = (0.1, 0.05, 0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    return write_runs(path, STRATEGIES[:3], elsewhere=THERE, points=6, examples=300, examples_select=150)


def only(path: Path | list[Path], **options: Any) -> Condition:
    (condition,) = pt.compare(path, **{"resamples": 200, **options}).conditions
    return condition


def signed_volume(points: list[tuple[float, float, float]], corner: tuple[float, float, float]) -> float:
    """In plain loops: slabs between successive shifted accuracies, each with the staircase of those above."""
    a0, r0, s0 = corner
    levels = sorted({max(s, s0) for *_, s in points} | {s0})
    total = 0.0
    for below, above in itertools.pairwise(levels):
        before = r0
        for a, r, s in points:
            if s >= above:
                total += (above - below) * (a - a0) * (r - before)
                before = r
    return total / ((1 - a0) * (1 - r0) * (1 - s0))


def bits_of(run: Run) -> list[dict[str, NDArray[np.bool_]]]:
    return [run.bits(row) for _, row in run.points.sort_values("step").iterrows()]


def shifted_of(bits: Mapping[str, NDArray[np.bool_]], weights: Floats, apart: Floats) -> float:
    """All images elsewhere, each as often as what it is made of was drawn; parts count as they do on all images."""
    right, drawn, made = 0.0, 0.0, 0
    for name, there in THERE.items():
        vector = bits[f"elsewhere/{name}/clean"]
        if there.call:
            right += float(vector @ weights[: len(vector)])
            drawn += float(weights[: len(vector)].sum())
            made += len(vector)
    of_art = float(bits["elsewhere/art/clean"] @ apart) / apart.sum()
    return (made * right / drawn + 90 * of_art) / (made + 90)


def test_everything_agrees_with_a_plain_loop(runs: Path) -> None:
    """Chosen by clean and robust accuracy on select, measured on report and elsewhere, drawn as they belong together."""
    condition = only(runs, reference=(0.1, 0.05), seed=4)
    volumes = condition.volumes
    assert volumes is not None
    assert volumes.corner == CORNER
    counts = np.concatenate([*resample_counts(300, 200, 4)]).astype(float)
    of_art = np.concatenate([*resample_counts(90, 200, (4, zlib.crc32(b"art")))]).astype(float)
    places = Places({"fog 1": 300, "fog 3": 300, "snow 1": 300, "snow 3": 300, "half": 150}, {"art": 90})
    samples = Samples.of(Units.of(300), Units.of(150), 4).with_apart({"art": 90}, 4)
    weights = [(np.ones(300), np.ones(90)), *zip(counts, of_art, strict=True)]
    for estimate in volumes.areas:
        drawn, choices = [], []
        for run in load_runs(runs):
            if run.config["strategy"] != estimate.strategy:
                continue
            bits = bits_of(run)
            select = np.array([[b["select/clean"].mean(), b["select/robust"].mean()] for b in bits])
            front = chosen_front(select, CORNER[:2])
            of_seed = []
            for report, apart in weights:
                points = [
                    (
                        float(bits[i]["report/clean"] @ report / report.sum()),
                        float(bits[i]["report/robust"] @ report / report.sum()),
                        shifted_of(bits[i], report, apart),
                    )
                    for i in front
                ]
                of_seed.append(signed_volume(points, CORNER))
            drawn.append(of_seed)
            of_run = load_course(run.points.assign(run_index=0), [run], places, samples)
            choices.append(Solid.of(of_run, [np.arange(6)], CORNER, samples).chosen)  # tested below
        whole, *resampled = np.mean(drawn, axis=0)
        assert estimate.area == pytest.approx(whole)
        assert estimate.per_seed == pytest.approx([of_seed[0] for of_seed in drawn])
        errors = choice_errors(np.mean(choices, axis=0))[np.arange(200) % SELECTIONS]
        ends = basic_interval(whole, expanded(np.array(resampled), 90, 0.95) + errors, 0.95)
        assert (estimate.low, estimate.high) == pytest.approx(ends)


def course(paired: int = 0, apart: int = 0, seed: int = 0) -> tuple[Course, Samples]:
    """Six points on 60 report images in groups of three, with so many changed copies and images of a domain."""
    rng = np.random.default_rng(seed)
    report = Units.of(60, np.arange(60) // 3)
    samples = Samples.of(report, Units.of(40), seed).with_apart({"art": apart} if apart else {}, seed)

    def draw(low: float, high: float, size: int) -> NDArray[np.bool_]:
        return rng.random((6, size)) < np.linspace(low, high, 6)[:, None]

    shifted = []
    if paired:
        copies = sum(draw(0.8, 0.5, 60).astype(np.float32) for _ in range(paired))
        whole = np.full((1, 60), paired, dtype=np.float32)
        weight = 60 * paired / (60 * paired + apart)
        shifted.append(Share(report.right(copies), report.right(whole)[0], 0, weight))
    if apart:
        units = Units.of(apart)
        right = units.right(draw(0.7, 0.6, apart))
        shifted.append(Share(right, units.sizes, 1, apart / (60 * paired + apart)))
    clean, robust = (
        (Share(report.right(draw(*ends, 60)), report.sizes),) for ends in ((0.9, 0.6), (0.2, 0.6))
    )
    select = {"select/clean": draw(0.9, 0.6, 40), "select/robust": draw(0.2, 0.6, 40)}
    return Course(0, np.zeros(6, dtype=int), select, clean, robust, tuple(shifted)), samples


@pytest.mark.parametrize(("paired", "apart"), [(2, 0), (0, 97), (2, 30)])
def test_the_influence_is_the_derivative_of_the_volume(paired: int, apart: int) -> None:
    points, samples = course(paired, apart)
    solid = Solid.of(points, [np.array([0, 2, 4]), np.array([1, 3, 5])], CORNER, samples)
    influence = solid.influence(samples, CORNER)
    sizes = [20, *([apart] if apart else [])]
    assert len(influence) == sum(sizes)
    step = 1e-5
    places = [0, 7, 19, *([20, 45] if apart else [])]
    for place in places:
        counts = [np.ones((2, size)) for size in sizes]
        number, unit = (0, place) if place < 20 else (1, place - 20)
        counts[number][1] -= step
        counts[number][1, unit] += step * sizes[number]
        below, above = solid.resampled(tuple(counts), samples, CORNER)  # type: ignore[arg-type]
        assert influence[place] == pytest.approx((above - below) / step / sizes[number], rel=1e-3, abs=1e-6)


def test_many_choices_at_once_are_single_choices() -> None:
    rng = np.random.default_rng(0)
    choosing = tuple(rng.integers(0, 6, (2, 40, 9)) / 5)  # few values: ties in one or both
    measuring = tuple(rng.random((3, 3, 9)))
    for corner in ((0.0, 0.0, 0.0), (0.3, 0.1, 0.4)):
        volumes = choose_and_measure(choosing, measuring, corner)
        for column, select in enumerate(np.stack(choosing, axis=-1)):
            front = chosen_front(select, corner[:2])
            expected = [
                ordered_volume(c[front], r[front], s[front], corner)
                for c, r, s in zip(*measuring, strict=True)
            ]
            assert volumes[:, column] == pytest.approx(expected)


def test_the_error_of_the_choice_is_that_of_volumes() -> None:
    points, samples = course(2, 30)
    solid = Solid.of(points, [np.arange(6)], CORNER, samples)
    assert solid.chosen.shape == (1 + 2 * HALVINGS, SELECTIONS)
    spread = choice_errors(solid.chosen).std()
    flat = Solid.of(points, [np.array([3])], CORNER, samples)  # nothing to choose among
    assert 0 <= choice_errors(flat.chosen).std() < 1e-12
    assert spread <= solid.chosen[0].std()


def test_a_changed_copy_is_drawn_with_its_image(tmp_path: Path) -> None:
    """Copies that are right where the image is: the volume of one point resamples as a² r, not as two accuracies."""
    write_run(
        tmp_path / "0", STRATEGIES[0], points=1, examples=300, elsewhere={"copy": There(None, "Grey()")}
    )
    ((bits,),) = map(bits_of, load_runs(tmp_path))
    counts = np.concatenate([*resample_counts(300, 2000, 0)]).astype(float)
    clean, robust = (counts @ bits[f"report/{name}"] / 300 for name in ("clean", "robust"))
    whole = bits["report/clean"].mean() ** 2 * bits["report/robust"].mean()
    expected = basic_interval(whole, expanded(clean**2 * robust, 300, 0.95), 0.95)
    volumes = only(tmp_path, resamples=2000).volumes
    assert volumes is not None
    assert (volumes.best.area, volumes.best.low, volumes.best.high) == pytest.approx((whole, *expected))


def test_what_is_shifted_chooses_nothing(tmp_path: Path) -> None:
    """A checkpoint that clean and robust accuracy leave aside counts for nothing, however good elsewhere."""
    for name, first in (("a", 0.8), ("b", 9.0)):  # the first point is poor in both, and on no front
        keeps = [first] + 7 * [0.8]
        write_run(tmp_path / name, STRATEGIES[0], points=8, elsewhere={"fog 1": There(keeps, "Grey()")})
    before, after = (only(tmp_path / name).volumes for name in "ab")
    assert before is not None
    assert after is not None
    assert (after.best.area, after.best.low) == (before.best.area, before.best.low)
    assert after.best.optimistic > before.best.optimistic  # which does choose on what measures


def test_volumes_stand_beside_areas_which_decide_unless_asked(runs: Path) -> None:
    areas, volumes = only(runs), only(runs, by="volume")
    assert areas.volumes is not None
    assert volumes.volumes is not None
    assert areas.areas == volumes.areas
    assert areas.judged is areas
    assert volumes.judged is volumes.volumes
    assert volumes.volumes.judged is volumes.volumes
    assert areas.volumes.areas == volumes.volumes.areas
    assert [gap.p_value for gap in areas.volumes.differences]
    assert all(0 < volume.area < area.area for area in areas.areas for volume in areas.volumes.areas[:1])
    assert volumes.volumes.sentence.startswith(f"{volumes.volumes.best.strategy} has the largest volume, 0.")
    assert "of 840 shifted ones" not in areas.verdict
    shifted = 4 * 300 + 150 + 90
    assert f"of test examples and of {shifted:,} shifted ones" in volumes.judged.verdict
    (advice,) = pt.recommend(runs, resamples=200)
    assert advice.reason == areas.verdict
    (advice,) = pt.recommend(runs, resamples=200, by="volume", max_trainable=100_000)
    assert advice.strategy in ("Compacter", "BitFit")
    assert "the largest volume" in advice.reason
    text = repr(pt.compare(runs, resamples=200, by="volume"))
    assert "volumes below (clean, robust, shifted), from (0, 0, 0)" in text
    assert volumes.judged.verdict in text


def test_a_table_has_volumes_where_there_are_any(runs: Path, tmp_path: Path) -> None:
    comparison = pt.compare(runs, resamples=200)
    frame = comparison.to_frame()
    volumes = comparison.conditions[0].volumes
    assert volumes is not None
    by_name = {volume.strategy: volume for volume in volumes.areas}
    assert [*frame["volume"]] == [by_name[name].area for name in frame["strategy"]]
    assert (frame["volume_low"] <= frame["volume"]).all()
    assert (frame["volume"] <= frame["volume_high"]).all()
    write_run(tmp_path / "plain", STRATEGIES[0], points=3)
    plain = pt.compare(tmp_path / "plain", resamples=100)
    assert "volume" not in plain.to_frame()
    assert plain.conditions[0].volumes is None
    assert plain.conditions[0].slopes == ()
    assert "volume" not in repr(plain)


def test_floors_move_volumes_as_areas_and_shifted_accuracy_starts_at_the_clean_reference(runs: Path) -> None:
    volumes = only(runs, reference=(0.1, 0.0), min_clean=0.6, min_robust=0.2).volumes
    assert volumes is not None
    assert volumes.corner == (0.6, 0.2, 0.1)


def test_strategies_that_were_not_measured_alike_have_no_volume_and_cannot_be_judged_by_it(
    tmp_path: Path,
) -> None:
    there = {"fog 1": There(0.8, "Corruption('fog', severity=1)")}
    write_run(tmp_path / "0", STRATEGIES[0], points=4, elsewhere=there)
    write_run(tmp_path / "1", STRATEGIES[1], points=4, elsewhere=there | {"art": There(0.7, None, 30)})
    write_run(tmp_path / "2", STRATEGIES[2], points=4, elsewhere=there)
    condition = only(tmp_path)
    assert condition.volumes is not None
    ranked = [area.strategy for area in condition.areas]
    alike = [name for name in ranked if name != "Compacter"]
    expected = ["Compacter"] if ranked[0] == "Compacter" else alike
    assert {volume.strategy for volume in condition.volumes.areas} == {*expected}
    lacking = [name for name in ranked if name not in expected]
    assert "without a volume: " in condition.volumes.notes[0]
    assert all(name in condition.volumes.notes[0] for name in lacking)
    with pytest.raises(
        ValueError, match=r"by='volume' needs .* of task 'digits' .* not measured on the same"
    ):
        only(tmp_path, by="volume")
    small = condition.within(max_trainable=40_000)  # BitFit alone
    assert (small.volumes is None) == ("BitFit" not in expected)
    frame = pt.compare(tmp_path, resamples=100).to_frame()
    assert {*frame.loc[frame["volume"].isna(), "strategy"]} == {*lacking}


def test_points_that_were_not_measured_elsewhere_leave_no_volume(tmp_path: Path) -> None:
    write_run(tmp_path / "0", STRATEGIES[0], points=2)
    with pytest.raises(ValueError, match="LoRA was not measured on the same ones at every point; train with"):
        only(tmp_path, by="volume")


def test_a_domain_of_one_image_cannot_be_resampled(tmp_path: Path) -> None:
    write_run(tmp_path / "0", STRATEGIES[0], points=2, elsewhere={"art": There(0.7, None, 1)})
    assert only(tmp_path).volumes is None
    with pytest.raises(ValueError, match="'art' has a single image, which cannot be resampled"):
        only(tmp_path, by="volume")


def test_few_images_of_a_domain_are_noted_and_widen_the_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "0", STRATEGIES[0], points=3, elsewhere={"art": There(0.7, None, 20)})
    write_run(tmp_path / "1", STRATEGIES[0], points=3, elsewhere={"art": There(0.7, None, 2000)})
    few, many = (only(tmp_path / name).volumes for name in "01")
    assert few is not None
    assert many is not None
    assert few.notes == ("There are 20 images of art; intervals were not verified below 60.",)
    assert many.notes == ()
    assert few.best.high - few.best.low > 1.5 * (many.best.high - many.best.low)


def test_other_strategies_do_not_change_the_volume_of_one(runs: Path) -> None:
    everything, alone = only(runs).volumes, only([path for path in runs.iterdir() if path.name[0] == "1"])
    assert everything is not None
    assert alone.volumes is not None
    (estimate,) = alone.volumes.areas
    same = next(area for area in everything.areas if area.strategy == estimate.strategy)
    assert (same.area, same.low, same.high) == (estimate.area, estimate.low, estimate.high)


def test_five_seeds_cover_the_luck_of_training(tmp_path: Path) -> None:
    there = {"fog 1": There(0.8, "Corruption('fog', severity=1)")}
    write_runs(tmp_path, STRATEGIES[:2], seeds=range(5), points=4, examples=150, elsewhere=there)
    volumes = only(tmp_path).volumes
    assert volumes is not None
    assert volumes.seeds_resampled
    assert "the luck of training." in volumes.verdict


def test_groups_are_drawn_with_all_that_is_made_of_them(tmp_path: Path) -> None:
    there = {"fog 1": There(0.8, "Corruption('fog', severity=1)")}
    write_run(tmp_path / "0", STRATEGIES[0], points=3, elsewhere=there)
    groups = {"digits": (np.arange(400) // 4, np.arange(200) // 4)}
    alone, grouped = only(tmp_path, interval="bca").volumes, only(tmp_path, interval="bca", groups=groups)
    assert alone is not None
    assert grouped.volumes is not None
    assert grouped.volumes.best.area == pytest.approx(alone.best.area)
    assert (grouped.volumes.best.low, grouped.volumes.best.high) != (alone.best.low, alone.best.high)


def test_no_task_is_judged_by_another_quantity(tmp_path: Path) -> None:
    """Over several tasks, what decides is what each task is judged by."""
    from paretune.frontiers.across import across_tasks

    there = {"fog 1": There(0.5, "Corruption('fog', severity=1)")}
    for task in ("a", "b"):
        write_runs(tmp_path / task, STRATEGIES[:2], seeds=(0,), points=4, elsewhere=there, task=task)
    by_area, by_volume = (
        across_tasks(pt.compare(tmp_path, resamples=100, by=by))[0] for by in ("area", "volume")
    )
    assert max(by_volume.mean_areas) < 0.7 * min(by_area.mean_areas)

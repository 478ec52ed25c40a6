"""Accuracy on what was trained on and elsewhere: the chosen checkpoints, pooled and by name, with intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from scipy.stats import t as student

import paretune as pt
from paretune.frontiers.elsewhere import corruption_of
from paretune.frontiers.verdict import Condition
from paretune.runs.rows import ROW_FIELDS
from paretune.runs.store import RunWriter
from paretune.shifts import Corruption, Corruptions
from tests.synthetic import STRATEGIES, There, corruptions, write_run

Right = Mapping[str, Any]


def first(examples: int, right: int) -> Any:
    return np.arange(examples) < right


def write(path: Path, strategy: str, seed: int, points: list[Right], ids: str = "") -> None:
    """A run whose points have so many right of: select, report, and by name elsewhere (of 10 examples each but b of 30)."""
    config = {"task": "pets", "strategy": strategy, "strategy_config": f"{strategy}()", "seed": seed}
    writer = RunWriter(path, config | {"data": "d"})
    for step, right in enumerate(points, start=1):
        sizes = {"select": 20, "report": 40, "a": 10, "b": 30}
        bits = {}
        for name, count in right.items():
            where = name if name in ("select", "report") else f"elsewhere/{name}"
            bits[f"{where}/clean"] = first(sizes[name], count)
            bits[f"{where}/r"] = first(sizes[name], count // 2)
        row = {field: 1.0 if kind is float else 1 for field, kind in ROW_FIELDS.items()}
        row |= {"step": step, "attack": "PGD", "threat": "Linf", "epsilon": 0.1, "bits_key": "r"}
        row |= {"examples": 40, "examples_select": 20, "report_id": "R", "select_id": "S"}
        row |= {"precision": "fp32", "versions": {}, "trainable_parameters": len(strategy)}
        for split, suffix in (("report", ""), ("select", "_select")):
            row |= {
                f"clean{suffix}": bits[f"{split}/clean"].mean(),
                f"robust{suffix}": bits[f"{split}/r"].mean(),
            }
        for name in ("schema", "run", "task", "strategy", "config", "seed", "bits"):
            del row[name]
        there = {
            name: {"examples": sizes[name], "id": f"{name}{ids}"}
            | {
                kind: float(bits[f"elsewhere/{name}/{key}"].mean())
                for kind, key in (("clean", "clean"), ("robust", "r"))
            }
            for name in right
            if name in ("a", "b")
        }
        writer.append(row | ({"elsewhere": there} if there else {}), bits)
    writer.finish({})


def only(path: Path, **options: Any) -> Condition:
    (condition,) = pt.compare(path, resamples=100, **options).conditions
    return condition


def test_the_checkpoint_that_select_chooses_is_measured_and_examples_elsewhere_are_taken_together(
    tmp_path: Path,
) -> None:
    points = [
        {"select": 12, "report": 20, "a": 10, "b": 30},  # best elsewhere, which chooses nothing
        {"select": 18, "report": 32, "a": 5, "b": 21},
        {"select": 16, "report": 40, "a": 9, "b": 29},
    ]
    write(tmp_path / "run", "LoRA", 0, points)
    clean, robust = only(tmp_path).elsewhere
    assert (clean.strategy, clean.accuracy, robust.accuracy) == ("LoRA", "clean", "robust")
    assert clean.report[0] == 32 / 40 == only(tmp_path).areas[0].best_clean
    assert clean.places["a"][0] == 5 / 10
    assert clean.places["b"][0] == 21 / 30
    assert clean.pooled[0] == 26 / 40
    assert clean.drop[0] == pytest.approx(6 / 40)
    assert clean.examples == {"a": 10, "b": 30}
    assert robust.pooled[0] == (2 + 10) / 40
    for found, right, count in ((clean.report, 32, 40), (clean.pooled, 26, 40), (clean.places["b"], 21, 30)):
        wilson = binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert found[1:] == pytest.approx((wilson.low, wilson.high))
    here, there = (binomtest(n, 40).proportion_ci(0.95, method="wilson") for n in (32, 26))
    low = 6 / 40 - np.hypot(32 / 40 - here.low, there.high - 26 / 40)
    high = 6 / 40 + np.hypot(here.high - 32 / 40, 26 / 40 - there.low)
    assert clean.drop[1:] == pytest.approx((low, high))


def test_intervals_of_drops_are_those_of_newcombe(tmp_path: Path) -> None:
    """Method 10 of Newcombe (1998) for independent proportions, its example (a): 56/70 - 48/80."""
    from paretune.frontiers.elsewhere import _drop

    gap, low, high = _drop(first(70, 56)[None], first(80, 48)[None], 0.95, None)
    assert gap == pytest.approx(0.2)
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_seeds_are_averaged_and_five_add_the_luck_of_training_once(tmp_path: Path) -> None:
    there = [20, 22, 25, 21, 27]
    for seed, right in enumerate(there):
        write(tmp_path / str(seed), "LoRA", seed, [{"select": 18, "report": 30 + seed, "a": 5, "b": right}])
    clean = only(tmp_path).elsewhere[0]
    gaps = np.array([(30 + seed) / 40 - (5 + right) / 40 for seed, right in enumerate(there)])
    assert clean.drop[0] == pytest.approx(gaps.mean())
    luck = student.ppf(0.975, 4) * gaps.std(ddof=1) / np.sqrt(5)
    z = norm.ppf(0.975)

    def ends(p: float) -> tuple[float, float]:
        middle, half = (
            (p + z**2 / 80) / (1 + z**2 / 40),
            z / (1 + z**2 / 40) * np.sqrt(p * (1 - p) / 40 + z**2 / 6400),
        )
        return middle - half, middle + half

    p, q = 32 / 40, (5 + np.mean(there)) / 40
    below = np.sqrt((p - ends(p)[0]) ** 2 + (ends(q)[1] - q) ** 2 + luck**2)
    assert clean.drop[1] == pytest.approx(gaps.mean() - below)


def test_strategies_measured_on_other_examples_or_none_are_left_out(tmp_path: Path) -> None:
    point = {"select": 18, "report": 30, "a": 5, "b": 20}
    write(tmp_path / "0", "LoRA", 0, [point])
    write(tmp_path / "1", "BitFit", 0, [point], ids=" of another day")
    write(tmp_path / "2", "SSF", 0, [{"select": 18, "report": 31}])
    condition = only(tmp_path)
    assert len(condition.areas) == 3
    assert {each.strategy for each in condition.elsewhere} == {
        "BitFit"
    }  # first of equal areas but that of SSF
    text = repr(pt.compare(tmp_path, resamples=100))
    assert "clean accuracy on what was trained on (report split) and elsewhere, 95% intervals" in text
    assert "0.625 (0.470 to 0.758)" in text  # 25 of 40 together
    assert "b (30)" in text


def test_runs_that_measure_nothing_elsewhere_say_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path / "0", "LoRA", 0, [{"select": 18, "report": 30}])
    assert only(tmp_path).elsewhere == ()
    assert "elsewhere" not in repr(pt.compare(tmp_path, resamples=100))


def test_a_budget_leaves_strategies_out_elsewhere_too(tmp_path: Path) -> None:
    for strategy in ("LoRA", "BitFit"):
        write(tmp_path / strategy, strategy, 0, [{"select": 18, "report": 30, "a": 5, "b": 20}])
    condition = only(tmp_path)
    assert {each.strategy for each in condition.elsewhere} == {"LoRA", "BitFit"}
    assert {each.strategy for each in condition.within(max_trainable=5).elsewhere} == {"LoRA"}


def test_groups_widen_what_is_of_the_report_split(tmp_path: Path) -> None:
    write(tmp_path / "0", "LoRA", 0, [{"select": 18, "report": 30, "a": 5, "b": 20}])
    alone = only(tmp_path).elsewhere[0]
    grouped = only(tmp_path, groups={"pets": (np.arange(40) // 4, np.arange(20))}).elsewhere[0]
    assert grouped.report[2] - grouped.report[1] > alone.report[2] - alone.report[1]
    assert grouped.drop[2] - grouped.drop[1] > alone.drop[2] - alone.drop[1]
    assert grouped.pooled == alone.pooled


def test_copies_of_an_image_count_once_in_an_interval(tmp_path: Path) -> None:
    """75 changed copies of 400 images say as much of all images as 400 do, and each corruption has its own interval."""
    kinds = ("fog", "snow", "frost")
    write_run(tmp_path / "0", STRATEGIES[0], points=2, elsewhere=corruptions(kinds))
    result = only(tmp_path).elsewhere[0]
    assert result.corrupted is not None
    assert result.corrupted == result.pooled
    wilson = binomtest(round(400 * result.pooled[0]), 400).proportion_ci(0.95, method="wilson")
    assert result.pooled[1:] == pytest.approx((wilson.low, wilson.high), abs=2e-3)
    of_one = result.places["fog 3"]
    wilson = binomtest(round(400 * of_one[0]), 400).proportion_ci(0.95, method="wilson")
    assert of_one[1:] == pytest.approx((wilson.low, wilson.high))
    assert result.corruptions == {f"{kind} {n}": (kind, n) for kind in kinds for n in range(1, 6)}
    assert result.others == []
    # The drop is of 400 images too, on both sides.
    assert result.drop[2] - result.drop[1] > 0.06


def test_a_table_has_one_column_for_all_corruptions(tmp_path: Path) -> None:
    there = corruptions(("fog", "snow")) | {"art": There(0.6, None, 50)}
    write_run(tmp_path / "0", STRATEGIES[0], points=2, elsewhere=there)
    ((_, head, (row,)),) = only(tmp_path).elsewhere_tables()
    assert head == ["strategy", "trained on", "elsewhere", "drop", "10 corruptions", "art (50)"]
    assert len(row) == len(head)


def test_groups_hold_for_what_is_made_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "0", STRATEGIES[0], points=2, elsewhere=corruptions(("fog",), (1, 2)))
    groups = {"digits": (np.arange(400) // 4, np.arange(200))}
    alone, grouped = only(tmp_path).elsewhere[0], only(tmp_path, groups=groups).elsewhere[0]
    for before, after in ((alone.pooled, grouped.pooled), (alone.places["fog 1"], grouped.places["fog 1"])):
        assert after[0] == before[0]
        assert after[2] - after[1] > 1.8 * (before[2] - before[1])


@pytest.mark.parametrize(
    ("name", "call", "expected"),
    [
        ("fog 3", "Corruption('fog')", ("fog", 3)),
        ("jpeg_compression 5", "Corruption('jpeg_compression', severity=5)", ("jpeg_compression", 5)),
        ("fog 3", "Rotation(degrees=3)", None),
        ("fog 3", "", None),
        ("fog", "Corruption('fog')", None),
        ("foggy night", "Corruption('fog')", None),
    ],
)
def test_corruptions_are_read_from_names_and_calls(
    name: str, call: str, expected: tuple[str, int] | None
) -> None:
    assert corruption_of(name, call) == expected


@pytest.mark.parametrize("shift", [Corruption("fog"), *Corruptions("all").parts], ids=repr)
def test_all_corruptions_that_there_are_are_read(shift: Corruption) -> None:
    assert corruption_of(shift.label, repr(shift)) == (shift.kind, shift.severity)

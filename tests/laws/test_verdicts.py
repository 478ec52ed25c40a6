"""No sentence, table or sign of a comparison contradicts another, whatever the errors look like."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paretune.frontiers.across import AcrossTasks, across_rankings
from paretune.frontiers.deciding import Decision
from paretune.frontiers.estimates import _differences
from paretune.frontiers.ranking import Area
from paretune.frontiers.resampling import Resampled
from paretune.frontiers.settings import Settings
from paretune.frontiers.tables import analysis
from paretune.frontiers.tables.ranking import TaskRanking
from paretune.frontiers.verdict import AreaEstimate, Condition, with_p_best
from paretune.report.specs.pairs import _cells
from paretune.report.tables import pair_table
from tests.synthetic import untested

SHARED: dict[str, Any] = {"task": "t", "attack": "PGD()", "threat": "Linf", "epsilon": 0.01}
RESAMPLES = 120


def errors(kind: int, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Of mean about 0 and deviation about 1: skewed to either side, lumpy, biased, or none."""
    made = (
        lambda: rng.exponential(size=shape) - 1,
        lambda: 1 - rng.exponential(size=shape),
        lambda: rng.lognormal(0, 1, size=shape) - 1.6,
        lambda: (rng.random(shape) < 0.1) * 3.0 - 0.3,
        lambda: rng.standard_normal(shape) + 1.5,
        lambda: rng.standard_t(3, size=shape),
        lambda: np.zeros(shape),
    )
    return np.asarray(made[kind]())


def conditions(count: int) -> Iterator[Condition]:
    """Comparisons of two to seven strategies, near the border of what can be told."""
    rng = np.random.default_rng(0)
    for number in range(count):
        size = int(rng.integers(2, 8))
        areas = 0.5 + 0.02 * rng.standard_normal(size)
        if number % 5 == 0:
            areas = areas.round(2)  # ties
        if number % 50 == 0:
            areas[:] = 0.0
        scale = 0.01 * rng.lognormal(0, 0.8, size=(size, 1))
        own = scale * errors(number % 7, (size, RESAMPLES), rng)
        common = 0.02 * errors((number // 7) % 7, (1, RESAMPLES), rng)
        names = [f"S{place}" for place in range(size)]
        made = {
            name: Resampled(
                area=float(area),
                per_seed=(float(area),),
                report=area + drawn,
                choice=np.zeros(RESAMPLES),
                luck=np.zeros(RESAMPLES),
                seed_error=None,
                influence=np.zeros(3),
            )
            for name, area, drawn in zip(names, areas, own + common, strict=True)
        }
        ranked = sorted(made, key=lambda name: (-made[name].area, name))
        settings = Settings(
            level=float(rng.choice([0.8, 0.95])),
            margin=float(rng.choice([0.0, 0.005, 0.03, 0.2])),
            resamples=RESAMPLES,
        )
        differences = _differences(ranked, made, SHARED, settings)
        estimates = [
            AreaEstimate(
                **SHARED,
                strategy=name,
                area=made[name].area,
                low=0.0,
                high=1.0,
                optimistic=0.5,
                k=4,
                seeds=(0,),
                per_seed=made[name].per_seed,
                trainable_parameters=int(rng.integers(1, 4)),
                train_seconds=float(rng.integers(1, 3)),
                best_clean=0.9,
                best_robust=0.4,
                p_best=1.0,
            )
            for name in ranked
        ]
        yield Condition(
            **SHARED,
            areas=with_p_best(estimates, differences),
            differences=tuple(differences),
            k=4,
            runs_per_seed=1,
            examples=100,
            examples_select=100,
            groups=None,
            seeds_resampled=False,
            notes=(),
            settings=settings,
        )


def check_decision(decision: Decision) -> None:
    """The largest is tied; who is not is behind one who is; what is told is transitive."""
    assert decision.tied[0]
    for place in np.flatnonzero(~decision.tied):
        assert (decision.behind[:, place] & decision.tied).any()
    assert not ((decision.told.astype(int) @ decision.told.astype(int) > 0) & ~decision.told).any()


def named(sentence: str, pattern: str) -> set[str]:
    """The strategies in the clauses that end with the pattern."""
    clauses = re.split(r"; |\. ", sentence.removesuffix(".").replace("). ", "; "))
    return {name for clause in clauses if re.search(pattern, clause) for name in re.findall(r"S\d+", clause)}


def check_words(
    sentence: str, tied: tuple[str, ...], size: int, certainty: str, decision: Decision, margin: float
) -> None:
    """What a sentence says of the others is what the set says."""
    assert ("is told apart from it" in sentence) == (certainty == "clear")
    assert ("do not tell which" in sentence) == (certainty == "cannot tell")
    assert ("for practical purposes" in sentence) == (certainty == "equivalent" and margin > 0)
    assert (certainty == "clear") == (len(tied) == 1 < size)
    if certainty == "cannot tell":
        assert len(tied) == size
        assert not decision.told.any()
    like = named(sentence, "cannot be told apart from it")
    near = named(sentence, "less than [0-9.]+ behind")
    same = named(sentence, "the same area$")
    assert like | near | same == {*tied[1:]}
    assert len(like) + len(near) + len(same) == len(tied) - 1
    for clause in re.findall(r"[^;]* told to be behind S\d+, if not behind S\d+", sentence):
        *those, other, first = re.findall(r"S\d+", clause)
        assert not {*those} & {*tied}
        assert {other, first} <= {*tied}


def check(condition: Condition) -> None:
    names = [each.strategy for each in condition.areas]
    advice = condition.recommendation
    tied, certainty, decision = condition.tied, condition.certainty, condition.decision
    check_decision(decision)
    assert advice.confidence_set == advice.tied == tied
    assert tied[0] == condition.best.strategy == names[0]
    assert advice.strategy in tied
    assert {*condition.indistinguishable} <= {*tied[1:]}
    assert {each.strategy for each in condition.areas if each.p_best >= 1 - condition.level} == {*tied}
    check_words(condition.verdict, tied, len(names), certainty, decision, condition.margin)
    assert str(advice).startswith("Cannot tell; cheapest: ") == (certainty == "cannot tell")
    if len(tied) > 1:
        assert f"the cheapest of these is {advice.strategy}, with" in advice.reason
    assert {need.strategy_b for need in advice.needed} <= {*tied}
    if condition.best.area == 0:
        assert certainty in ("cannot tell", "alone")
    cells = _cells(condition, dict.fromkeys(names, ""), dict.fromkeys(names, ""))
    assert {cell["strategy"] for cell in cells if cell["sign"] == "▼"} == {*names} - {*tied}
    rows = re.findall(r"<span>(S\d+) − (S\d+)</span>.*?</tr>", pair_table(condition))
    assert [other for _, other in rows] == names[1:]
    words = re.findall(r"<td>((?:not )?told apart[^<]*)</td>", pair_table(condition))
    for (_, other), text in zip(rows, words, strict=True):
        d = next(d for d in condition.differences if (d.strategy_a, d.strategy_b) == (names[0], other))
        assert text.startswith("told apart") == (d.low > 0 and d.p_value < 1 - condition.level)
        assert (other in tied) == (text == "not told apart" or "by less than" in text)
    for d in condition.differences:
        assert d.low <= d.difference <= d.high
        if d.p_value < 1 - condition.level:
            assert d.low > 0
        assert d.p_unadjusted <= d.p_value


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_sentence_of_a_comparison_contradicts_another(count: int) -> None:
    seen: dict[str, int] = {}
    for condition in conditions(count):
        check(condition)
        check(condition.within(max_trainable=min(each.trainable_parameters for each in condition.areas)))
        seen[condition.certainty] = seen.get(condition.certainty, 0) + 1
    assert min(seen.get(name, 0) for name in ("clear", "tie", "equivalent", "cannot tell")) > count / 100


def ranking(number: int, rng: np.random.Generator) -> TaskRanking:
    """Groups with two to nine repeats, some of the same names, some not."""
    size = int(rng.integers(2, 8))
    areas: dict[str, dict[str, float]] = {}
    for place in range(size):
        repeats = int(rng.integers(3, 10)) if number % 3 else 4
        if number % 10 == 0 and place == 1:
            repeats = 2
        offset = 100 * place if number % 2 and rng.random() < 0.5 else 0
        luck = 0.015 * rng.lognormal(0, 0.8) * errors(number % 6, (1, repeats), rng)[0]
        centre = 0.5 + 0.02 * rng.standard_normal()
        areas[f"S{place}"] = {str(offset + seed): float(centre + one) for seed, one in enumerate(luck)}
    if number % 4 == 0:
        areas["S1"] = dict(areas["S0"])
    ranked = sorted(
        ((name, float(np.mean([*of.values()]))) for name, of in areas.items()), key=lambda e: (-e[1], e[0])
    )
    made = tuple(
        Area("t", name, area, None, None, 4, tuple(areas[name]), tuple(areas[name].values()))
        for name, area in ranked
    )
    return TaskRanking(
        task="t",
        areas=made,
        points=((4, 4),) * size,
        differences=tuple(analysis._differences(ranked, areas, 0.95)),
        k=4,
        equal_budgets=True,
        covers="",
        notes=(),
        settings=Settings(margin=float(rng.choice([0.0, 0.005, 0.03]))),
    )


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_sentence_about_a_table_contradicts_another(count: int) -> None:
    rng = np.random.default_rng(0)
    seen: dict[str, int] = {}
    for number in range(count):
        task = ranking(number, rng)
        check_decision(task.decision)
        seen[task.certainty] = seen.get(task.certainty, 0) + 1
        if task.certainty != "unknown":
            check_words(task.sentence, task.tied, len(task.areas), task.certainty, task.decision, task.margin)
        else:
            assert "cannot say how certain" in task.sentence
            assert not {*task.untested} & {*task.indistinguishable}
        for d in task.to_best:
            if d.p_value is not None and d.p_value < 0.05:
                assert d.low is not None
                assert d.low > 0
        ranks = dict(zip((each.strategy for each in task.areas), task.ranks, strict=True))
        assert all(ranks[a.strategy] <= ranks[b.strategy] for a, b in pairwise(task.areas))
    assert min(seen.get(name, 0) for name in ("clear", "tie", "cannot tell", "unknown")) > count / 100


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_sentence_over_tasks_contradicts_another(count: int) -> None:
    rng = np.random.default_rng(0)
    seen: dict[str, int] = {}
    for number in range(count):
        size, tasks = int(rng.integers(2, 7)), int(rng.integers(2, 12))
        centres = 0.5 + 0.03 * rng.standard_normal(size)
        if number % 6 == 0:
            centres[:2] = centres[0]
        spread = 0.02 * rng.lognormal(0, 1)
        areas = (
            0.1 * rng.standard_normal((tasks, 1)) + centres + spread * errors(number % 7, (tasks, size), rng)
        )
        tables = {
            f"t{row}": {f"S{place}": float(area) for place, area in enumerate(of_task)}
            for row, of_task in enumerate(areas)
        }
        margin = float(rng.choice([0.0, 0.005, 0.05]))
        made: AcrossTasks = across_rankings(untested(tables, margin=margin))
        check_decision(made.decision)
        head = made.verdict.partition("strategies have the largest area of some task")[0]
        if made.certainty == "unknown":
            assert "too alike to say" in head
        else:
            check_words(head, made.tied, size, made.certainty, made.decision, margin)
        assert (np.diff(made.mean_areas) < 1e-12).all()
        for pair in made.pairs:
            if pair.p_value is not None and pair.p_value < 0.05:
                assert pair.low is not None
                assert pair.low > 0
        seen[made.certainty] = seen.get(made.certainty, 0) + 1
    assert min(seen.get(name, 0) for name in ("clear", "tie", "cannot tell")) > count / 100

"""A look puts out who is behind for sure, and errs as seldom as it promises."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from paretune.frontiers.bootstrap import Units
from paretune.frontiers.cells import Cell, Samples
from paretune.frontiers.deciding import Floats
from paretune.frontiers.elimination import UNSEEN, Entrant, Rules, gap_of, look_at, seed_variance
from paretune.frontiers.pareto import area

RULES = Rules(level=0.95, margin=0.005, rivals=2, seeds=5)


def entrant(areas: Sequence[float], moved: float = 0.01, examples: int = 200, seed: int = 0) -> Entrant:
    """Runs with these areas, whose examples move their mean by ``moved`` on average."""
    influence = np.random.default_rng(seed).standard_normal(examples)
    return Entrant(np.array(areas), moved * influence)


def test_the_area_is_that_of_the_select_split_and_examples_move_it_as_they_do() -> None:
    rng = np.random.default_rng(0)
    clean = rng.random((4, 300)) < np.array([[0.95], [0.8], [0.65], [0.5]])
    robust = clean & (rng.random((4, 300)) < np.array([[0.1], [0.4], [0.3], [0.95]]))
    made = Entrant.of([(clean, robust), (clean[:2], robust[:2])], (0.0, 0.0))
    assert made.areas == pytest.approx(
        [area(bits[0].mean(1), bits[1].mean(1)) for bits in ((clean, robust), (clean[:2], robust[:2]))]
    )
    # The spread of resampled areas is what the influences say.
    one = Entrant.of([(clean, robust)], (0.0, 0.0))
    draws = [
        area(clean[:, rows].mean(1), robust[:, rows].mean(1))
        for rows in (rng.integers(0, 300, 300) for _ in range(1000))
    ]
    said = np.sqrt((one.influence**2).mean() / 300)
    assert np.std(draws) == pytest.approx(said, rel=0.1)


def test_no_front_is_an_area_of_zero_that_nothing_moves() -> None:
    none = np.zeros((3, 50), dtype=bool)
    made = Entrant.of([(none, none)], (0.0, 0.0))
    assert made.area == 0
    assert not made.influence.any()


def test_influences_are_those_of_a_comparison() -> None:
    rng = np.random.default_rng(1)
    clean = rng.random((3, 80)) < 0.7
    bits = {"select/clean": clean, "report/clean": clean}
    bits |= {"select/robust": clean & (rng.random((3, 80)) < 0.5)}
    bits["report/robust"] = bits["select/robust"]
    samples = Samples.of(Units.of(80), Units.of(80), 0)
    cell = Cell.of(bits, [np.arange(3)], (0.0, 0.0), samples)
    made = Entrant.of([(clean, bits["select/robust"])], (0.0, 0.0))
    assert made.influence == pytest.approx(cell.influence(samples, (0.0, 0.0)))
    assert made.area == pytest.approx(cell.estimate((0.0, 0.0)))


def test_the_spread_of_seeds_is_pooled_and_one_run_has_more_of_it() -> None:
    entrants = [entrant([0.3, 0.32]), entrant([0.5, 0.5, 0.53]), entrant([0.1])]
    variance, freedom = seed_variance(entrants)
    assert freedom == 3
    assert variance == pytest.approx((0.0002 + 0.0006) / 3)
    still = [entrant(each.areas, moved=0.0) for each in entrants]
    gap = gap_of(still[0], still[2], variance, freedom)
    assert gap is not None
    assert gap.error == pytest.approx(np.sqrt(variance / 2 + UNSEEN**2 * variance))
    assert gap.freedom == pytest.approx(3)
    # A spread of its own that is wider counts.
    wide = gap_of(entrant([0.3, 0.5], moved=0.0), still[1], variance, freedom)
    assert wide is not None
    assert wide.error == pytest.approx(np.sqrt(0.02 / 2 + max(variance, 0.0003) / 3))


def test_one_seed_of_each_tells_nothing() -> None:
    entrants = {"a": entrant([0.9]), "b": entrant([0.1])}
    look = look_at(entrants, ["a", "b"], RULES, 1)
    assert (look.out, look.equivalent, look.futile) == ((), False, False)


def test_who_is_far_behind_is_out_with_a_single_run_too() -> None:
    entrants = {"a": entrant([0.6, 0.61]), "b": entrant([0.55, 0.56, 0.57]), "c": entrant([0.1])}
    look = look_at(entrants, ["a", "b", "c"], RULES, 1)
    (lead,) = look.out
    assert (lead.behind, lead.ahead) == ("c", "a")
    assert 0 < lead.low < lead.difference == pytest.approx(0.505)
    # The same difference within the margin puts nobody out.
    wide = Rules(level=0.95, margin=0.6, rivals=2, seeds=5)
    assert not look_at(entrants, ["a", "b", "c"], wide, 1).out
    # Only those that are in the race may put another out.
    assert not look_at(entrants, ["c"], RULES, 1).out


def test_those_within_the_margin_are_equivalent() -> None:
    entrants = {name: entrant([0.5, 0.501, 0.499], moved=0.001) for name in "ab"}
    assert look_at(entrants, ["a", "b"], Rules(level=0.95, margin=0.02, rivals=1, seeds=5), 1).equivalent
    assert not look_at(entrants, ["a", "b"], Rules(level=0.95, margin=0.001, rivals=1, seeds=5), 1).equivalent


def test_more_seeds_are_futile_where_the_examples_hide_the_difference_and_only_there() -> None:
    noisy = {"a": entrant([0.5, 0.51], moved=1.0), "b": entrant([0.5, 0.49], moved=1.0, seed=1)}
    assert look_at(noisy, ["a", "b"], RULES, 2).futile
    quiet = {"a": entrant([0.5, 0.54], moved=0.01), "b": entrant([0.47, 0.43], moved=0.01, seed=1)}
    look = look_at(quiet, ["a", "b"], RULES, 2)
    assert not look.out
    assert not look.futile
    wide = Rules(level=0.95, margin=0.5, rivals=1, seeds=5)  # seeds may show that they are equivalent
    assert not look_at(noisy, ["a", "b"], wide, 2).futile


def test_the_error_of_all_looks_together_is_half_of_what_the_level_allows() -> None:
    spent = sum(RULES.share(look) * RULES.rivals for look in range(1, 10_000))
    assert spent == pytest.approx(0.025, rel=1e-3)
    assert spent < 0.025


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_a_best_one_is_rarely_put_out(ratio: float) -> None:
    """Of four that are the same, the first is as good as any: looks after each seed put it out in 2.5 % at most."""
    rng, names = np.random.default_rng(0), "abcd"
    rules = Rules(level=0.95, margin=0.0, rivals=3, seeds=4)
    wrong, races = 0, 300

    def made(areas: Floats, shift: float, moved: Floats) -> Entrant:
        return Entrant(areas + shift, moved)

    for _ in range(races):
        areas = {name: 0.01 * (ratio if name == "a" else 1.0) * rng.standard_normal(4) for name in names}
        moved = {name: 0.05 * rng.standard_normal(100) for name in names}
        shifts = {name: 0.005 * rng.standard_normal() for name in names}
        alive = [*names]
        for seeds, look in zip(range(2, 5), itertools.count(1)):
            entrants = {name: made(areas[name][:seeds], shifts[name], moved[name]) for name in names}
            gone = {lead.behind for lead in look_at(entrants, alive, rules, look).out}
            alive = [name for name in alive if name not in gone]
        wrong += "a" not in alive
    assert wrong / races <= 0.025 * ratio

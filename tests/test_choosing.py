"""Of the cases of a test those run by default that differ most."""

import itertools

import pytest

from tests.choosing import choose


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (5, 2), (7, 7), (3, 40)])
def test_every_value_is_there_in_as_few_cases_of_a_product_as_can_be(rows: int, columns: int) -> None:
    cases = [*itertools.product(range(rows), range(columns))]
    chosen = [cases[index] for index in choose(cases)]
    assert len(chosen) == max(rows, columns)
    assert {row for row, _ in chosen} == {*range(rows)}
    assert {column for _, column in chosen} == {*range(columns)}


def test_of_one_parameter_they_are_spread() -> None:
    cases = [(number,) for number in range(48)]
    assert choose(cases) == [*range(48)]
    chosen = choose(cases, 6)
    assert len(chosen) == 6
    assert max(b - a for a, b in itertools.pairwise([*chosen, chosen[0] + 48])) <= 2 * 48 / 6
    assert choose(cases, 60) == [*range(48)]


def test_a_value_that_few_cases_have_comes_before_one_that_is_there() -> None:
    assert choose([("a", 0), ("a", 1), ("a", 1), ("b", 1)], 2) == [0, 3]

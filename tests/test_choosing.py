"""Of the cases of a test those run by default that differ most."""

import itertools

import pytest

from tests.choosing import choose

pytest_plugins = ["pytester"]

HOOKS = "from tests.conftest import pytest_addoption, pytest_collection_modifyitems, pytest_runtest_setup"
PRODUCTS = """
import pytest
pytestmark = [pytest.mark.parametrize("a", range(3)), pytest.mark.parametrize("b", "xy")]
@pytest.mark.some
def test_of_each_value(a, b): pass
@pytest.mark.some(2)
def test_of_two(a, b): pass
def test_of_all(a, b): pass
"""


@pytest.fixture
def products(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(HOOKS)
    pytester.makeini("[pytest]\nmarkers = some: x\n thorough: x")
    pytester.makepyfile(PRODUCTS)
    return pytester


def test_the_cases_that_are_not_chosen_are_thorough(products: pytest.Pytester) -> None:
    for chosen, passed in (("not thorough", 3 + 2 + 6), ("thorough", 3 + 4)):
        products.runpytest_inprocess("-m", chosen).assert_outcomes(passed=passed, deselected=18 - passed)


def test_what_would_begin_too_late_is_skipped(products: pytest.Pytester) -> None:
    products.runpytest_inprocess("--begin-within", "0").assert_outcomes(skipped=18)
    products.runpytest_inprocess("--begin-within", "1e9").assert_outcomes(passed=18)


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

"""A field that holds a number takes no truth value, text, NaN or fraction of a whole number."""

from dataclasses import fields
from typing import Any

import pytest

from paretune.strategies import STRATEGIES, Strategy

NUMBERS = [
    pytest.param(kind, each, id=f"{kind.__name__}.{each.name}")
    for kind in STRATEGIES.values()
    for each in fields(kind)
    if each.type in (int, float, int | None, float | None)
]


WRONG = [True, "2", float("nan"), float("inf"), [2]]


@pytest.mark.parametrize(("kind", "each"), NUMBERS)
def test_a_field_takes_only_numbers_of_its_kind(kind: type[Strategy], each: Any) -> None:
    for value in WRONG if each.type in (float, float | None) else [*WRONG, 1.5]:
        with pytest.raises(
            (TypeError, ValueError), match=rf"{each.name} must be a (whole|finite) number, got"
        ):
            kind(**{each.name: value})

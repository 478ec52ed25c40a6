"""Packing changes the length of JSON and nothing else."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.report.packing import packed
from tests.unit.report.reading import unpacked

SCALAR = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0, 1) | st.text(max_size=30)
ROWS = st.lists(
    st.fixed_dictionaries({"strategy": st.text(max_size=30), "area": st.floats(0, 1)}), max_size=6
)
JSON = st.recursive(
    SCALAR | ROWS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner)
)


def round_trip(value: Any) -> Any:
    read = json.loads(json.dumps(packed(value)))
    return unpacked(read["value"], read["shared"])


@given(JSON)
def test_unpacking_gives_back_what_was_packed(value: Any) -> None:
    assert round_trip(value) == value
    assert round_trip([value, {"again": value}]) == [value, {"again": value}]


def test_what_is_repeated_is_written_once() -> None:
    rows = [{"strategy": "Compacter(reduction=16)", "step": step, "clean": 0.5} for step in range(100)]
    made = packed({"a": rows, "b": rows})
    assert made["value"]["a"] == made["value"]["b"]
    text = json.dumps(made)
    assert text.count("Compacter(reduction=16)") == text.count("strategy") == 1


def test_numbers_of_numpy_are_numbers() -> None:
    assert round_trip({"rows": [{"area": np.float64(0.5), "k": np.int64(n)} for n in range(4)]})["rows"][
        3
    ] == {
        "area": 0.5,
        "k": 3,
    }


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        packed({"area": [float("nan")]})

"""A file is whole or absent."""

import json
import os

import pytest

from paretune._files import atomic_path, write_json


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(tmp_path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of")
            raise OSError(28, os.strerror(28))  # no space left on device

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert json.loads(path.read_text()) == {"x": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_nan_is_refused_because_json_has_none(tmp_path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())

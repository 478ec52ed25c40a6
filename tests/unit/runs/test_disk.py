"""A file is whole or absent."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open

from paretune.runs.disk import atomic_path, save_tensors, write_json


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


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_tensors_are_saved_as_they_look(library: Any, tmp_path: Path) -> None:
    """Whatever their memory looks like, and with the permissions of any new file."""
    turned = library.arange(6.0).reshape(3, 2).T
    tensors = {
        "turned": turned,
        "scalar": library.ones(()),
        "empty": library.ones((0, 2)),
        "part": turned[:, 1],
    }
    (tmp_path / "new").touch()
    save_tensors(tmp_path / "a.safetensors", tensors, {"key": "value"})
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"key": "value"}
        for name, value in tensors.items():
            found = file.get_tensor(name)
            assert found.shape == tuple(value.shape)
            assert (found == np.asarray(value)).all()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    save_tensors(tmp_path / "none.safetensors", {})
    with safe_open(tmp_path / "none.safetensors", framework="np") as file:
        assert not list(file.keys())


@pytest.mark.parametrize(
    ("message", "number", "text"),
    [
        ("I/O error: No space left on device (os error 28)", errno.ENOSPC, "No space left on device"),
        ("I/O error: whatever (os error 27)", errno.EFBIG, "File too large"),
        ("something else", None, "cannot be written: something else"),
    ],
)
def test_tensors_that_cannot_be_written_are_an_error_of_the_system_and_leave_the_old_file(
    message: str, number: int | None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(1)})
    before = path.read_bytes()

    def fail(_: object, file: Path, __: object) -> None:
        file.write_bytes(b"half of")
        raise SafetensorError(message)

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match=text) as caught:
        save_tensors(path, {"x": torch.zeros(1)})
    assert caught.value.errno == number
    assert str(path) in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    """As the system tells it: a limit on the size of files takes the place of a full disk."""
    code = f"""
import resource, signal
import torch
from pathlib import Path
from paretune.runs.disk import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_tensors(Path({str(tmp_path / "a.safetensors")!r}), {{"x": torch.zeros(1000)}})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[Errno 27] File too large: {str(tmp_path / 'a.safetensors')!r}\n"
    assert not list(tmp_path.iterdir())

"""What a URL is, and what is said of stores that cannot be used."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paretune.runs.objects import Objects, as_url, check_local
from tests.buckets import memory


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/runs/", "s3://bucket/runs"),
        (Path("s3://bucket/runs"), "s3://bucket/runs"),  # which pathlib shortens to s3:/bucket/runs
        ("memory://runs", "memory://runs"),
        ("file:///tmp/runs", "file:///tmp/runs"),
        (Path("file:///tmp/runs"), "file:///tmp/runs"),
        ("runs", None),
        ("/a/runs", None),
        (r"C:/runs", None),
        ("hf:user/runs", None),
    ],
)
def test_a_url_is_told_from_a_path(path: str | Path, url: str | None) -> None:
    assert as_url(path) == url


def test_where_no_url_is_taken_the_argument_and_the_way_out_are_named() -> None:
    check_local("out", "runs")
    with pytest.raises(
        ValueError,
        match=r"out='s3://bucket/run' is a URL, .*give the path of a directory of this machine here",
    ):
        check_local("out", Path("s3://bucket/run"))


def test_files_are_written_listed_read_and_removed(tmp_path: Path) -> None:
    for url in (memory(), f"file://{tmp_path}/store"):
        objects = Objects(url)
        assert objects.names() == set()
        assert objects.read("a") is None
        objects.write("a/b", b"1")
        objects.write("a/.hidden", b"2")
        (tmp_path / "c").write_bytes(b"3")
        objects.put(tmp_path / "c", "a/d/c")
        assert objects.names() == {"a/b", "a/d/c"}
        assert objects.names("a") == {"b", "d/c"}
        assert objects.get("a/d/c", tmp_path / "new/copy")
        assert (tmp_path / "new/copy").read_bytes() == b"3"
        assert not objects.get("a/none", tmp_path / "none")
        assert not (tmp_path / "none").exists()
        objects.remove("a/b")
        objects.remove("a/b")  # which is no error
        assert objects.read("a/b") is None


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        ImportError, match=r"gs://bucket/runs needs .*'paretune\[storage\]', and .* gcsfs for gs://"
    ):
        Objects("gs://bucket/runs")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"s3://bucket/runs needs .*pip install 'paretune\[storage\]'"):
        Objects("s3://bucket/runs")


def test_what_is_no_url_of_a_store_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"nope://x/y is no URL that fsspec knows \(Protocol not known: nope\): give"
    ):
        Objects("nope://x/y")
    with pytest.raises(ValueError, match="names no directory"):
        Objects("memory://")


@pytest.mark.parametrize(
    ("error", "kind"), [(PermissionError("Forbidden"), PermissionError), (RuntimeError("no route"), OSError)]
)
def test_whatever_a_store_raises_is_an_error_of_the_system_with_the_url(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(memory())

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(objects.fs, "pipe_file", fails)
    with pytest.raises(
        kind, match=f"{objects.url} cannot be written .*{error}.*; check that the bucket exists"
    ):
        objects.write("a", b"")


def test_the_store_is_imported_when_it_is_used() -> None:
    code = "import paretune, paretune.runs.store, sys; sys.exit('s3fs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

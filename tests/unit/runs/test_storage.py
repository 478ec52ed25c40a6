"""Which directory stands for a URL, and what is sent from it."""

import shutil
from pathlib import Path

import pytest

from paretune.runs.storage import below, local_copy, opened, share, stored_at, written
from paretune.runs.store import load_runs
from paretune.runs.stored import Stored, sending
from tests import tiny
from tests.buckets import at, machine, memory


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, tmp_path / "one")


def test_a_path_is_the_directory_itself(tmp_path: Path) -> None:
    with opened(tmp_path / "runs") as out:
        assert out == tmp_path / "runs"
    assert local_copy("runs") == Path("runs")
    assert stored_at(tmp_path / "runs/lora") is None
    assert below(tmp_path, "a") == str((tmp_path / "a").resolve())
    with written(tmp_path / "a") as file:
        assert file == tmp_path / "a"


def test_a_url_has_the_same_directory_every_time_and_a_copy_of_that_is_a_path_like_any_other(
    tmp_path: Path,
) -> None:
    url = memory()
    with opened(url) as out:
        pass
    with opened(f"{url}/") as again:
        assert again == out
        assert stored_at(out / "lr-search/run") == Stored(url, "lr-search/run")
    shutil.copytree(out, tmp_path / "copy")
    assert stored_at(tmp_path / "copy/run") is None


def test_what_is_shared_comes_to_other_machines_and_goes_where_it_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = memory()
    with opened(url) as out:
        (out / "race.json").write_text("{}")
        (out / "sweep.json").write_text("{}")
        share(out / "race.json")
    machine(monkeypatch, tmp_path / "two")
    with opened(url) as other:
        assert (other / "race.json").read_text() == "{}"
    machine(monkeypatch, tmp_path / "one")
    with opened(url):
        assert not (out / "sweep.json").exists()


def test_files_beside_each_other_are_written_to_a_url() -> None:
    url = memory()
    with written(f"{url}/page.html") as page:
        page.write_text("1")
        page.with_suffix(".svg").write_text("2")
    assert at(url) == {"page.html": b"1", "page.svg": b"2"}
    assert below(f"{url}/", "page.html") == f"{url}/page.html"


def test_one_run_has_a_url_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(memory(), "run")
    with sending(stored, resume=True) as sink:
        tiny.run(stored.path, sinks=[sink])
    machine(monkeypatch, tmp_path / "two")
    (one,), (same,) = load_runs(f"{stored.root}/run"), load_runs(stored.root)
    assert one.done
    assert one.points.equals(same.points)
    assert one.path != same.path

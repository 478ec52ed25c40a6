"""The page of results names what runs write: every field of every file, and none besides."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import paretune as pt
from paretune.runs.rows import ROW_FIELDS, check_row, run_key
from paretune.runs.store import load_runs
from paretune.runs.submission import Submission, write_submission
from paretune.training import LPFT
from tests import tiny
from tests.unit.evaluation.test_shifts import Both

PAGE = Path(__file__).parents[1] / "docs/reference/results.md"
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \|", re.M)
KINDS = {
    "integer": int,
    "number": (int, float),
    "text": str,
    "boolean": bool,
    "object": dict,
    "list": list,
    "null": type(None),
}


def tables(heading: str) -> list[dict[str, str]]:
    """The tables below a heading: the type of each field, by its name."""
    sections = re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)
    (section,) = (text for text in sections if text.startswith(f"{heading}\n"))
    return [dict(ROW.findall(table)) for table in TABLE.findall(section)]


def kinds(told: str) -> tuple[Any, ...]:
    return tuple(
        kind for word, kind in KINDS.items() if re.search(rf"\b{word}s?\b", told.partition(" of ")[0])
    )


def check_kinds(values: dict[str, Any], told: dict[str, str]) -> None:
    for name, value in values.items():
        allowed = KINDS["null"] if value is None and "null" in told[name] else kinds(told[name])
        assert isinstance(value, allowed), f"{name}: {told[name]}, but {value!r}"
        if isinstance(value, bool):
            assert "boolean" in told[name], name


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        file.read_text().splitlines()[-1] if file.suffix == ".jsonl" else file.read_text()
    )
    return content


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.run(tmp_path_factory.mktemp("runs") / "plain", steps=4, eval_every=4).path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that an option adds, but several tasks and a compiled engine."""
    options = tiny.everything() | {
        "eval_every": None,
        "points": 4,
        "steps": 5,  # of which no multiples are four
        "epsilon": pt.EpsilonSchedule.fixed(),
        "freezing": LPFT(0.4),
        "shifts": [Both()],
        "shift_limit": 20,
        "attack_elsewhere": True,
    }
    return tiny.run(tmp_path_factory.mktemp("runs") / "full", **options).path


def test_the_configuration_has_these_fields(plain: Path, full: Path) -> None:
    always, maybe = tables("config.json")
    config = read(plain / "config.json")
    assert {*config} == {*always}
    check_kinds(config, always)
    config = read(full / "config.json")
    assert {*config} == {*always, *maybe} - {"eval_every", "attack_engine", "together"}
    check_kinds(config, always | maybe)
    assert run_key(config) == load_runs(full)[0].key


def test_a_line_has_these_fields(plain: Path, full: Path) -> None:
    fields, there = tables("points.jsonl")
    row = read(plain / "points.jsonl")
    assert {*row} == {*fields}
    check_kinds(row, fields)
    row = read(full / "points.jsonl")
    assert {*row} == {*fields, "elsewhere"}
    for place in row["elsewhere"].values():
        assert {*place} == {*there}
        check_kinds(place, there)


def test_the_required_fields_are_those_that_are_told(plain: Path) -> None:
    text = " ".join(PAGE.read_text("utf-8").split())
    fields, _ = tables("points.jsonl")
    (told,) = re.findall(r"Every field up to `versions` but (.*?) is required", text)
    optional = {*re.findall(r"`(\w+)`", told)}
    assert {*ROW_FIELDS} == {*fields} - optional
    row = read(plain / "points.jsonl")
    for name in {*fields} - optional:
        with pytest.raises(ValueError, match=f"lacks {name}"):
            check_row({key: row[key] for key in row if key != name}, "line", row["run"])
    check_row({key: row[key] for key in row if key not in optional}, "line", row["run"])


def test_a_range_that_is_told_is_a_range_that_is_checked(plain: Path) -> None:
    fields, _ = tables("points.jsonl")
    row = read(plain / "points.jsonl")
    outside = {"≥ 0": -1, "≥ 1": -1, "[0, 1]": 1.5, "> 0": 0, "≤ 1": 1.5}
    for name, told in fields.items():
        for bound, value in outside.items():
            if bound in told and name in ROW_FIELDS:
                with pytest.raises(ValueError, match=name):
                    check_row(row | {name: value}, "line", row["run"])


def test_bits_have_these_tensors_and_these_notes(plain: Path) -> None:
    tensors, notes = tables("bits")
    row = read(plain / "points.jsonl")
    with safe_open(plain / row["bits"], "numpy") as file:
        assert {*file.keys()} == {*tensors}
        assert {*file.metadata()} == {*notes}
        for name in tensors:
            count = row["examples" if name.startswith("report") else "examples_select"]
            packed = file.get_tensor(name)
            assert (packed.dtype, packed.shape) == ("uint8", (-(-count // 8),))


def test_the_statement_has_these_fields(plain: Path, full: Path) -> None:
    (fields,) = tables("DONE")
    done = read(plain / "DONE")
    assert {*done} == {*fields}
    check_kinds(done, fields)
    assert {*read(full / "DONE")} - {*fields} == {"confirmed"}


def test_a_run_has_these_files(full: Path) -> None:
    (files,) = [
        table
        for table in map(dict, map(ROW.findall, TABLE.findall(PAGE.read_text("utf-8"))))
        if "DONE" in table
    ]
    assert {path.name for path in full.iterdir()} == {name.partition("/")[0] for name in files}


def test_a_submission_has_these_fields(plain: Path, tmp_path: Path) -> None:
    (fields,) = tables("Submissions")
    write_submission(load_runs(plain), tmp_path / "out", by="Ada", machine="one H100")
    told = read(tmp_path / "out/submission.json")
    assert {*told} == {*fields}
    check_kinds(told, fields)
    assert Submission.read(tmp_path / "out").by == "Ada"
    behind = {path.name for path in plain.iterdir()} - {
        path.name for path in (tmp_path / "out/plain").iterdir()
    }
    assert behind == {*read(tmp_path / "out/plain/DONE")["left_out"]}

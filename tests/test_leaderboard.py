"""The leaderboard is what the submissions in the repository say, and these are what they say they are."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from paretune.commands.cli import main
from paretune.frontiers.comparing import compare
from paretune.runs.rows import read_json
from paretune.runs.store import load_points, load_runs
from paretune.runs.submission import SUBMISSION, write_submission
from paretune.runs.verifying import problems, submission_problems, unproven
from tests.synthetic import ATTACK, STRATEGIES, write_run

ROOT = Path(__file__).parents[1]
SUBMISSIONS = sorted(file.parent for file in (ROOT / "benchmarks/leaderboard").rglob(SUBMISSION))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("leaderboard")


def submit(directory: Path, **changes: object) -> Path:
    """A submission of two strategies with two seeds each."""
    name = str(changes.pop("name", "one"))
    who = {key: str(changes.pop(key, key)) for key in ("by", "machine")}
    config = {"backbone": "timm:vit", "objective": {"name": "TRADES"}, "epsilon_schedule": {"name": "Fixed"}}
    for number, strategy in enumerate(STRATEGIES[:2]):
        for seed in (0, 1):
            write_run(
                directory / f"runs-{name}" / f"{number}-{seed}",
                strategy,
                seed,
                **{"points": 3} | config | {"weights": f"{number}-{seed}"} | changes,
            )
    write_submission(load_runs(directory / f"runs-{name}"), directory / "board" / name, **who)
    return directory / "board"


def test_there_is_a_submission() -> None:
    assert SUBMISSIONS


@pytest.mark.parametrize("submission", SUBMISSIONS, ids=lambda path: path.name)
def test_a_submission_is_what_it_says(submission: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "verify", str(submission), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == len(load_runs(submission))
    assert told["points"] == len(load_points(submission))
    assert told["problems"] == told["splits"] == {}
    runs = load_runs(submission)
    assert all(why.startswith("exported without ") for why in unproven(runs))
    assert all(run.done for run in runs)


@pytest.mark.parametrize("submission", SUBMISSIONS, ids=lambda path: path.name)
def test_a_submission_is_small_and_holds_no_weights_and_no_data(submission: Path) -> None:
    runs = [run.path for run in load_runs(submission)]
    files = [path for path in submission.rglob("*") if path.is_file()]
    assert {path.name for run in runs for path in run.iterdir()} <= {
        *("config.json", "points.jsonl", "bits", "confirmed", "DONE")
    }
    assert sum(path.stat().st_size for path in files) < 300_000 + 30_000 * len(runs)


def test_no_run_is_in_two_submissions() -> None:
    load_runs(ROOT / "benchmarks/leaderboard")  # refuses copies


def test_an_edit_of_the_committed_submission_is_seen(tmp_path: Path) -> None:
    shutil.copytree(SUBMISSIONS[0], tmp_path / "copy")
    assert submission_problems([tmp_path]) == {}
    run = load_runs(tmp_path / "copy")[0].path
    for file in (run / "DONE", run / "points.jsonl", *(run / "bits").iterdir()):
        whole = file.read_bytes()
        digit = next(
            place
            for place in reversed(range(len(whole)))
            if whole[place : place + 1].isdigit() or file.suffix == ".safetensors"
        )
        changed = bytearray(whole)
        changed[digit] ^= 1
        file.write_bytes(changed)
        told = [*problems(*load_runs(run)), *submission_problems([tmp_path]).get(str(tmp_path / "copy"), [])]
        assert any(line.startswith(str(file)) for line in told), file
        file.write_bytes(whole)
    assert problems(*load_runs(run)) == []


def test_rows_are_those_of_a_comparison(board: ModuleType, tmp_path: Path) -> None:
    entries = board.entries(submit(tmp_path, by="Ada", machine="one H100"))
    (condition,) = compare(tmp_path / "runs-one").conditions
    assert [entry.area for entry in entries] == [*condition.areas]
    for entry in entries:
        assert (entry.backbone, entry.training, entry.name) == ("timm:vit", "TRADES, Fixed", "one")
        area = entry.area
        cells = [f"{area.area:.3f}", f"{area.low:.3f}–{area.high:.3f}"]
        assert entry.cells[:3] == [area.strategy, *cells]
        assert entry.cells[4:7] == ["2", "3", f"{area.trainable_parameters:,}"]
    told = entries[0].submission
    text = board.markdown(tmp_path / "board").replace("\\", "")
    assert text.count(f"\none: measured by Ada on one H100, {told.date}.\n") == 1


def test_the_column_at_a_floor_is_chosen_on_select_and_measured_on_report(board: ModuleType) -> None:
    points = load_points(SUBMISSIONS[0])
    for (strategy, seed), rows in points.groupby(["strategy", "seed"]):
        above = [row for _, row in rows.iterrows() if row["clean_select"] >= 0.8]
        best = max(above, key=lambda row: row["robust_select"], default=None)
        assert board.robust_at_floor(rows) == (None if best is None else best["robust"]), (strategy, seed)
    lora = points[points["strategy"] == "LoRA"]
    by_seed = [board.robust_at_floor(rows) for _, rows in lora.groupby("seed")]
    assert board.robust_at_floor(lora) == pytest.approx(sum(by_seed) / 2)
    assert board.robust_at_floor(lora, floor=1.0) is None


def test_runs_that_were_trained_otherwise_are_other_rows(board: ModuleType, tmp_path: Path) -> None:
    directory = submit(tmp_path)
    submit(tmp_path, name="two", objective={"name": "Natural"})
    for number, training in enumerate(("TRADES", "Natural")):
        write_run(
            tmp_path / "mixed" / str(number),
            STRATEGIES[0],
            7,
            objective={"name": training},
            backbone={"a": 1},
        )
    write_submission(load_runs(tmp_path / "mixed"), directory / "mixed", by="b", machine="m")
    rows = [(entry.name, entry.training, len(entry.area.seeds)) for entry in board.entries(directory)]
    assert sorted(rows) == sorted(
        [("mixed", "Natural", 1), ("mixed", "TRADES", 1)]
        + [("one", "TRADES, Fixed", 2)] * 2
        + [("two", "Natural, Fixed", 2)] * 2
    )


def test_each_split_and_threat_has_a_table_sorted_by_area(board: ModuleType, tmp_path: Path) -> None:
    attacks = ((ATTACK, "Linf", 4 / 255, 1.0), ("PGD(L2(0.5), steps=20)", "L2", 0.5, 0.9))
    directory = submit(tmp_path, attacks=attacks)
    submit(tmp_path, name="two", examples=77)
    text = board.markdown(directory)
    tables = text.split("## ")[1:]
    assert [table.splitlines()[0].replace("\\", "") for table in tables] == [
        "digits, L2 ≤ 0.5",
        "digits, L∞ ≤ 4/255",
        "digits, L∞ ≤ 4/255",
    ]
    for table in tables:
        areas = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| ")][2:]
        assert len(areas) == 2
        assert areas == sorted(areas, reverse=True)


def test_text_of_strangers_is_text(board: ModuleType, tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    hostile = "Ada | <script>alert(1)</script> [x](https://example.org) `a` $b$ *c* {py:obj}`d`\n# e"
    text = board.markdown(submit(tmp_path, by=hostile, backbone=hostile, task=hostile))
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert not re.findall(r"<(script|a|code|em)\b", page)
    assert re.findall(r"<h\d", page) == ["<h2"]
    rows = page.split("<tbody>")[1].split("<tr>")[1:]
    assert [row.count("<td>") for row in rows] == [len(board.HEAD)] * 2
    assert text.count("\\{py\\:obj\\}\\`d\\`") == 4  # the title, two rows, and who measured


def test_the_script_prints_the_table_of_the_repository(board: ModuleType) -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "docs/leaderboard.py"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == board.markdown()
    for submission in SUBMISSIONS:
        told = read_json(submission / SUBMISSION)
        assert board._plain(told["machine"]) in printed
        assert board._plain(submission.name) in printed


def test_the_page_tells_the_floor_of_the_table(board: ModuleType) -> None:
    told = " ".join((ROOT / "docs/leaderboard/index.md").read_text("utf-8").split())
    assert f"**{board.HEAD[3]}**" in told
    assert f"at least {board.FLOOR:.0%}".replace("%", " %") in told

"""``paretune runs``: list, show, diff, remove."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import paretune as pt
from paretune.commands.cli import main
from paretune.runs.lock import alone
from paretune.training import AdamW
from tests import tiny
from tests.synthetic import ATTACK, STRATEGIES, write_run

SMALL = {"points": 2, "examples": 40, "examples_select": 30}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A LoRA of two attacks, a BitFit that is not finished, and a run that has just begun."""
    attacks = ((ATTACK, "Linf", 4 / 255, 1.0), ("PGD(L2(0.5), steps=20)", "L2", 0.5, 0.9))
    write_run(tmp_path / "all/lora", STRATEGIES[0], 3, attacks=attacks, **SMALL)
    write_run(tmp_path / "all/deep/bitfit", STRATEGIES[2], finish=False, task="flowers", **SMALL)
    write_run(tmp_path / "all/new", STRATEGIES[1], finish=False, **SMALL | {"points": 0})
    return tmp_path / "all"


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["runs", *arguments]) == 0
    return capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["runs", *arguments]) == 2
    complained = capsys.readouterr().err
    assert complained.count("\n") == 1
    return complained


def test_the_list_has_each_run_with_its_accuracies(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for age, name in ((90, "lora"), (3 * 86400, "deep/bitfit"), (7200, "new")):
        for file in (root / name).rglob("*"):
            times = file.stat().st_mtime - age
            os.utime(file, (times, times))
    lines = [" ".join(line.split()) for line in told(["list", str(root)], capsys).splitlines()]
    found = json.loads(told(["list", str(root), "--json"], capsys))
    bitfit, lora, new = found["runs"]
    assert found["damaged"] == {}
    first, second = (f"40 {row['clean']:.3f} {row['robust']:.3f}" for row in lora["scores"])
    size = f"{sum(file.stat().st_size for file in (root / 'lora').rglob('*') if file.is_file()) / 1e3:.0f} kB"
    assert f"lora LoRA(rank=8) digits 3 PGD(Linf(4/255), steps=20) {first} yes 2 min {size}" in lines
    assert f"lora LoRA(rank=8) digits 3 PGD(L2(0.5), steps=20) {second} yes 2 min {size}" in lines
    assert any(line.startswith("deep/bitfit BitFit flowers 0 ") and " no 3 d " in line for line in lines)
    assert any(line.startswith("new Compacter digits 0 no point yet no 2 h ") for line in lines)
    assert (bitfit["finished"], lora["finished"], lora["step"], new["step"], new["scores"]) == (
        False,
        True,
        40,
        0,
        [],
    )
    assert {row["epsilon"] for row in lora["scores"]} == {4 / 255, 0.5}


def test_the_list_takes_conditions_and_several_directories(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def names(*arguments: str) -> list[str]:
        found = json.loads(told(["list", *arguments, "--json"], capsys))["runs"]
        return [Path(each["path"]).name for each in found]

    assert names(str(root), "--where", "task=digits; strategy!=LoRA") == ["new"]
    assert names(str(root / "new"), str(root / "deep")) == ["new", "bitfit"]
    assert names(str(root / "new"), str(root)) == ["new", "bitfit", "lora"]  # each once
    assert "no run has a field 'epoch'" in refused(["list", str(root), "--where", "epoch=3"], capsys)


def test_a_damaged_run_is_told_and_the_others_are_listed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "lora/points.jsonl").write_text("{}\n")
    listed = told(["list", str(root)], capsys)
    assert f"damaged: {root / 'lora'}: " in listed
    assert "BitFit" in listed
    assert [*json.loads(told(["list", str(root), "--json"], capsys))["damaged"]] == [str(root / "lora")]


def test_the_table_fits_the_terminal(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paretune", "runs", "list", str(root)],
        env={**os.environ, "COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "lora" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_show_has_all_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("paretune").setLevel(logging.ERROR)
    run = tiny.run(tmp_path / "run")
    logging.getLogger("paretune").setLevel(logging.NOTSET)
    shown = told(["show", str(run.path)], capsys)
    assert "  lr: 0.005" in shown
    assert "strategy: FullFineTune(bn='adapt')" in shown
    assert "step 4: transfer failure: clean accuracy" in shown
    assert f"adapter: {(run.path / 'adapter').resolve()}, of step" in shown
    found = json.loads(told(["show", str(run.path), "--json"], capsys))
    assert found["config"] == run.config
    assert [point["robust"] for point in found["points"]] == run.points["robust"].tolist()
    assert found["findings"][0]["step"] == 4


def test_a_run_is_shown_with_the_point_that_it_has_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that kept the best of 24 steps, and the same run as if it had kept the last one."""
    logging.getLogger("paretune").setLevel(logging.ERROR)
    falls = {"optimizer": AdamW(2.0, warmup=0.99), "steps": 24, "eval_every": 2, "seed": 3}
    run = tiny.run(tmp_path / "best", model=tiny.backbone(pt.FullFineTune(bn="adapt")), keep="clean", **falls)
    logging.getLogger("paretune").setLevel(logging.NOTSET)
    points = run.points.set_index("step")
    best = int(points["clean_select"].idxmax())
    assert best < 24
    shutil.copytree(run.path, tmp_path / "last")
    done = json.loads((run.path / "DONE").read_text())
    (tmp_path / "last/DONE").write_text(json.dumps(done | {"kept_step": 24}))
    rows = json.loads(told(["list", str(tmp_path), "--json"], capsys))["runs"]
    assert [(row["step"], row["last_step"], row["keep"]) for row in rows] == [
        (best, 24, "clean"),
        (24, 24, "clean"),
    ]
    assert [row["scores"][0]["clean"] for row in rows] == [points["clean"][best], points["clean"][24]]
    lines = [" ".join(line.split()) for line in told(["list", str(tmp_path)], capsys).splitlines()]
    for name, step, at in (("best", f"{best} of 24, keep=clean", best), ("last", "24", 24)):
        shown = f"{step} {points['clean'][at]:.3f} {points['robust'][at]:.3f} yes"
        assert any(line.startswith(f"{name} ") and shown in line for line in lines)
    assert f"adapter, of step {best} of 24, keep=clean\n" in told(["show", str(run.path)], capsys)
    assert "adapter, of step 24\n" in told(["show", str(tmp_path / "last")], capsys)
    scores = json.loads(told(["diff", str(run.path), str(tmp_path / "last"), "--json"], capsys))["scores"]
    assert scores["clean"] == [points["clean"][best], points["clean"][24]]


def test_show_of_a_run_that_is_not_finished(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "adapter: none; the run is not finished" in told(["show", str(root / "deep/bitfit")], capsys)
    assert "holds 3 runs; name one of them" in refused(["show", str(root)], capsys)


def test_diff_has_what_differs_and_no_more(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(root / "other", STRATEGIES[0], 4, optimizer={"lr": 0.1, "name": "AdamW"}, **SMALL)
    write_run(root / "third", STRATEGIES[0], 4, optimizer={"lr": 0.2, "name": "AdamW"}, **SMALL)
    found = json.loads(told(["diff", str(root / "lora"), str(root / "other"), "--json"], capsys))
    assert found["config"] == {"seed": [3, 4], "optimizer.lr": [None, 0.1], "optimizer.name": [None, "AdamW"]}
    assert set(found["scores"]) >= {"robust under PGD(L2(0.5), steps=20)"}
    assert found["scores"]["robust under PGD(L2(0.5), steps=20)"][1] is None
    told_apart = told(["diff", str(root / "other"), str(root / "third")], capsys)
    lines = [" ".join(line.split()) for line in told_apart.splitlines()]
    assert "optimizer.lr 0.1 0.2" in lines
    assert not any("AdamW" in line or "seed" in line for line in lines)
    assert "accuracies: no difference" in lines
    same = told(["diff", str(root / "lora"), str(root / "lora")], capsys)
    assert same == "configuration: no difference\naccuracies: no difference\n"


def test_remove_asks(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pass --yes" in refused(["remove", str(root / "lora")], capsys)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "" if "[y/N]" in question else "y")
    assert "nothing was removed" in told(["remove", str(root / "lora")], capsys)
    assert (root / "lora/DONE").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert f"removed: {root / 'lora'}" in told(["remove", str(root / "lora")], capsys)
    assert sorted(each.name for each in root.iterdir()) == ["deep", "new"]


def test_remove_removes_the_runs_that_are_named_and_nothing_else(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "sweep.json").write_text("{}")
    told(["remove", str(root / "lora"), f"{root}/deep/bitfit/", "--yes"], capsys)
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    assert left == ["deep", "new", "new/config.json", "sweep.json"]


def test_remove_refuses_what_it_may_not_remove(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").mkdir()
    (root / "new/notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(root / "lora")
    before = sorted(root.rglob("*"))
    for path, why in (
        (root, "is no run directory, and nothing was removed"),
        (tmp_path / "plain", "is no run directory"),
        (tmp_path / "nowhere", "is no run directory"),
        (root / "lora/bits", "is no run directory"),
        (root / "lora/DONE", "is no run directory"),
        (root / "new", "holds notes.txt, which no run writes; nothing was removed"),
        (tmp_path / "link", "is a link; name the directory that it leads to"),
    ):
        # a run that could be removed is named first
        assert why in refused(["remove", str(root / "deep/bitfit"), str(path), "--yes"], capsys), path
    assert sorted(root.rglob("*")) == before


def test_remove_refuses_a_run_that_is_at_work(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(root / "lora"):
        complained = refused(["remove", str(root / "deep/bitfit"), str(root / "lora"), "--yes"], capsys)
    assert f"lora is in use by process {os.getpid()}" in complained
    assert (root / "deep/bitfit/config.json").exists()
    assert (root / "lora/DONE").exists()
    told(["remove", str(root / "lora"), "--yes"], capsys)


def test_what_training_writes_can_be_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.run(tmp_path / "run", steps=2, eval_every=2)
    assert (run.path / "examples.safetensors").exists()
    told(["remove", str(run.path), "--yes"], capsys)
    assert not run.path.exists()


def test_a_damaged_run_can_be_removed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "lora/config.json").unlink()
    told(["remove", str(root / "lora"), "--yes"], capsys)
    assert not (root / "lora").exists()


def test_a_report_is_about_several_directories_and_some_runs(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "more/compacter", STRATEGIES[1], 3, **SMALL)
    shutil.rmtree(root / "new")
    drawn = []
    monkeypatch.setattr(
        "paretune.report.write_report",
        lambda runs, path, **options: drawn.append((runs, path, options)) or path,
    )
    arguments = ["report", str(root), str(tmp_path / "more"), "--title", "Ours & theirs", "--where", "seed=3"]
    assert main(arguments) == 0
    ((runs, path, options),) = drawn
    assert [run.path.name for run in runs] == ["lora", "compacter"]
    assert path == root / "report.html"
    assert options["title"] == "Ours & theirs"
    assert main(["report", str(root), str(root / "lora")]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert main([*arguments[:-1], "sed=3"]) == 2
    assert "no run has a field 'sed'; did you mean seed?" in capsys.readouterr().err


def process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "paretune", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ},
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_export_writes_the_points_of_the_runs_that_are_asked_for(
    root: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"points.{suffix}"
    ended = process("runs", "export", str(root), "--where", "task=digits; seed=3", "--out", str(out))
    assert (ended.returncode, ended.stdout) == (0, f"4 points of 1 runs: {out.resolve()}\n")
    table = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    stored = pt.load_points(root / "lora")
    assert table["robust"].tolist() == stored["robust"].tolist()
    assert table["attack"].tolist() == stored["attack"].tolist()
    assert {*table["config.seed"]} == {3}
    assert {*table["path"]} == {str(root / "lora")}


def test_an_export_without_an_end_or_a_match_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "must be a file whose name ends with .csv or .parquet" in refused(
        ["export", str(root), "--out", "points.xlsx"], capsys
    )
    assert "no run has strategy=LoRa2; they have BitFit, Compacter, LoRA" in refused(
        ["export", str(root), "--where", "strategy=LoRa2", "--out", str(root / "points.csv")], capsys
    )
    assert not (root / "points.csv").exists()


@pytest.mark.slow
def test_a_report_is_of_the_runs_that_are_asked_for(root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ended = process("report", str(root), "--where", "strategy=BitFit", "--out", str(page))
    assert ended.returncode == 0, ended.stderr
    assert "\nflowers, L∞ ≤ 4/255\n" in ended.stdout
    assert "digits" not in ended.stdout
    assert "LoRA" not in page.with_name("areas.csv").read_text()

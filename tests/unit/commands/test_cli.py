"""The command line, run as a user runs it but in this process."""

import os
import re

import pandas as pd
import pytest
import timm
import torch

import paretune as pt
from paretune.commands import COMMANDS
from paretune.commands.cli import main
from paretune.sweeps.config import CompareConfig, RunConfig, Seeds, Strategies
from paretune.sweeps.grid import directory_name
from tests.synthetic import There, write_runs

# A full path through the command line in seconds: random weights, tiny images, few steps.
SMALL = [
    "--backbone",
    "timm:test_resnet",
    "--img-size",
    "32",
    "--limit",
    "120",
    "--epochs",
    "1",
    "--points",
    "2",
]
SMALL += ["--eval-steps", "2", "--train-steps", "1", "--batch-size", "16"]


@pytest.fixture
def weights(tmp_path) -> str:
    """Weights for timm's smallest ResNet, so that nothing is downloaded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


@pytest.mark.thorough
def test_compare_until_certain(tmp_path, weights, capsys, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0}, raising=False)
    for picture in ("frontier_png", "frontier_pdf"):  # slow
        monkeypatch.setattr(f"paretune.report.page.{picture}", lambda *_, **__: b"")
    out = tmp_path / "runs"
    arguments = [
        "compare",
        *SMALL,
        "--weights",
        weights,
        "--out",
        str(out),
        "--strategies",
        "bitfit,LinearProbe",
    ]
    arguments += ["--until", "certain", "--budget"]
    assert main([*arguments, "100 gradients"]) == 2
    assert "too small for one round: 2 runs" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "2h"]) == 0
    first = capsys.readouterr().out
    assert re.search(r"^round 2, 1 runs: ", first, re.M)
    assert re.search(r"^race: \d of 4 runs, [\d,]+ of [\d,]+ gradient evaluations", first, re.M)
    assert "out after round" in first
    assert 'id="race"' in (out / "report.html").read_text()
    written = (out / "race.json").read_text()
    assert main([*arguments, "2h"]) == 0
    assert (out / "race.json").read_text() == written


@pytest.mark.slow
def test_compare_report_evaluate_and_merge(tmp_path, weights, capsys, monkeypatch) -> None:
    out = tmp_path / "runs"
    arguments = ["compare", *SMALL, "--weights", weights, "--out", str(out), "--seeds", "0", "--workers", "1"]
    arguments += ["--strategies", "bitfit,LoRA(rank=2)"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "LoRA(rank=2)" in first
    assert "has the largest area" in first
    assert "with 95 % confidence the largest true area is among: " in first
    assert "needed: Five or more training seeds" in first
    assert (out / "report.html").stat().st_size > 100_000
    assert (out / "report.png").stat().st_size > 10_000
    for picture in ("frontier_png", "frontier_pdf"):  # slow, and seen once
        monkeypatch.setattr(f"paretune.report.page.{picture}", lambda *_, **__: b"")
    data, time, first = first.split("\n", 2)
    assert data == (
        "digits: 120 images at 32x32: 70 to train on, 20 to select by, 30 to report; "
        "10 classes (0, 1, 2, 3, 4, …) of 12 images"
    )
    assert re.fullmatch(r"2 runs of 4 steps: about \d+ minutes?", time)
    assert main(arguments) == 0  # finished runs are not repeated
    assert capsys.readouterr().out == first

    adapter = next(out.glob("lora*"))
    assert main(["evaluate", str(adapter), "--weights", weights, "--limit", "120", "--steps", "2"]) == 0
    assert "PGD(Linf(2/255), steps=2)" in capsys.readouterr().out
    attacks = "APGD(L2(0.5), steps=3), FGSM(Linf(1/255))"
    options = ["--weights", weights, "--limit", "120", "--attacks", attacks, "--precision", "bf16"]
    options += ["--engine", "eager"]
    assert main(["evaluate", str(adapter), *options]) == 0
    measured = capsys.readouterr().out
    assert "APGD(L2(0.5), steps=3)" in measured
    options += ["--state", str(tmp_path / "state")]
    for _ in range(2):  # the second time it is read
        assert main(["evaluate", str(adapter), *options]) == 0
        assert capsys.readouterr().out == measured
    assert main(["evaluate", str(adapter), *options, "--seed", "1"]) == 2
    assert "is of another run: its seed is 0, now it is 1" in capsys.readouterr().err
    assert main(["adapters", "show", str(adapter)]) == 0
    assert "call: LoRA(rank=2)" in capsys.readouterr().out
    assert main(["adapters", "verify", str(adapter), "--weights", weights]) == 0
    assert (
        main(
            [
                "adapters",
                "merge",
                str(adapter),
                "--weights",
                weights,
                "--out",
                str(tmp_path / "m.safetensors"),
            ]
        )
        == 0
    )
    timm.create_model("test_resnet", num_classes=10, checkpoint_path=str(tmp_path / "m.safetensors"))
    assert main(["adapters", "merge", str(adapter), "--weights", weights]) == 2
    assert "merge needs --out" in capsys.readouterr().err
    assert main(["report", str(out), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").exists()


def test_an_l1_threat_is_trained_and_measured(tmp_path, weights, capsys) -> None:
    out = str(tmp_path / "run")
    arguments = [
        "train",
        *SMALL,
        "--weights",
        weights,
        "--strategy",
        "bitfit",
        "--norm",
        "L1",
        "--epsilon",
        "2",
    ]
    assert main([*arguments, "--out", out]) == 0
    assert "PGD(L1(2.0)" in capsys.readouterr().out
    options = ["--weights", weights, "--limit", "120", "--steps", "2", "--norm", "L1", "--epsilons", "1,3"]
    assert main(["evaluate", out, *options]) == 0
    assert "PGD(L1(3.0)" in capsys.readouterr().out


def test_evaluate_says_what_makes_it_slow(tmp_path, weights, capsys, caplog, monkeypatch) -> None:
    out = str(tmp_path / "run")
    assert main(["train", *SMALL, "--weights", weights, "--strategy", "bitfit", "--out", out]) == 0
    attacks = "PGD(Linf(1/255), steps=1), PGD(L2(0.5), steps=20)"
    arguments = ["evaluate", out, "--weights", weights, "--limit", "120", "--attacks", attacks]
    assert main(arguments) == 0
    assert not [text for text in caplog.messages if "slow" in text]
    monkeypatch.setattr("paretune.evaluation.speed.SLOW", 0.0)
    assert main(arguments) == 0
    (text,) = [text for text in caplog.messages if "slow" in text]
    assert text.startswith("it is slow because PGD(L2(0.5), steps=20) takes ")


def test_reports_are_judged_as_asked(tmp_path, capsys, monkeypatch) -> None:
    """Limits, floors, level and task change what is printed and what the page says, alike."""
    write_runs(tmp_path / "digits", points=3, seeds=(0,), examples=80, examples_select=60)
    write_runs(tmp_path / "flowers", points=3, seeds=(0,), examples=80, examples_select=60, task="flowers")
    drawn = []
    monkeypatch.setattr(
        "paretune.report.write_report", lambda runs, path, **o: drawn.append((len(runs), o)) or path
    )
    assert main(["report", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "digits, L∞ ≤ 4/255" in told
    assert "flowers, L∞ ≤ 4/255" in told
    assert told.count("FullFineTune") >= 2
    options = ["--task", "flowers", "--max-trainable", "400000", "--min-clean", "0.5", "--level", "0.9"]
    assert main(["report", str(tmp_path), *options, "--interval", "bca", "--margin", "0.02"]) == 0
    told = capsys.readouterr().out
    assert "beyond the limits, and left out: FullFineTune()" in told
    assert "90 % interval" in told
    assert "above clean 0.5" in told
    assert "with 90 % confidence the largest true area is among: " in told
    assert "digits" not in told.replace(str(tmp_path), "")
    shared = {
        "min_clean": 0.5,
        "min_robust": 0.0,
        "level": 0.9,
        "margin": 0.02,
        "interval": "bca",
        "by": "area",
        "title": None,
    }
    assert drawn[0][0] == 8
    assert drawn[1] == (3, shared)
    assert main(["report", str(tmp_path), "--max-trainable", "9"]) == 2
    assert "no strategy of task 'digits' has max_trainable=9" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--task", "flower"]) == 2
    assert "did you mean 'flowers'" in capsys.readouterr().err


@pytest.mark.slow
def test_volumes_are_printed_and_decide_where_they_are_asked_to(tmp_path, capsys) -> None:
    there = {"fog 1": There(0.8, "Corruption('fog')"), "art": There(0.6, None, 20)}
    write_runs(tmp_path, points=3, seeds=(0,), examples=80, examples_select=60, elsewhere=there)
    for options, quantity in (([], "area"), (["--by", "volume"], "volume")):
        assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html"), *options]) == 0
        told = capsys.readouterr().out
        assert "volumes below (clean, robust, shifted), from (0, 0, 0)" in told
        assert "slope of shifted accuracy along training, 95% intervals" in told
        assert f"has the largest {quantity}, 0." in told
        assert f"with 95 % confidence the largest true {quantity} is among: " in told
        assert "note: There are 20 images of art; intervals were not verified below 60." in told
    assert [*pd.read_csv(tmp_path / "areas.csv")][-3:] == ["volume", "volume_low", "volume_high"]
    write_runs(tmp_path / "plain", points=2, seeds=(0,), examples=80, examples_select=60, task="plain")
    assert main(["report", str(tmp_path / "plain"), "--by", "volume"]) == 2
    assert "by='volume' needs accuracies on shifted images, but of task 'plain'" in capsys.readouterr().err
    assert main(["compare", "--by", "volume", "--out", str(tmp_path / "new")]) == 2
    assert "by='volume' needs accuracies on shifted images; name some in shifts" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_analyze_prints_the_table_and_writes_areas_and_page(tmp_path, capsys) -> None:
    rows = ["method,set,run,acc,adv"]
    for task in "ab":
        for method, gain in (("x", 0), ("y", 7)):
            for run in range(3):
                rows += [f"{method},{task},{run},{90 - 10 * i},{20 + 9 * i + gain + run}" for i in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    columns = ["--group", "method", "--clean", "acc", "--robust", "adv", "--task", "set", "--seed", "run"]
    out = tmp_path / "out"
    assert main(["analyze", str(tmp_path / "t.csv"), *columns, "--percent", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "a: areas from (0, 0)" in told
    # 0.9 * 0.27 + 0.8 * 0.09 + 0.7 * 0.09 = 0.378, and 0.009 more with each run; t(0.975, 2) * 0.009 / sqrt(3) = 0.022
    assert "y has the largest area, 0.387 (95% interval 0.365 to 0.409; 3 points a frontier, 3 seeds)" in told
    assert told.count("note: Intervals are Student's t") == 1  # said once, of both tasks
    assert "over all tasks: y has the largest mean area, 0.387 over 2 tasks (mean rank 1.00)" in told
    assert "these tasks are too alike to say how certain this is" in told  # they are copies
    areas = pd.read_csv(out / "areas.csv")
    assert [*areas] == ["task", "group", "area", "low", "high", "k", "reference_clean", "reference_robust"]
    assert [*areas["group"]] == ["y", "x", "y", "x"]
    assert (out / "report.html").stat().st_size < 1_500_000
    assert not (out / "tables.tex").exists()
    options = ["--percent", "--reference", "0.1,0", "--out", str(out), "--select", "acc2,adv2"]
    assert main(["analyze", str(tmp_path / "t.csv"), *columns, *options]) == 2
    assert "no column 'acc2'" in capsys.readouterr().err
    shifted = ["--shifted", "adv2", "--percent", "--out", str(out)]
    (tmp_path / "s.csv").write_text("\n".join([rows[0] + ",adv2", *(row + ",50" for row in rows[1:])]))
    assert main(["analyze", str(tmp_path / "s.csv"), *columns, *shifted]) == 0
    told = capsys.readouterr().out
    assert "y has the largest area, 0.387" in told
    assert (
        "y has the largest volume, 0.194 (95% interval 0.182 to 0.205; 3 points a frontier, 3 seeds)" in told
    )
    areas = pd.read_csv(out / "areas.csv")
    assert areas["volume"].to_numpy() == pytest.approx(areas["area"].to_numpy() / 2)
    page = (out / "report.html").read_text("utf-8")
    assert ">Volume<" in page
    assert "y has the largest volume, 0.194" in page


def test_train_writes_a_run_and_goes_on_with_it(tmp_path, weights, capsys) -> None:
    arguments = [
        "train",
        *SMALL,
        "--weights",
        weights,
        "--out",
        str(tmp_path / "run"),
        "--strategy",
        "Compacter(n=2)",
    ]
    assert main(arguments) == 0
    assert "adapter:" in capsys.readouterr().out
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "5"]) == 2
    assert "another configuration" in capsys.readouterr().err


def test_a_printed_configuration_reads_back(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "compare",
                "--strategies",
                "lora(rank=3)",
                "--optimizer.lr",
                "0.01",
                "--seeds",
                "3,4",
                "--print-config",
            ]
        )
    text = capsys.readouterr().out
    assert "strategies: LoRA(rank=3)" in text
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--config", str(tmp_path / "c.yaml"), "--print-config"])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--epsilon", "8"], "did you mean 8/255"),
        (["compare", "--epsilon", "four"], "epsilon must be a number or a fraction"),
        (["compare", "--strategies", "lorra"], "did you mean LoRA"),
        (["compare", "--strategies", "lora,lora"], "each one once"),
        (["compare", "--seeds", "a"], "seeds"),
        (["compare", "--epochs", "many"], "epochs"),
        (["compare", "--data", "digitz"], "digits"),
        (["compare", "--backbone", "vit"], "name must be timm:NAME"),
        (["compare", "--nonsense"], "nonsense"),
        (["train", "--strategy", "LoRA(rank=0)"], "rank must be a whole number"),
        (["train", "--schedule", "two_hinge(2)"], "start=2"),
        (["train", "--schedule", "constant"], "Choices: TwoHinge, Linear, Fixed, Auto, Uniform"),
        (
            ["train", "--schedule", "auto", "--epochs", "5"],
            "the attack begins after 6 epochs at the earliest",
        ),
        (
            ["compare", "--schedule", "auto", "--epochs", "5"],
            "the attack begins after 6 epochs at the earliest",
        ),
        (["compare", "--freezing", "roli", "--train-steps", "0"], "or LPFT(0.25)"),
        (["train", "--freezing", "lpft(2)"], "probe must be a fraction"),
        (["train", "--schedule.start", "0.1"], "such as 'TwoHinge(start=0.1)'"),
        (["evaluate", "/no/such/adapter"], "is not an adapter"),
        (["adapters", "eat", "x"], "eat"),
        (["report", "/no/such/runs"], "/no/such/runs"),
        (["compare", "--interval", "wald"], "interval"),
        (["analyze", "none.csv"], "there is no file none.csv"),
        (["analyze", "none.csv", "--reference", "0.1"], "reference must be two"),
        (["analyze", "none.csv", "--reference", "a,b"], "reference must be two numbers"),
        (["analyze", "none.csv", "--select", "val"], "select must be two"),
        (["compre"], "compre"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message: str, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("paretune: error: ")
    assert message in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_every_option_has_help(capsys) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([*command.split(), "--help"])
        text = capsys.readouterr().out
        options = [line for line in text.splitlines() if line.startswith("  --") and "CONFIG" not in line]
        flat = " ".join(text.split())
        for line in options:
            name = line.split()[0]
            told = flat.split(f" {name} ", 2)[-1]
            assert "(type:" in told or "print_config" in name, f"{command} {name}"
            assert not told.split("(type:")[0].strip().startswith("("), f"{command} {name} has no help"


def test_info_and_version(capsys) -> None:
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out
    assert main([]) == 0
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])


def test_a_grid_is_every_strategy_with_every_seed_in_its_own_directory() -> None:
    config = CompareConfig(strategies=Strategies((pt.BitFit(), pt.LoRA())), seeds=Seeds((0, 1, 2)))
    runs = config.runs()
    assert len(runs) == 6
    assert len({directory_name(run) for run in runs}) == 6
    assert directory_name(RunConfig(strategy=pt.LoRA(rank=4))).startswith("lora-rank-4-seed0-")
    assert directory_name(RunConfig(epochs=1.0)) != directory_name(RunConfig(epochs=2.0))
    assert directory_name(RunConfig()) == directory_name(RunConfig(engine="graph"))
    assert directory_name(RunConfig(engine="compiled")) != directory_name(RunConfig())


def test_reading_adapters_needs_no_backbone(tmp_path, capsys) -> None:
    assert os.listdir(tmp_path) == []
    assert main(["adapters", "show", str(tmp_path)]) == 2
    assert "paretune.json" in capsys.readouterr().err


def test_the_engine_that_is_named_reaches_training(tmp_path, weights, monkeypatch) -> None:
    named = []

    def note(*_, engine, **__):
        named.append(engine)
        raise RuntimeError("that is enough")

    monkeypatch.setattr("paretune.sweeps.config.train", note)
    options = [*SMALL, "--weights", weights, "--out", str(tmp_path / "out")]
    assert main(["train", *options, "--engine", "graph"]) == 2
    assert named == ["graph"]
    assert {run.engine for run in CompareConfig(engine="compiled").runs()} == {"compiled"}


@pytest.mark.thorough
def test_compare_names_the_runs_that_were_stopped(tmp_path, weights, capsys, monkeypatch) -> None:
    """Under an attack of nearly all that is possible, nothing is learnt."""
    for picture in ("frontier_png", "frontier_pdf"):
        monkeypatch.setattr(f"paretune.report.page.{picture}", lambda *_, **__: b"")
    failing = ["--epsilon", "250/255", "--schedule", "fixed", "--stop-on-failure", "--epochs", "5"]
    failing += ["--strategies", "bitfit"]
    arguments = [
        *SMALL,
        "--weights",
        weights,
        "--out",
        str(tmp_path / "runs"),
        "--seeds",
        "0",
        "--workers",
        "1",
    ]
    assert main(["compare", *arguments, *failing]) == 0
    told = capsys.readouterr().out
    assert "transfer failure: clean accuracy" in told
    assert re.search(r"step (\d+): stopped after \1 of \d+ steps: transfer failure", told)
    assert (tmp_path / "runs/report.html").exists()

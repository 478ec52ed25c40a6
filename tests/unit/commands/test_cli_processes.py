"""Every command as a process of its own, with the arguments that it needs and no others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paretune as pt
from paretune.commands import COMMANDS
from paretune.interchange import save_peft
from tests.synthetic import STRATEGIES, There, write_runs

# What a user types. DIR stands for an adapter of ours, PEFT for one of peft, RUNS for finished runs, RUN and OTHER for one
# each, SHIFTED for runs that measured shifted images, TABLE for a table.
NEEDED = {
    "average": "average DIR --wise-ft 0,0.5,1",
    "distance": "distance digits fashion-mnist --img-size 24 --limit 100 --resamples 10",
    "report": "report RUNS",
    "analyze": "analyze TABLE",
    "runs list": "runs list RUNS",
    "runs show": "runs show DIR",
    "runs diff": "runs diff RUN OTHER",
    "runs verify": "runs verify RUNS",
    "runs export": "runs export RUNS",
    "runs remove": "runs remove OTHER --yes",
    "info": "info",
    "selftest": "selftest",
    "adapters show": "adapters show DIR",
    "adapters verify": "adapters verify DIR",
    "adapters import": "adapters import PEFT --backbone efficientnet-lite0 --image-size 24 --out imported",
    "adapters export": "adapters export DIR --format timm --out exported",
    "adapters merge": "adapters merge DIR --out merged.safetensors",
    "adapters push": "adapters push DIR --to user/repo --dry-run",
}
# Of full length where this is slow; `paretune compare` in full is the first thing that .ci/run does.
SHORT = "--limit 120 --epochs 0.5 --batch-size 16 --points 1 --train-steps 1 --eval-steps 1"
QUICK = {
    "train": f"train {SHORT}",
    "plan": f"plan {SHORT} --seeds 0 --strategies bitfit",
    "evaluate": "evaluate DIR --limit 60 --steps 1",
}
SLOW = {
    "train": "train",
    "plan": "plan",
    "compare": f"compare {SHORT} --seeds 0 --shifts Grey() --by volume",
    "evaluate": "evaluate DIR",
    "inherit": "inherit --tasks Invert(),Rotation(90) --pretrain digits --pretrain-epochs 0.5 --limit 120 --epochs 0.5 "
    "--batch-size 16 --eval-steps 1 --methods FullFineTune,FullFineTune+WiSE(0.5),Soup()",
}
SERVING = {"watch": "watch RUNS"}
# Every option of how to train, with what it does not do by default.
TRAINING = (
    f"train {SHORT} --strategy BitFit --objective TRADES(beta=6)+0.1*L2SP() --schedule linear(0.5) --freezing lpft(0.5) "
    "--ema 0.9 --keep harmonic --patience 3 --accumulate 2 --augmentation flip+crop --balance weights",
    "train --limit 120 --epochs 3 --batch-size 16 --points 2 --train-steps 1 --eval-steps 1 "
    "--objective ATTA()+EWC(examples=9) --schedule auto(patience=1,tolerance=0.5) --mixed-precision bf16 --awp 0.005 "
    "--stop-on-failure --checkpointing "
    "--optimizer.schedule one-cycle --optimizer.layer-decay 0.8 --optimizer.head-lr 0.01 --balance sampling",
    f"train {SHORT} --objective MART()+0.5*FARE()+LwF() --schedule uniform --freezing gradual_unfreezing(0.5) --lr 0.001",
    f"train {SHORT} --data digits --data again=digits --img-size 24 --task-weights digits=1,again=0.5 "
    "--task-batch-sizes digits=16,again=8 --strategy BitFit",
    f"train {SHORT} --objective Natural(label_smoothing=0.1)+FeatureDistillation() --strategy FacT --backbone dinov2-small "
    "--img-size 28",
    f"train {SHORT} --strategy BitFit --shifts Corruption('fog'),Rotation(30) --shift-limit 10 --attack-elsewhere "
    "--reuse --confirm APGD(Linf(2/255),steps=2)",
)
TASKS = f"plan {SHORT} --data digits --data again=digits --img-size 24 --task-weights size --seeds 0 --strategies bitfit"
MEASURING = (
    "evaluate DIR --limit 60 --steps 1 --epsilons 1/255 --shifts Corruptions('common'),Grey() --baseline alexnet",
    "evaluate DIR --limit 60 --steps 1 --shifts Invert() --attack-elsewhere",
)
TABLES = ("report RUNS --tables --out report.html", "analyze TABLE --tables")
# Quoted as a shell would need it.
RACE = [
    "compare",
    *SHORT.split(),
    "--strategies",
    "bitfit,LinearProbe",
    "--seeds",
    "0,1,2",
    "--until",
    "certain",
]
RACE += ["--budget", "1e9 gradients", "--workers", "1", "--out", "raced"]
VOLUMES = ("report SHIFTED --by volume", "analyze TABLE --shifted art")
LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]
CASES = [
    *(pytest.param(text, id=f"{text.split()[0]} with tables") for text in TABLES),
    *(pytest.param(text, id=text) for text in VOLUMES),
    *(
        pytest.param(text, id=name, marks=LONG if name in ("average", "distance", "selftest") else [])
        for name, text in NEEDED.items()
    ),
    *(pytest.param(text, id=f"{name}, briefly") for name, text in QUICK.items()),
    pytest.param(TASKS, id="plan of several tasks", marks=LONG),
    *(
        pytest.param(text, id=f"train with options {number}", marks=LONG)
        for number, text in enumerate(TRAINING, 1)
    ),
    *(
        pytest.param(text, id=f"evaluate with shifts {number}", marks=LONG)
        for number, text in enumerate(MEASURING, 1)
    ),
    *(pytest.param(text, id=name, marks=LONG) for name, text in SLOW.items()),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The directories and files that stand for themselves above."""
    root = tmp_path_factory.mktemp("written")
    model = pt.load_backbone("efficientnet-lite0", num_classes=10, img_size=24)
    pt.adapt(model, pt.LoRA(rank=2, targets=("*.conv_pw",)))  # which peft has too
    data = pt.load_data("digits", img_size=24, limit=120)
    attack = pt.PGD(pt.Linf(1 / 255), steps=1)
    pt.train(model, data, pt.training.Natural(), out=root / "run", steps=1, attacks=[attack], progress=False)
    save_peft(model, root / "peft")
    write_runs(root / "runs", points=2, seeds=(0,), examples=60, examples_select=40)
    write_runs(root / "few", STRATEGIES[:1], points=1, examples=60, examples_select=40)
    there = {"fog 1": There(0.8, "Corruption('fog', severity=1)")}
    write_runs(root / "shifted", points=2, seeds=(0,), examples=60, examples_select=40, elsewhere=there)
    rows = [f"{name},{0.9 - i / 9},{i / 9},{0.6 - i / 9}" for name in "ab" for i in range(3)]
    rows.insert(0, "strategy,clean,robust,art")
    (root / "table.csv").write_text("\n".join(rows))
    return {
        "DIR": str(root / "run"),
        "PEFT": str(root / "peft"),
        "RUNS": str(root / "runs"),
        "SHIFTED": str(root / "shifted"),
        "RUN": str(root / "few/0-seed0"),
        "OTHER": str(root / "few/0-seed1"),
        "TABLE": str(root / "table.csv"),
    }


def started(arguments: list[str], place: Path) -> subprocess.Popen[str]:
    source = str(Path(pt.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "paretune", *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_every_command_and_action_is_tried_here() -> None:
    assert {*NEEDED, *SLOW, *SERVING, "completion"} == {*COMMANDS}  # completion has tests of its own


@pytest.mark.parametrize("text", CASES)
def test_it_works_with_what_it_needs(text: str, written: dict[str, str], tmp_path: Path) -> None:
    process = started([written.get(word, word) for word in text.split()], tmp_path)
    told, complained = process.communicate()
    assert process.returncode == 0, complained
    assert told
    assert "Traceback" not in complained
    assert "error" not in complained


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_a_race_that_is_killed_goes_on(tmp_path: Path) -> None:
    def rounds(place: Path) -> Any:
        content = json.loads((place / "raced/race.json").read_text())
        return content["ended"], [{**each, "seconds": 0} for each in content["rounds"]]

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    told, complained = started(RACE, tmp_path / "whole").communicate()
    assert "race: " in told, complained
    process = started(RACE, tmp_path / "killed")
    while not (tmp_path / "killed/raced/race.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/raced").glob("*/DONE")}
    assert len(first) >= 2
    again = started(RACE, tmp_path / "killed")
    _, complained = again.communicate()
    assert again.returncode == 0, complained
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert rounds(tmp_path / "killed") == rounds(tmp_path / "whole")
    assert "Race" in (tmp_path / "killed/raced/report.html").read_text()


@pytest.fixture
def watching(written: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = started([written.get(word, word) for word in SERVING["watch"].split()], tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_watch_serves_until_it_is_interrupted(watching: subprocess.Popen[str]) -> None:
    assert watching.stdout is not None
    assert "http://127.0.0.1:" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, complained = watching.communicate()
    assert watching.returncode == 0
    assert complained == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epsilon", "-1/255"], "epsilon='-1/255'"),
        (
            ["compare", "--until", "certain", "--budget", "9 gradients", "--limit", "120"],
            "budget='9 gradients' is too small for one round: 4 runs",
        ),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    process = started(arguments, tmp_path)
    told, complained = process.communicate()
    assert process.returncode == 2
    assert told == ""
    assert complained.startswith("paretune: error: ")
    assert message in complained
    assert complained.count("\n") == 1
    assert not list(tmp_path.iterdir())

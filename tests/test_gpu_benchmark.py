"""``benchmarks/gpu.py`` checks before it times, outlives its parts, and says in rows what went wrong."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu.py"
MISSING = ("torchattacks", "foolbox", "peft", "pyautoattack")  # that a machine with a GPU may lack


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, dtype={"share_of_peak": str})


def check_rows(rows: pd.DataFrame) -> None:
    """What holds of any rows, and of those of a CPU."""
    assert {
        "date",
        "paretune",
        "torch",
        "timm",
        "triton",
        "python",
        "processor",
        "device",
        "driver",
        "cuda",
    } <= {*rows}
    assert set(rows["device"]) == {"cpu"}
    assert set(rows["driver"]) == {"none"}
    assert set(rows["status"]) <= {"measured", "passed", "left out", "not installed"}
    timed = rows[(rows["status"] == "measured") & (rows["seconds"] != "")]
    assert len(timed)
    for row in timed.itertuples():
        lowest, middle, highest = (float(value) for value in (row.lowest, row.seconds, row.highest))
        assert 0 < lowest <= middle <= highest
        assert int(row.rounds) >= 1
        if row.against:
            (peer,) = timed[
                (timed["section"] == row.section)
                & (timed["work"] == row.work)
                & (timed["implementation"] == row.against)
                & (timed["precision"] == row.precision)
                & (timed["layout"] == row.layout)
            ]["seconds"]
            assert float(row.ratio) == pytest.approx(float(peer) / middle, rel=1e-3)
        if row.share_of_peak:
            assert float(row.share_of_peak) == pytest.approx(float(row.rate) / float(row.peak), rel=1e-3)


def checked_first(rows: pd.DataFrame, section: str, implementation: str) -> None:
    """Each work of ours that is timed has passed its check before."""
    ours = rows[(rows["section"] == section) & rows["implementation"].str.startswith(implementation)]
    passed = {(row.work, row.precision, row.layout) for row in ours.itertuples() if row.status == "passed"}
    timed = {(row.work, row.precision, row.layout) for row in ours.itertuples() if row.status == "measured"}
    assert timed
    assert timed <= passed


@pytest.mark.thorough
def test_a_part_runs_on_a_cpu_after_the_peaks(tmp_path: Path) -> None:
    done = run("--small", "--out", str(tmp_path / "gpu.csv"), "--parts", "loop", "--budget", "800")
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "gpu.csv")
    check_rows(rows)
    assert [*rows["section"].unique()] == ["peaks", "loop"]
    checked_first(rows, "loop", "paretune")


@pytest.mark.slow
def test_all_parts_run_on_a_cpu_without_what_only_tests_need(tmp_path: Path) -> None:
    """The command line and hatchling are not needed either."""
    for name in (*MISSING, "jsonargparse"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r})\n")
    out = tmp_path / "gpu.csv"
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = run("--small", "--out", str(out), "--budget", "800", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    rows = read(out)
    check_rows(rows)
    table = re.findall(r"^([a-z-]+)  +\S.* .*$", SCRIPT.read_text(encoding="utf-8"), flags=re.M)
    assert [*rows["section"].unique()] == [name for name in table if name != "part"]
    for section in ("step", "pgd-vit", "pgd-convnet", "loop"):
        checked_first(rows, section, "paretune")
    for section in ("pgd-vit", "lora", "pgd-convnet", "autoattack"):
        of_part = rows[rows["section"] == section]
        assert "not installed" in set(of_part["status"])
        assert ((of_part["implementation"] == "paretune") & (of_part["status"] == "measured")).any()
    assert {"fp32", "bf16"} == set(rows.loc[rows["section"] == "step", "precision"])
    assert {"NCHW", "channels_last"} == set(rows.loc[rows["section"] == "step", "layout"])
    assert "Inductor" in set(rows["implementation"])


@pytest.mark.slow
def test_other_libraries_are_timed_beside_ours_and_a_lora_of_peft_computes_the_same(tmp_path: Path) -> None:
    parts = ("pgd-vit", "lora", "autoattack")
    done = run("--small", "--out", str(tmp_path / "gpu.csv"), "--parts", *parts, "--budget", "800")
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "gpu.csv")
    check_rows(rows)
    (check,) = rows[(rows["section"] == "lora") & (rows["status"] == "passed")]["note"]
    assert re.fullmatch(
        r"relative difference from peft: logits \S+, gradient of the images \S+, .*factors \S+", check
    )
    timed = rows[rows["status"] == "measured"]
    others = {"autograd.grad loop, autocast", "torchattacks, plain model", "foolbox, bfloat16 weights"}
    assert others | {"peft, .backward() loop", "paretune", "pyautoattack"} <= {*timed["implementation"]}


def test_what_fails_crashes_hangs_or_comes_too_late_is_a_row_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, shared = module("gpu", monkeypatch), module("_gpu", monkeypatch)
    record = shared.recorder(tmp_path / "gpu.csv", small=True)
    codes = {
        "raises": "raise OSError('no such kernel')",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "hangs": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])",
        "says so": "import sys; sys.exit(3)",
        "late": "raise SystemExit",
        "works": "print('fine')",
    }
    parts = {name: gpu.Part(0, 1 if name == "hangs" else 60) for name in codes} | {"late": gpu.Part(500, 500)}
    began = time.monotonic()
    failed = gpu.run_parts(parts, record, 120, lambda name, seconds: [sys.executable, "-c", codes[name]])
    assert time.monotonic() - began < 300  # not the sleep of the part that hangs, or of its child
    assert failed == ["raises", "killed", "hangs", "says so"]
    rows = read(tmp_path / "gpu.csv").set_index("section")
    assert [*rows.index] == ["raises", "killed", "hangs", "late"]
    assert {**rows["status"]} == {
        "raises": "failed",
        "killed": "failed",
        "hangs": "failed",
        "late": "left out",
    }
    assert rows.loc["raises", "note"] == "exit status 1: OSError: no such kernel"
    assert rows.loc["killed", "note"] == "killed by SIGKILL; last message: no message"
    assert rows.loc["hangs", "note"] == "stopped after 1 s; last message: no message"
    assert re.fullmatch(r"\d+ of 120 s are left, and it needs about 500", rows.loc["late", "note"])


def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    shared = module("_gpu", monkeypatch)
    record = shared.recorder(tmp_path / "gpu.csv", small=True)
    values = {"device": torch.device("cpu"), "on_gpu": False, "small": True, "until": time.monotonic() + 1000}
    return shared.Bench("part", record, **(values | changes))


def pretend_a_clock_and_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the benchmark asks of a GPU beside computing."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = time.perf_counter()

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: "Event") -> float:
            return 1000 * (end.at - self.at)

    answers = {"synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None}
    answers |= {"memory_allocated": 100, "max_memory_allocated": 350}
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)


def test_no_step_in_plain_pytorch_passes_for_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_clock_and_a_memory(monkeypatch)
    kernels = module("_gpu_kernels", monkeypatch)
    monkeypatch.setattr(kernels, "_compiled", lambda step: kernels.reference.pgd_step)
    there = bench(tmp_path, monkeypatch, on_gpu=True, peaks={"bytes": 1e9})
    kernels.step(there)
    rows = read(tmp_path / "gpu.csv")
    kernel = rows[rows["implementation"] == kernels.KERNEL]
    assert len(kernel) == 8
    assert set(kernel["status"]) == {"failed"}
    assert kernel["note"].str.startswith("not by the kernel: the kernel needs images on a CUDA device").all()
    assert there.failures == 8
    timed = rows[rows["seconds"] != ""]
    assert set(timed["implementation"]) == {"eager PyTorch", "Inductor"}


def test_a_kernel_that_computes_otherwise_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = module("_gpu_kernels", monkeypatch)
    right = kernels.pgd_step

    def wrong(step: Any) -> Any:
        moved, entered = right(step)
        return moved.nextafter(torch.ones(())), entered

    monkeypatch.setattr(kernels, "pgd_step", wrong)
    monkeypatch.setattr(kernels, "_compiled", lambda step: right)
    kernels.step(bench(tmp_path, monkeypatch))
    rows = read(tmp_path / "gpu.csv")
    linf = rows[rows["work"].str.startswith("Linf") & rows["implementation"].str.startswith("paretune")]
    assert set(linf["status"]) == {"failed"}
    assert linf["note"].str.contains("bit for bit: differs by").all()


@pytest.mark.slow
def test_memory_and_all_precisions_are_measured_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_clock_and_a_memory(monkeypatch)
    training, flags = module("_gpu_training", monkeypatch), torch.backends.cuda.matmul
    before = flags.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        training.lora(bench(tmp_path, monkeypatch, on_gpu=True))
        assert not flags.allow_tf32
    finally:
        flags.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    rows = read(tmp_path / "gpu.csv")
    timed = rows[rows["status"] == "measured"]
    assert {*zip(timed["implementation"], timed["precision"], strict=True)} == {
        (side, precision) for side in (training.PEFT, "paretune") for precision in ("bf16", "tf32", "fp32")
    }
    assert set(timed["static_memory_bytes"].astype(int)) == {0}
    assert set(timed["extra_memory_bytes"].astype(int)) == {250}


def test_a_part_whose_time_is_over_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = bench(tmp_path, monkeypatch, until=time.monotonic() - 1)
    assert [*late.in_each_precision("a work")] == []
    rows = read(tmp_path / "gpu.csv")
    assert {*zip(rows["status"], rows["precision"], strict=True)} == {
        ("left out", "bf16"),
        ("left out", "fp32"),
    }


def test_one_that_fails_in_its_turn_is_a_row_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("out of\n memory")

    there = bench(tmp_path, monkeypatch)
    assert set(there.timed("a work", {"one": fails, "other": lambda: sum(range(1000))}, against="one")) == {
        "other"
    }
    rows = read(tmp_path / "gpu.csv").set_index("implementation")
    assert rows.loc["one", ["status", "note"]].tolist() == ["failed", "RuntimeError: out of memory"]
    assert rows.loc["other", ["status", "against"]].tolist() == ["measured", ""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "everything"], "invalid choice: 'everything'"),
        (["--budget", "0"], "--budget must be above 0 seconds, got 0"),
        (["--out", "{}/old.csv"], "old.csv has other columns; move it away to start anew"),
        (["--out", "{}/none/gpu.csv"], "none is no directory"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "old.csv").write_text("date,seconds\n")
    gpu = module("gpu", monkeypatch)
    monkeypatch.setattr(gpu, "run_process", lambda *_: pytest.fail("a part has run"))
    monkeypatch.setattr(sys, "argv", ["gpu.py", *[option.format(tmp_path) for option in options]])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_of_a_part_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, shared, kernels = (module(name, monkeypatch) for name in ("gpu", "_gpu", "_gpu_kernels"))
    monkeypatch.setattr(kernels, "peaks", lambda bench: bench.peaks.update(bytes=1e9) or 1 / 0)
    record = shared.recorder(tmp_path / "gpu.csv", small=True)
    threads = torch.get_num_threads()
    assert gpu.run_part("peaks", record, tmp_path, small=True, seconds=10) == gpu.ROWS_SAY_SO
    torch.set_num_threads(threads)
    (row,) = read(tmp_path / "gpu.csv").itertuples()
    assert (row.status, row.note) == ("failed", "ZeroDivisionError: division by zero")
    assert json.loads((tmp_path / gpu.PEAKS).read_text()) == {"bytes": 1e9}  # for the parts that follow


def test_rows_of_a_known_gpu_have_the_share_of_its_data_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = bench(tmp_path, monkeypatch, peaks={"bf16": 5e14})
    there.record.shared["device"] = "NVIDIA H200"
    monkeypatch.setattr(there, "seconds_of", lambda _work, _calls: 2.0)
    there.timed("a work", {"one": SimpleNamespace}, against="", amount=8e14, unit="FLOP/s", peak="bf16")
    (row,) = read(tmp_path / "gpu.csv").itertuples()
    assert float(row.rate) == 4e14
    assert float(row.share_of_peak) == pytest.approx(0.8)
    assert float(row.share_of_datasheet_peak) == pytest.approx(4e14 / 989.4e12, rel=1e-3)

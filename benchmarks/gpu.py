"""Everything that is worth a number on a GPU, in at most nine minutes. Of a machine with one GPU and pip:

    pip install -e ".[test]" && paretune selftest --gpu && python benchmarks/gpu.py

    python benchmarks/gpu.py --parts step pgd-vit         # some of the parts
    python benchmarks/gpu.py --small --out /tmp/gpu.csv   # does it run? tiny models on the CPU, numbers of no meaning

Rows are appended to benchmarks/gpu.csv while it runs, with date, versions, device and driver. Weights are random, and
nothing is downloaded. Where nothing can be installed, `PYTHONPATH=src python benchmarks/gpu.py` does with what is there.

============  =========================================================================================================
part          work
============  =========================================================================================================
peaks         what memory and matrix units do at best here; goes first whatever parts are asked for
selftest      the checks of `paretune selftest --gpu`, one row each
step          the fused step against eager PyTorch and Inductor: L-inf and L2, float32 and bfloat16, both layouts
pgd-vit       PGD-10 on ViT-B/16 at 224 px against a plain loop, torchattacks and foolbox
lora          one step of adversarial training of a LoRA on the same ViT, time and memory, against peft and .backward()
pgd-convnet   PGD-10 on ConvNeXt-T at 224 px
loop          ten steps of small networks: eager, compiled, and as one CUDA graph
autoattack    AutoAttack at a reduced budget on 512 images against the reference
compiled      PGD-10 on the ViT when both sides compile
============  =========================================================================================================

What is compared is measured in turns in one process, after a check that it does what it shall; a row has the median and the
range. Times are those of CUDA events. All sides take the same precision: "fp32" is IEEE, "tf32" lets the GPU round the
products of all float32 work to TF32, "bf16" is bfloat16 weights, or autocast where the row says so. A share is that of the
highest rate that this run has measured with a large copy (step) or a square matrix product (passes), and beside it that of
NVIDIA's data sheet, where the device has one here.

A row's status is measured, passed (a check), failed, not installed, or left out. A part has a process of its own: what
fails, crashes or takes too long becomes a row with the reason, and the other parts go on. No part starts that the budget
would not hold. The exit status is 1 if a row says failed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from _gpu import Bench, in_short, recorder
from _record import Recorder

HERE = Path(__file__).parent
ROWS_SAY_SO = 3  # exit status of a part that went to its end, and whose rows hold a failure
PEAKS = "peaks.json"


@dataclass(frozen=True)
class Part:
    """Seconds on a GPU: what it needs to be worth a start, and what it may take."""

    least: float
    most: float


PARTS = {
    "peaks": Part(10, 40),
    "selftest": Part(30, 150),
    "step": Part(30, 100),
    "pgd-vit": Part(30, 90),
    "lora": Part(30, 90),
    "pgd-convnet": Part(30, 90),
    "loop": Part(40, 120),
    "autoattack": Part(40, 100),
    "compiled": Part(60, 200),
}


def run_part(name: str, record: Recorder, scratch: Path, *, small: bool, seconds: float) -> int:
    """One part in this process; returns its exit status."""
    import _gpu_attacks
    import _gpu_kernels
    import _gpu_training

    works: dict[str, Callable[[Bench], None]] = {
        "peaks": _gpu_kernels.peaks,
        "selftest": _gpu_kernels.self_test,
        "step": _gpu_kernels.step,
        "pgd-vit": _gpu_attacks.pgd_vit,
        "lora": _gpu_training.lora,
        "pgd-convnet": _gpu_attacks.pgd_convnet,
        "loop": _gpu_kernels.loop,
        "autoattack": _gpu_attacks.autoattack,
        "compiled": _gpu_attacks.compiled,
    }
    torch.manual_seed(0)
    on_gpu = torch.cuda.is_available() and not small
    if not on_gpu:
        torch.set_num_threads(1)
    device = torch.device("cuda" if on_gpu else "cpu")
    kept = scratch / PEAKS
    peaks = json.loads(kept.read_text()) if kept.exists() else {}
    # Rounds that need not be end early enough for the rows of what is under way.
    bench = Bench(name, record, device, on_gpu, not on_gpu, time.monotonic() + 0.7 * seconds, peaks)
    try:
        works[name](bench)
    except Exception as error:  # whatever it is, it is a row
        bench.row(f"part {name}", "", "failed", note=in_short(error))
        raise
    finally:
        if name == "peaks":
            kept.write_text(json.dumps(bench.peaks))
    return ROWS_SAY_SO if bench.failures else 0


def run_parts(
    parts: dict[str, Part],
    record: Recorder,
    budget: float,
    command: Callable[[str, float], Sequence[str]],
    *,
    patient: bool = False,
) -> list[str]:
    """Each part in a process of its own; returns the names of those that failed.

    Args:
        parts: in order.
        record: of the rows about parts that had no start or no end.
        budget: seconds for all of them.
        command: starts a part, given its name and the seconds it may take.
        patient: give each part what is left of the budget, as on a machine of unknown speed.
    """
    began, failed = time.monotonic(), list[str]()
    for name, part in parts.items():
        left = budget - (time.monotonic() - began)
        if left < (0 if patient else part.least):
            note = f"{left:.0f} of {budget:.0f} s are left, and it needs about {part.least:.0f}"
            record.row(name, f"part {name}", "", status="left out", note=note)
            continue
        seconds = left if patient else min(part.most, left)
        print(f"== {name}, at most {seconds:.0f} s", file=sys.stderr, flush=True)
        reason = run_process(command(name, seconds), seconds)
        if reason is not None:
            failed.append(name)
            if reason:
                record.row(name, f"part {name}", "", status="failed", note=reason)
    return failed


def run_process(command: Sequence[str], seconds: float) -> str | None:
    """Run ``command``, and end it and its own processes after ``seconds``.

    Returns:
        None if all went well, why it ended otherwise, or nothing ("") if its rows say so already.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # there may be compilers left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        lines = errors.read().splitlines()
    print("\n".join(lines[-30:]), file=sys.stderr, flush=True)
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    if status is None:
        return f"stopped after {seconds:.0f} s; last message: {last}"[:300]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; last message: {last}"[:300]
    return None if status == 0 else "" if status == ROWS_SAY_SO else f"exit status {status}: {last}"[:300]


def main() -> None:
    """Read the arguments, and run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny models on the CPU; so it is where there is no GPU"
    )
    parser.add_argument("--out", type=Path, default=HERE / "gpu.csv", help="rows are appended to this file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="for all parts together")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # of a part in its process
    chosen = parser.parse_args()
    if not chosen.budget > 0:
        parser.error(f"--budget must be above 0 seconds, got {chosen.budget:g}")
    small = chosen.small or not torch.cuda.is_available()
    record = recorder(chosen.out, small=small)
    if chosen.scratch:
        (name,) = chosen.parts
        sys.exit(run_part(name, record, chosen.scratch, small=small, seconds=chosen.budget))
    try:
        record.check()
    except ValueError as error:
        parser.error(f"--out: {error}")
    with tempfile.TemporaryDirectory() as scratch:

        def command(name: str, seconds: float) -> list[str]:
            options = [
                "--out",
                str(chosen.out),
                "--scratch",
                scratch,
                "--budget",
                str(seconds),
                "--parts",
                name,
            ]
            return [sys.executable, __file__, *options, *["--small"] * small]

        parts = {name: part for name, part in PARTS.items() if name == "peaks" or name in chosen.parts}
        failed = run_parts(parts, record, chosen.budget, command, patient=small)
    print(f"rows in {chosen.out}", file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their rows say why")


if __name__ == "__main__":
    main()

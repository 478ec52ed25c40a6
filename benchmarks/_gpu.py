"""What the parts of ``gpu.py`` share: the device and its peaks, a clock, turns that a failure does not end, rows."""

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import paretune as pt
from _record import Recorder, Work
from paretune.attacks.copy.precision import Precision

PACKAGES = ("triton", "torchattacks", "foolbox", "peft", "pyautoattack")
COLUMNS = (
    *(
        "status",
        "precision",
        "layout",
        "images",
        "rounds",
        "seconds",
        "lowest",
        "highest",
        "images_per_second",
    ),
    *(
        "against",
        "ratio",
        "rate",
        "unit",
        "peak",
        "share_of_peak",
        "datasheet_peak",
        "share_of_datasheet_peak",
    ),
    *("static_memory_bytes", "extra_memory_bytes", "note"),
)

BYTES = "B/s"
OPERATIONS = "FLOP/s"

#: By NVIDIA's data sheets, dense: memory bandwidth, and the rates of products in float32, TF32 and bfloat16. Of the names
#: that torch gives; a device that is not here, such as a MIG slice, is compared with what this run measures only.
DATASHEETS = {
    "NVIDIA H200": (4.8e12, 67e12, 494.7e12, 989.4e12),
    "NVIDIA H100 80GB HBM3": (3.35e12, 67e12, 494.7e12, 989.4e12),
    "NVIDIA H100 PCIe": (2.0e12, 51e12, 378e12, 756e12),
    "NVIDIA A100-SXM4-80GB": (2.039e12, 19.5e12, 156e12, 312e12),
    "NVIDIA A100 80GB PCIe": (1.935e12, 19.5e12, 156e12, 312e12),
    "NVIDIA A100-SXM4-40GB": (1.555e12, 19.5e12, 156e12, 312e12),
}
PEAKS = ("bytes", "fp32", "tf32", "bf16")

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def recorder(path: Path, *, small: bool) -> Recorder:
    """Of rows that say which device, driver and CUDA they are from; the CPU where ``small`` or there is no GPU."""
    record = Recorder(path, COLUMNS, *PACKAGES)
    gpu = torch.cuda.is_available() and not small
    record.shared |= {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "driver": driver_version() if gpu else "none",
        "cuda": (torch.version.cuda or "none") if gpu else "none",
    }
    return record


def driver_version() -> str:
    """Of the first GPU; all of a machine have the same."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def network(name: str, size: int, classes: int = 1000) -> pt.Backbone:
    """Random weights, frozen, in evaluation mode: time does not depend on what the weights are."""
    model = pt.load_backbone(f"timm:{name}", num_classes=classes, img_size=size, pretrained=False)
    return model.eval().requires_grad_(False)


def batch(bench: "Bench", model: nn.Module, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth patterns of many contrasts with some noise, and the classes that ``model`` sees in them."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=draw) * torch.rand(count, 1, 1, 1, generator=draw)
    fine = F.interpolate(coarse, size=(size, size), mode="bilinear")
    images = (0.9 * fine + 0.1 * torch.rand(count, 3, size, size, generator=draw)).to(bench.device)
    with torch.no_grad():
        return images, torch.cat([model(part).argmax(dim=1) for part in images.split(64)])


def of_copy(precision: str) -> Precision:
    """As attack copies name it; whether float32 takes TF32 is torch's setting."""
    return "bf16" if precision == "bf16" else "fp32"


def flops_of(model: nn.Module, images: Tensor) -> float:
    """Operations of the matrix products and convolutions of one forward pass and its gradient for one image."""
    leaf = images[:1].clone().requires_grad_()
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # whose products are all counted
        torch.autograd.grad(model(leaf.clone()).sum(), leaf)  # a leaf itself cannot enter what is counted
    return float(counter.get_total_flops())


def loss_at(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy, of 32 images at a time."""
    with torch.no_grad():
        parts = zip(images.split(32), labels.split(32), strict=True)
        losses = [F.cross_entropy(model(part), wanted, reduction="sum") for part, wanted in parts]
        return float(torch.stack(losses).sum()) / len(images)


def in_short(error: BaseException) -> str:
    """One line for a row."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@dataclass(eq=False)
class Bench:
    """Where a part runs, how long it may, and what it has measured.

    Args:
        part: its name, the section of its rows.
        record: of the rows.
        device: where it runs.
        on_gpu: time by CUDA events and measure the memory of the GPU; otherwise the process's CPU time, and no memory.
        small: tiny models and few images.
        until: ``time.monotonic()`` after which no round is begun that need not be.
        peaks: the highest rates that the part "peaks" has measured, by name.
    """

    part: str
    record: Recorder
    device: torch.device
    on_gpu: bool
    small: bool
    until: float
    peaks: dict[str, float] = field(default_factory=dict)
    failures: int = 0

    # ---- rows ---------------------------------------------------------------------------------------------------

    def row(self, work: str, implementation: str, status: str, **columns: Any) -> None:
        """Append a row; ``status`` is measured, passed, failed, left out or not installed."""
        self.failures += status == "failed"
        self.record.row(self.part, work, implementation, status=status, **columns)

    def check(self, work: str, implementation: str, passed: bool, note: str, **columns: Any) -> bool:
        """A row that says whether an implementation does what it shall; it is timed only if so."""
        self.row(work, implementation, "passed" if passed else "failed", note=note, **columns)
        return passed

    @contextmanager
    def guarded(self, work: str, implementation: str, **columns: Any) -> Iterator[None]:
        """Of the body: a package that is missing becomes a row, and so does an error."""
        try:
            yield
        except ImportError as error:
            status = "failed" if implementation.startswith("paretune") else "not installed"
            self.row(work, implementation, status, note=in_short(error), **columns)
        except Exception as error:  # whatever one implementation raises, the others are measured
            self.row(work, implementation, "failed", note=in_short(error), **columns)
            error.__traceback__ = None  # which holds the tensors of its frames
            self.forget()

    # ---- time ---------------------------------------------------------------------------------------------------

    def seconds_of(self, work: Work, calls: int = 1) -> float:
        """Of one of ``calls`` calls in a row, from the first launch to the end of the last kernel."""
        if self.on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000 / calls
        began = time.process_time()
        for _ in range(calls):
            work()
        return (time.process_time() - began) / calls

    def timed(
        self,
        work: str,
        works: dict[str, Work],
        *,
        against: str,
        rounds: int = 15,
        least: int = 3,
        warm_up: int = 2,
        seconds: float = 6.0,
        calls: int = 1,
        images: int = 0,
        amount: float = 0.0,
        unit: str = "",
        peak: str = "",
        extra: Callable[[str], dict[str, Any]] = lambda _name: {},
        **columns: Any,
    ) -> dict[str, float]:
        """Time the works in turns, one row for each; returns their medians.

        Args:
            work: what all of them do.
            works: by the name of the implementation.
            against: the one that the others are compared with: how many times as long it takes is their ratio.
            rounds: at most; fewer where ``seconds`` are over, or the time of the part, but ``least`` in any case.
            least: rounds.
            warm_up: rounds before, which do not count.
            seconds: for all rounds together.
            calls: in a row, whose mean is one time.
            images: of one call.
            amount: bytes or operations of one call, for its rate.
            unit: of the rate.
            peak: the name of the rate that it is a share of.
            extra: more columns of an implementation, asked for after the rounds.
            columns: of all rows.
        """
        times: dict[str, list[float]] = {name: [] for name in works}
        columns |= {"images": images or ""}
        began, failed = time.monotonic(), set[str]()
        for turn in range(warm_up + (1 if self.small else rounds)):
            now = time.monotonic()
            if turn >= warm_up + least and (now - began > seconds or now > self.until):
                break
            for name in [name for name in works if name not in failed]:
                failed.add(name)
                with self.guarded(work, name, **columns):
                    taken = self.seconds_of(works[name], calls)
                    failed.remove(name)
                    times[name] += [taken] if turn >= warm_up else []
            print("." if turn >= warm_up else "warm", end=" ", flush=True, file=sys.stderr)
        print(file=sys.stderr)
        medians = {name: median(taken) for name, taken in times.items() if name not in failed}
        for name, middle in medians.items():
            numbers: dict[str, Any] = {
                "rounds": len(times[name]),
                "seconds": middle,
                "lowest": min(times[name]),
                "highest": max(times[name]),
            }
            if images:
                numbers["images_per_second"] = images / middle
            if against in medians and name != against:
                numbers |= {"against": against, "ratio": medians[against] / middle}
            numbers |= self._rate(amount / middle, unit, peak) if amount else {}
            self.row(work, name, "measured", **columns | numbers | extra(name))
        return medians

    def _rate(self, rate: float, unit: str, peak: str) -> dict[str, Any]:
        numbers: dict[str, Any] = {"rate": rate, "unit": unit}
        if peak in self.peaks:
            numbers |= {"peak": self.peaks[peak], "share_of_peak": rate / self.peaks[peak]}
        if self.record.shared["device"] in DATASHEETS:
            datasheet = DATASHEETS[str(self.record.shared["device"])][PEAKS.index(peak)]
            numbers |= {"datasheet_peak": datasheet, "share_of_datasheet_peak": rate / datasheet}
        return numbers

    # ---- arithmetic and memory ----------------------------------------------------------------------------------

    def in_each_precision(self, work: str) -> Iterator[str]:
        """bfloat16, float32 with TF32 where there is a GPU, IEEE float32; what the time does not hold becomes a row."""
        for precision in ("bf16", "tf32", "fp32") if self.on_gpu else ("bf16", "fp32"):
            if time.monotonic() > self.until:
                self.row(work, "", "left out", precision=precision, note="the time of the part is over")
                continue
            self.arithmetic(precision)
            yield precision

    def arithmetic(self, precision: str) -> None:
        """Let float32 products and convolutions take TF32, for all implementations alike, unless ``precision`` is "fp32"."""
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
        torch.backends.cudnn.allow_tf32 = precision != "fp32"

    def allocated(self) -> int:
        """Bytes of the GPU that tensors hold now."""
        return torch.cuda.memory_allocated() if self.on_gpu else 0

    def extra_bytes(self, work: Work) -> int:
        """Of the GPU at the peak of ``work``, beyond what tensors hold before it."""
        if not self.on_gpu:
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = self.allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def forget(self) -> None:
        """Give memory that nothing holds any more back to the GPU."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

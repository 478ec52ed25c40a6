"""The benchmark for a GPU takes the CUDA source, which simulated threads run here, for what it is."""

from pathlib import Path

import pytest

from paretune.kernels.launch import launch_step
from tests.kernels.simulator import Simulator
from tests.test_gpu_benchmark import bench, checked_first, module, pretend_a_clock_and_a_memory, read


@pytest.mark.slow
def test_the_kernel_is_checked_and_then_timed_in_both_precisions_and_layouts(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_clock_and_a_memory(monkeypatch)
    kernels = module("_gpu_kernels", monkeypatch)
    monkeypatch.setattr(kernels, "pgd_step", lambda step: launch_step(step, simulator))
    monkeypatch.setattr(kernels, "obstacle", lambda _step: None)
    monkeypatch.setattr(kernels, "_compiled", lambda _step: kernels.reference.pgd_step)
    there = bench(tmp_path, monkeypatch, on_gpu=True)
    kernels.step(there)
    assert not there.failures
    rows = read(tmp_path / "gpu.csv")
    checked_first(rows, "part", kernels.KERNEL)
    timed = rows[(rows["implementation"] == kernels.KERNEL) & (rows["status"] == "measured")]
    assert len({*zip(timed["work"], timed["precision"], timed["layout"], strict=True)}) == 8
    assert set(timed["against"]) == {"eager PyTorch"}

"""How many runs fit, from numbers."""

import logging
from pathlib import Path

import pytest

from paretune.commands.cli import main
from paretune.sweeps.executors import packing
from paretune.sweeps.executors.packing import available_bytes, fitting, packed
from tests.unit.commands.test_cli import weights  # noqa: F401  # a fixture

GB = 10**9


@pytest.mark.parametrize(
    ("peak", "free", "runs", "devices"),
    [
        (10 * GB, [80 * GB], 100, [0] * 7),  # a tenth of the memory stays free
        (10 * GB, [80 * GB], 3, [0] * 3),
        (10 * GB, [24 * GB, 24 * GB], 100, [0, 1, 0, 1]),
        (10 * GB, [80 * GB, 24 * GB], 4, [0, 1, 0, 1]),  # in turns, not the largest first
        (10 * GB, [24 * GB, 8 * GB], 100, [0, 0]),  # the second is too small
    ],
)
def test_runs_are_packed_by_memory(peak: int, free: list[int], runs: int, devices: list[int]) -> None:
    assert packed(peak, free, runs) == devices


def test_where_none_fits_each_device_takes_one_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert packed(30 * GB, [24 * GB, 16 * GB], 9) == [0, 1]
    assert "a run takes 30 GB, and the largest GPU has 24 GB free" in caplog.text


@pytest.mark.parametrize(("free", "workers"), [(100 * GB, 8), (10 * GB, 4), (GB, 1)])
def test_on_a_cpu_cores_and_memory_bound_it(free: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "visible_devices", list)
    monkeypatch.setattr(packing, "cores", lambda: 8)
    monkeypatch.setattr(packing, "available_bytes", lambda: free)
    assert fitting(2 * GB, 100) == (workers, [])
    assert fitting(2 * GB, 1) == (1, [])


def test_the_devices_have_the_names_that_the_processes_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "visible_devices", lambda: ["2", "5"])
    monkeypatch.setattr(packing, "free_bytes", lambda: [24 * GB, 24 * GB])
    assert fitting(10 * GB, 3) == (3, ["2", "5", "2"])


def test_the_memory_of_this_machine_is_known() -> None:
    assert 1 << 26 < available_bytes() < 1 << 50


@pytest.mark.slow
def test_the_command_line_measures_and_packs(
    tmp_path: Path,
    weights: str,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [
        "compare",
        "--backbone",
        "timm:test_resnet",
        "--weights",
        weights,
        "--img-size",
        "24",
        "--limit",
        "100",
    ]
    words += [
        "--points",
        "1",
        "--batch-size",
        "16",
        "--epochs",
        "1",
        "--train-steps",
        "1",
        "--eval-steps",
        "1",
    ]
    words += [
        "--strategies",
        "bitfit,lora",
        "--seeds",
        "0",
        "--workers",
        "auto",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert main(words) == 0
    assert "workers=auto: " in caplog.text

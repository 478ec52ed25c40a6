"""Compiled kernels of a test run stay in a directory of that run."""

from pathlib import Path

import pytest
import torch

from paretune.kernels.launch import step_program
from paretune.selftest.comparing import DTYPES
from tests.kernels.simulator import Simulator, require_tools


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernel-cache")


@pytest.fixture(autouse=True)
def _own_cache(kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_CACHE", str(kernel_cache))


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    """Simulated threads with the kernels that the comparisons use."""
    require_tools()
    kernels: list[str] = []
    for gradient, out_dtype in DTYPES:
        kernels += step_program(gradient, out_dtype, normalise=out_dtype is not None)
    kernels += step_program(torch.float32, torch.bfloat16, normalise=False)
    return Simulator(tmp_path_factory.mktemp("simulator"), kernels)

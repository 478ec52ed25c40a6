"""Every kernel through cuda.bindings' own driver calls, into a driver that runs them on simulated threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paretune.kernels import nvrtc
from paretune.kernels.launch import step_program
from paretune.selftest.comparing import DTYPES
from tests.kernels.simulator import build_pretended_driver, require_tools


@pytest.mark.slow
def test_what_reaches_the_driver_computes_what_plain_pytorch_computes(
    tmp_path: Path, kernel_cache: Path
) -> None:
    require_tools()
    programs = [step_program(torch.float32, torch.bfloat16, normalise=False)]
    for gradient, out_dtype in DTYPES:
        programs.append(step_program(gradient, out_dtype, normalise=out_dtype is not None))
    for program in programs:
        nvrtc.compile_program(program, "sm_90")  # the pretended driver is too little for the compiler itself
    build_pretended_driver(tmp_path, [name for program in programs for name in program])
    search = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.through_the_driver"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"LD_LIBRARY_PATH": search, "PARETUNE_CACHE": str(kernel_cache)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 17
    assert not [line for line in lines if not line.startswith("True ")]

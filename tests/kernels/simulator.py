"""Builds the CUDA source with g++ and cusim.h, and carries out launches with it."""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paretune.kernels import Step, nvrtc
from paretune.kernels.launch import Backend, Launch, launch_step, pack

HERE = Path(__file__).parent
# No contraction, as --fmad=false; the packed loads are read through another type than the tensor's.
FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-include", str(HERE / "cusim.h"))


@functools.cache
def missing_tools() -> str | None:
    """Why the CUDA source cannot be compiled and simulated here, or None."""
    if platform.system() != "Linux":
        return "needs Linux"
    if (reason := nvrtc.missing()) is not None:
        return reason
    if shutil.which("g++") is None:
        return "needs g++"
    include = nvrtc._include_directory()
    for package, header in (
        ("nvidia-cuda-crt", "crt/host_defines.h"),
        ("nvidia-cuda-cccl", "cccl/nv/target"),
    ):
        if not (include / header).is_file():
            return f"needs the header {header}; pip install {package}"
    return None


def require_tools() -> None:
    """Skip where the platform lacks the tools; fail if PARETUNE_REQUIRE_CUDA_TOOLS says that it must have them."""
    if (reason := missing_tools()) is not None:
        if os.environ.get("PARETUNE_REQUIRE_CUDA_TOOLS") == "1":
            pytest.fail(f"PARETUNE_REQUIRE_CUDA_TOOLS=1, but: {reason}")
        pytest.skip(reason)


def compile_cpp(text: str, out: Path, *flags: str, source: str | None = None) -> Path:
    """Compile ``text`` after the CUDA source (or ``source``) and the simulator."""
    cuda = out.with_suffix(".cu.h")
    cuda.write_text(nvrtc.SOURCE.read_text(encoding="utf-8") if source is None else source, encoding="utf-8")
    program = out.with_suffix(".cpp")
    program.write_text(f'#include "{cuda}"\n{text}', encoding="utf-8")
    include = nvrtc._include_directory()
    paths = (f"-isystem{include}", f"-isystem{include / 'cccl'}")
    done = subprocess.run(
        ["g++", *FLAGS, *flags, *paths, str(program), "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


class Simulator:
    """A :class:`~paretune.kernels.launch.Backend` of simulated threads.

    Args:
        directory: for the build.
        kernels: C++ names that can be launched.
        processors: of the pretended GPU; decides how launches are cut.
        source: CUDA text; None takes the package's.
    """

    def __init__(
        self, directory: Path, kernels: Sequence[str], processors: int = 2, source: str | None = None
    ) -> None:
        cases = "\n".join(
            f'  if (std::string(name) == "{k}") '
            f"{{ cusim::launch_packed({k}, dim3(blocks), dim3(threads), parameters); return 0; }}"
            for k in kernels
        )
        text = f"""
extern "C" int run(const char* name, unsigned blocks, unsigned threads, void** parameters) {{
{cases}
  return 1;
}}
extern "C" void schedule(uint64_t seed) {{ cusim::schedule = seed; }}
extern "C" int errors() {{ return cusim::errors; }}
extern "C" const char* messages() {{ return cusim::log.c_str(); }}
"""
        built = compile_cpp(
            text, directory / "libsimulator.so", "-O1", "-shared", "-fPIC", "-fno-gnu-unique", source=source
        )
        self.library = ctypes.CDLL(str(built))
        self.library.messages.restype = ctypes.c_char_p
        self.count = processors
        self.launched: list[Launch] = []

    def processors(self, device: torch.device) -> int:
        return self.count

    def schedule(self, seed: int) -> None:
        """0 runs threads and blocks in order, another seed shuffles them."""
        self.library.schedule(ctypes.c_uint64(seed))

    def run(self, launches: Sequence[Launch], device: torch.device) -> None:
        self.launched = list(launches)
        for launch in launches:
            status = self.library.run(
                launch.kernel.encode(), launch.blocks, launch.threads, pack(launch.arguments)
            )
            assert status == 0, f"{launch.kernel} is not among the built kernels"
        assert self.library.errors() == 0, self.library.messages().decode()


def simulated_step(backend: Backend) -> Callable[[Step], tuple[Tensor, Tensor]]:
    """:func:`paretune.kernels.pgd_step` on simulated threads."""

    def take(step: Step) -> tuple[Tensor, Tensor]:
        step.check()
        return launch_step(step, backend)

    return take


def build_pretended_driver(directory: Path, kernels: Sequence[str]) -> Path:
    """A ``libcuda.so.1`` whose launches run on simulated threads; see pretended_libcuda.cpp."""
    table = "\n".join(f"  KERNEL(({kernel}))" for kernel in kernels)
    text = (HERE / "pretended_libcuda.cpp").read_text(encoding="utf-8").replace("// KERNELS", table)
    return compile_cpp(text, directory / "libcuda.so.1", "-O1", "-shared", "-fPIC", "-fno-gnu-unique", "-ldl")

"""The simulated kernels under g++'s sanitizers; and bugs put in on purpose, each of which must be found."""

import re
import subprocess
from pathlib import Path

import pytest

from paretune.kernels import nvrtc
from tests.kernels.simulator import HERE, compile_cpp, require_tools

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
THREAD = ("-fsanitize=thread",)
BARRIER = "  __syncthreads();\n"
# What is wrong, what it replaces in the source, the flags of the build, and what must be said about it.
BUGS = {
    "a tail one too long": ("r < rest; r +=", "r <= rest; r +=", ADDRESS, "heap-buffer-overflow"),
    "vectors that are not aligned": (
        "static_cast<unsigned>((V - offset % V) % V);",
        "0;",
        ADDRESS,
        "misaligned address",
    ),
    "a missing barrier": (BARRIER, "", THREAD, "data race .* in (paretune::)?block_sum"),
    "a barrier that not all threads reach": (
        BARRIER,
        "  if (warp == 0) __syncthreads();\n",
        (),
        "never reach the __syncthreads",
    ),
    "shared memory that nobody wrote": (
        "const bool there = lane < warps;",
        "const bool there = true;",
        (),
        "results are not numbers",
    ),
    "a shuffle without some lanes": (
        "__shfl_xor_sync(0xffffffffu, v, lanes)",
        "__shfl_xor_sync(0x7fffffffu, v, lanes)",
        (),
        "is not in its own mask",
    ),
}
# Not a finding: g++'s AddressSanitizer says so whenever contexts are switched, even though it is told of each fiber.
NOTICE = re.compile("==[0-9]+==WARNING: ASan doesn't fully support makecontext/swapcontext.*\n")

pytestmark = pytest.mark.slow  # a build each


def run_driver(directory: Path, *flags: str, source: str | None = None) -> subprocess.CompletedProcess[str]:
    require_tools()
    driver = (HERE / "driver.cpp").read_text(encoding="utf-8")
    program = compile_cpp(driver, directory / "driver", "-O1", "-g", *flags, source=source)
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=600)


def with_bug(name: str) -> str:
    right, wrong, _, _ = BUGS[name]
    source = nvrtc.SOURCE.read_text(encoding="utf-8")
    assert source.count(right) == 1, f"the source has changed; where is {right!r} now?"
    return source.replace(right, wrong)


@pytest.mark.some(2)
@pytest.mark.parametrize("flags", [(), ADDRESS, THREAD], ids=["plain", "address and undefined", "thread"])
def test_nothing_is_found_in_the_kernels(flags: tuple[str, ...], tmp_path: Path) -> None:
    done = run_driver(tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "driver: all well\n"
    assert NOTICE.sub("", done.stderr) == ""


@pytest.mark.some(2)
@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found(name: str, tmp_path: Path) -> None:
    _, _, flags, said = BUGS[name]
    done = run_driver(tmp_path, *flags, source=with_bug(name))
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr[-3000:]

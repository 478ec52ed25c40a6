"""Checks of the attack kernels that a user can run, and a report to paste into an issue.

On any machine: the plain PyTorch step against the threats, the random numbers against published answers, the operators
against torch's own checks, and, where NVRTC is installed, compilation for every supported architecture. On a GPU
also: each kernel against plain PyTorch on that GPU, CUDA graphs, and timing.
"""

import platform
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from paretune.attacks.streams import Streams
from paretune.attacks.threats import L2, Linf
from paretune.kernels import nvrtc, ops, pgd_step, random_start, reference
from paretune.kernels.launch import START_PROGRAM, step_program
from paretune.kernels.reference import Norm
from paretune.selftest.comparing import NORMS, Check, Outcome, run_check, start_checks, step_checks

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

# Counter, key and words of Philox4x32-10, from kat_vectors of Random123 (https://github.com/DEShawResearch/random123).
PHILOX_ANSWERS = (
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def selftest(*, gpu: bool = False) -> list[Check]:
    """Run the checks, each of which becomes a line, whatever goes wrong in it.

    Args:
        gpu: also those that need a CUDA device.

    Raises:
        RuntimeError: ``gpu`` without a CUDA device.
    """
    if gpu and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is available; run `paretune selftest` without --gpu")
    checks = [*_versions(), run_check("Philox4x32-10", _philox)]
    for norm in NORMS:
        checks.append(run_check(f"{norm} step in plain PyTorch", _threat, norm))
        checks += _operators(norm)
    checks += _compilations()
    if gpu:
        from paretune.selftest.on_gpu import gpu_checks

        device = torch.device("cuda", torch.cuda.current_device())
        checks += step_checks(partial(pgd_step, fused="cuda"), device)
        checks += start_checks(partial(random_start, fused="cuda"), device)
        checks += gpu_checks(device)
    return checks


def report(checks: list[Check]) -> str:
    """The lines as text, with a verdict at the end."""
    width = max(len(check.name) for check in checks)
    mark = {True: "pass", False: "FAIL", None: "    "}
    lines = [f"{mark[check.passed]}  {check.name:<{width}}  {check.detail}".rstrip() for check in checks]
    failed = sum(check.passed is False for check in checks)
    judged = sum(check.passed is not None for check in checks)
    lines.append(f"{failed} of {judged} checks failed" if failed else f"all {judged} checks passed")
    return "\n".join(lines)


def _versions() -> Iterator[Check]:
    yield Check("system", None, f"{platform.platform()}, Python {sys.version.split()[0]}")
    for package in ("paretune", "torch", "cuda-bindings", "nvidia-cuda-nvrtc"):
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        yield Check(package, None, found)


def _philox() -> Outcome:
    for counter, key, words in PHILOX_ANSWERS:
        c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
        signed = key - (1 << 64) if key >= 1 << 63 else key
        found = tuple(int(word) for word in reference.philox(c0, c1, c2, c3, torch.tensor(signed)))
        if found != words:
            return False, f"counter {counter} gives {[hex(word) for word in found]}"
    return True, "Random123's known answers"


def _threat(norm: Norm) -> Outcome:
    """Against the threats of the attacks, which are written independently."""
    threat = Linf(0.03) if norm == "Linf" else L2(0.5)
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 3, 9, 9, generator=generator)
    gradient = torch.randn(4, 3, 9, 9, generator=generator)
    start = threat.random_start(images, Streams(3, torch.arange(4)))
    amounts = {"step_size": threat.epsilon / 2, "epsilon": threat.epsilon}
    wanted = threat.project(threat.step(start, gradient, amounts["step_size"]), images)
    found, _ = pgd_step(
        gradient,
        images,
        start,
        norm=norm,
        step_size=amounts["step_size"],
        epsilon=amounts["epsilon"],
        fused="torch",
    )
    error = (found - wanted).abs().max().item()
    return error <= (0 if norm == "Linf" else 2.0**-22), f"differs from {threat!r} by {error:.1e}"


def _operators(norm: Norm) -> Iterator[Check]:
    images = torch.rand(2, 3, 5, 5)
    amount, seed = torch.tensor(0.1), torch.tensor(5)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    step = (images, images, images, amount, amount, mean, std, norm, torch.bfloat16)
    yield run_check(f"{norm} operator paretune::pgd_step", _opcheck, ops.pgd_step, step)
    start = (images, amount, seed, norm)
    yield run_check(f"{norm} operator paretune::random_start", _opcheck, ops.random_start, start)


def _opcheck(operator: Any, arguments: tuple[Any, ...]) -> Outcome:
    outcomes = torch.library.opcheck(operator, arguments)
    return set(outcomes.values()) == {"SUCCESS"}, ", ".join(outcomes)


def _compilations() -> Iterator[Check]:
    if (reason := nvrtc.missing()) is not None:
        yield Check("compilation", None, f"left out: {reason}")
        return
    for architecture in ARCHITECTURES:
        yield run_check(f"compilation for {architecture}", _compilation, architecture)


def _compilation(architecture: str) -> Outcome:
    names = (*step_program(torch.bfloat16, torch.bfloat16, normalise=True), *START_PROGRAM)
    began = time.perf_counter()
    program = nvrtc.compile_program(names, architecture, cache=False)
    seconds = time.perf_counter() - began
    return True, f"{len(names)} kernels, {len(program.image)} bytes, {seconds:.2f} s"

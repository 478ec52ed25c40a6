"""Checks of the attack kernels that a user can run, and a report to paste into an issue.

On any machine: the plain PyTorch step against the threats, and, where NVRTC is installed, compilation for every
supported architecture. On a GPU also: each kernel against plain PyTorch on that GPU, the engines of an attack copy
against each other, and timing.
"""

import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from paretune.attacks.streams import Streams
from paretune.attacks.threats import L2, Linf
from paretune.kernels import Norm, Step, launch, nvrtc, reference
from paretune.selftest.comparing import NORMS, Check, Outcome, run_check, step_checks

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


def selftest(*, gpu: bool = False) -> list[Check]:
    """Run the checks, each of which becomes a line, whatever goes wrong in it.

    Args:
        gpu: also those that need a CUDA device.

    Raises:
        RuntimeError: ``gpu`` without a CUDA device.
    """
    if gpu and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is available; run `paretune selftest` without --gpu")
    checks = [*_versions()]
    checks += [run_check(f"{norm} step in plain PyTorch", _threat, norm) for norm in NORMS]
    checks += _compilations()
    if gpu:
        from paretune.selftest.on_gpu import gpu_checks

        device = torch.device("cuda", torch.cuda.current_device())
        checks += step_checks(lambda step: launch.launch_step(step, launch.driver()), device)
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
            present = version(package)
        except PackageNotFoundError:
            present = "not installed"
        yield Check(package, None, present)


def _threat(norm: Norm) -> Outcome:
    """Against the threats of the attacks, which are written independently."""
    threat = Linf(0.03) if norm == "Linf" else L2(0.5)
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 3, 9, 9, generator=generator)
    gradient = torch.randn(4, 3, 9, 9, generator=generator)
    start = threat.random_start(images, Streams(3, torch.arange(4)))
    step_size = threat.epsilon / 2
    wanted = threat.project(threat.step(start, gradient, step_size), images)
    moved, _ = reference.pgd_step(Step(gradient, images, start, norm, step_size, threat.epsilon))
    error = (moved - wanted).abs().max().item()
    return error <= (0 if norm == "Linf" else 2.0**-22), f"differs from {threat!r} by {error:.1e}"


def _compilations() -> Iterator[Check]:
    if (reason := nvrtc.missing()) is not None:
        yield Check("compilation", None, f"left out: {reason}")
        return
    for architecture in ARCHITECTURES:
        yield run_check(f"compilation for {architecture}", _compilation, architecture)


def _compilation(architecture: str) -> Outcome:
    names = launch.step_program(torch.bfloat16, torch.bfloat16, normalise=True)
    began = time.perf_counter()
    program = nvrtc.compile_program(names, architecture, cache=False)
    seconds = time.perf_counter() - began
    return True, f"{len(names)} kernels, {len(program.image)} bytes, {seconds:.2f} s"

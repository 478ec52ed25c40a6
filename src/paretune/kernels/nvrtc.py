"""Compile the CUDA source at run time, by NVRTC alone: no CUDA toolkit, no host compiler.

torch's Linux wheels depend on ``cuda-bindings``, NVRTC and the CUDA headers, so a machine that runs torch on an
NVIDIA GPU has all that this needs. A compiled program is kept on disk, named by everything it depends on.
"""

import functools
import hashlib
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune._values import cache_directory as cache_of
from paretune.runs.disk import regular, write_atomically

SOURCE = Path(__file__).with_name("pgd_step.cu")
# NVRTC takes a generic lambda inside a kernel for host code unless device code is the default.
OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space")
_MAGIC = b"paretune kernels 1\n"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """Compiled kernels.

    Args:
        image: a cubin.
        symbols: for each C++ name that was asked for, the name of its kernel in ``image``.
    """

    image: bytes
    symbols: dict[str, str]


def missing() -> str | None:
    """Why NVRTC cannot be used here, or None if it can."""
    import torch  # its wheel makes the CUDA libraries findable

    if torch.version.hip is not None:
        return "torch is built for ROCm, the kernels for NVIDIA GPUs"
    try:
        importlib.import_module("cuda.bindings.nvrtc")
        _nvrtc_version()
        _include_directory()
    except Exception as error:  # a partly installed CUDA fails in many ways; each means the same here
        return f"NVRTC cannot be loaded ({' '.join(str(error).split())}); pip install cuda-bindings"
    return None


def compile_program(names: Sequence[str], arch: str, *, cache: bool = True) -> Program:
    """The kernels ``names`` for one architecture, from the disk cache if they are there.

    Args:
        names: C++ names with their template arguments, such as ``"paretune::l2_sums<float,false,4>"``.
        arch: such as ``"sm_90"``.
        cache: look in :func:`cache_directory`, and keep the result there.

    Raises:
        ImportError: NVRTC is not installed.
        RuntimeError: the source does not compile; the message holds the compiler's log.
    """
    if (reason := missing()) is not None:
        raise ImportError(reason)
    source = SOURCE.read_text(encoding="utf-8")
    options = (f"--gpu-architecture={arch}", *OPTIONS)
    identity = json.dumps([source, sorted(names), options, _nvrtc_version()])
    path = cache_directory() / f"{arch}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.cubin"
    if cache and (program := _read(path)) is not None:
        return program
    program = _compile(source, names, options)
    if cache:
        _write(path, program)
    return program


def cache_directory() -> Path:
    """``$PARETUNE_CACHE/kernels``, or where that is not set, see :func:`paretune._values.cache_directory`."""
    return cache_of("kernels")


def _read(path: Path) -> Program | None:
    """The program in ``path``, or None if there is none or the file is not what was written."""
    try:
        data = regular(path).read_bytes()
    except (OSError, ValueError):
        return None
    digest, _, body = data.removeprefix(_MAGIC).partition(b"\n")
    if not data.startswith(_MAGIC) or hashlib.sha256(body).hexdigest().encode() != digest:
        _log.warning("%s is damaged; compiling it again", path)
        return None
    symbols, _, image = body.partition(b"\n")
    return Program(image, json.loads(symbols))


def _write(path: Path, program: Program) -> None:
    body = json.dumps(program.symbols).encode() + b"\n" + program.image
    data = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    try:
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
    except OSError as error:  # a full or read-only disk costs a compilation a process, nothing else
        _log.warning("cannot keep compiled kernels in %s (%s); set PARETUNE_CACHE", path.parent, error)


def _compile(source: str, names: Sequence[str], options: Sequence[str]) -> Program:
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    program = checked(nvrtc.nvrtcCreateProgram(source.encode(), SOURCE.name.encode(), 0, None, None))
    try:
        for name in names:
            checked(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        flags = [option.encode() for option in (*options, f"-I{_include_directory()}")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
            checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(
                f"{SOURCE.name} does not compile: {log.decode(errors='replace').strip(chr(0))}"
            )
        symbols = {
            name: checked(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode() for name in names
        }
        image = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
        checked(nvrtc.nvrtcGetCUBIN(program, image))  # fills the bytes in place
        return Program(image, symbols)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def checked(result: tuple[Any, ...], failure: str = "NVRTC failed") -> Any:
    """What a call of NVRTC or of the driver returned, without its status.

    Raises:
        RuntimeError: the status is no success; the message is ``failure`` and its name.
    """
    status, *values = result
    if status.value != 0:
        raise RuntimeError(f"{failure}: {status.name}")
    return values[0] if values else None


@functools.cache
def _nvrtc_version() -> str:
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    status, major, minor = nvrtc.nvrtcVersion()
    checked((status,))
    return f"{major}.{minor}"


@functools.cache
def _include_directory() -> Path:
    """Where ``cuda_bf16.h`` lies: in the wheels torch depends on, else in an installed toolkit."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(entry) for entry in (spec.submodule_search_locations or ())] if spec else []
    candidates = [
        directory
        for root in wheels
        for directory in (*sorted(root.glob("cu*/include"), reverse=True), root / "cuda_runtime" / "include")
    ]
    toolkits = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    candidates += [Path(root) / "include" for root in toolkits if root]
    for directory in candidates:
        if (directory / "cuda_bf16.h").is_file():
            return directory
    raise FileNotFoundError(
        "no cuda_bf16.h in " + ", ".join(map(str, candidates)) + "; pip install nvidia-cuda-runtime"
    )

"""From tensors to a launch: which kernel, how many blocks, which parameters; and the CUDA driver that takes them.

A :class:`Launch` says everything about one call of a kernel. The :class:`Driver` carries it out on torch's current
stream; in the tests a simulator takes the same launches.
"""

import contextlib
import ctypes
import functools
import importlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from paretune.kernels import nvrtc
from paretune.kernels.reference import empty_results, memory_format_of
from paretune.kernels.step import Step

THREADS = 256  # of a block that shares its image with others
MOST_THREADS = 512  # of a block that has its image to itself; MAX_THREADS in the source
VECTOR = 4  # numbers a thread loads at once: 16 bytes of float32
WHOLE_IMAGE = 16384  # numbers up to which one block an image is always enough

_C_TYPES = {
    None: "paretune::Nothing",
    torch.float32: "float",
    torch.bfloat16: "__nv_bfloat16",
    torch.float16: "__half",
}


class Batch(ctypes.Structure):
    """``Batch`` of the source."""

    _fields_ = (("size", ctypes.c_uint32), ("chunks", ctypes.c_uint32))


class Amount(ctypes.Structure):
    """``Amount`` of the source."""

    _fields_ = (("at", ctypes.c_void_p), ("value", ctypes.c_float))


class Channels(ctypes.Structure):
    """``Channels`` of the source."""

    _fields_ = (
        ("mean", ctypes.c_void_p),
        ("std", ctypes.c_void_p),
        ("divisor", ctypes.c_uint32),
        ("magic", ctypes.c_uint32),
        ("shift", ctypes.c_uint32),
        ("interleaved", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Launch:
    """One call of a kernel.

    Args:
        kernel: its C++ name, template arguments included.
        program: the kernels that are compiled together with it.
        blocks: of the grid.
        threads: a block, a multiple of 32.
        arguments: as the kernel takes them, in order.
    """

    kernel: str
    program: tuple[str, ...]
    blocks: int
    threads: int
    arguments: tuple[Any, ...]


class Backend(Protocol):
    """What carries launches out."""

    def processors(self, device: torch.device) -> int:
        """Streaming multiprocessors of ``device``."""

    def run(self, launches: Sequence[Launch], device: torch.device) -> None:
        """Put ``launches`` on the current stream of ``device``, in order."""


def launch_step(step: Step, backend: Backend) -> tuple[Tensor, Tensor]:
    """A step that :meth:`~paretune.kernels.step.Step.check` has passed; the results of :func:`reference.pgd_step`."""
    moved, model_input = empty_results(step)
    if step.images.numel() == 0:
        return moved, model_input
    layout = memory_format_of(step.images)
    gradient, images, images_adv = (
        tensor.contiguous(memory_format=layout) for tensor in (step.gradient, step.images, step.images_adv)
    )
    mean, std = (None if values is None else values.contiguous() for values in (step.mean, step.std))
    program = program_of(step)
    vector = VECTOR if all(map(_aligned, (gradient, images, images_adv, moved))) else 1
    linf, l2_whole, l2_sums, l2_move = program[:4] if vector == VECTOR else program[4:]
    batch, size = len(images), images[0].numel()
    channels = channels_of(images, mean, std)
    amounts = (_amount(step.step_size), _amount(step.epsilon))
    sources = tuple(map(_pointer, (gradient, images, images_adv)))
    targets = (_pointer(moved), _pointer(None if step.out_dtype is None else model_input))
    processors = backend.processors(images.device)
    keep: tuple[Tensor, ...] = ()

    def launch(kernel: str, chunks: int, threads: int, *arguments: Any) -> Launch:
        arguments = tuple(Batch(size, chunks) if argument is Batch else argument for argument in arguments)
        return Launch(kernel, program, batch * chunks, threads, arguments)

    if step.norm == "Linf":
        chunks = _chunks(size, vector, batch, processors)
        launches = [launch(linf, chunks, THREADS, *sources, *targets, Batch, channels, *amounts)]
    elif size <= WHOLE_IMAGE or batch >= processors:
        threads = _whole_threads(size, vector)
        launches = [launch(l2_whole, 1, threads, *sources, *targets, Batch, channels, *amounts)]
    else:
        chunks = _chunks(size, vector, batch, processors)
        partial = torch.empty(batch * chunks * 3, dtype=torch.float64, device=images.device)
        keep, sums = (partial,), _pointer(partial)
        launches = [
            launch(l2_sums, chunks, THREADS, *sources, sums, Batch, channels),
            launch(l2_move, chunks, THREADS, *sources, *targets, sums, Batch, channels, *amounts),
        ]
    backend.run(launches, images.device)
    del keep  # alive until the launches are on the stream, whose order then guards the memory
    return moved, model_input


def program_of(step: Step) -> tuple[str, ...]:
    """The kernels that ``step`` is among."""
    return step_program(step.gradient.dtype, step.out_dtype, normalise=step.mean is not None)


@functools.cache
def step_program(gradient: torch.dtype, out_dtype: torch.dtype | None, *, normalise: bool) -> tuple[str, ...]:
    """C++ names of the eight kernels for these types: Linf, L2 whole, sums, move; by fours, then one by one."""
    g, y, n = _C_TYPES[gradient], _C_TYPES[out_dtype], str(normalise).lower()
    return tuple(
        f"paretune::{name}<{types},{n},{vector}>"
        for vector in (VECTOR, 1)
        for name, types in (
            ("linf_step", f"{g},{y}"),
            ("l2_step", f"{g},{y}"),
            ("l2_sums", g),
            ("l2_move", f"{g},{y}"),
        )
    )


def channels_of(images: Tensor, mean: Tensor | None, std: Tensor | None) -> Channels:
    """The layout of dense ``images`` and their normalisation; :class:`Channels` says how it divides."""
    interleaved = memory_format_of(images) is torch.channels_last
    divisor = images.shape[1] if interleaved else math.prod(images.shape[2:])
    shift = 31 + (divisor - 1).bit_length()
    magic = -(-(1 << shift) // divisor)
    return Channels(_address(mean), _address(std), divisor, magic, shift, interleaved)


def pack(arguments: Sequence[Any]) -> Any:
    """``void* kernelParams[]`` of cuLaunchKernel; ``arguments`` must outlive it."""
    return (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))


@functools.cache
def driver() -> "Driver":
    """The CUDA driver, loaded on first use.

    Raises:
        ImportError: NVRTC or the driver is not installed.
    """
    if (reason := nvrtc.missing()) is not None:
        raise ImportError(reason)
    return Driver(importlib.import_module("cuda.bindings.driver"))


@dataclass
class Driver:
    """Launches through ``cuda.bindings`` in torch's own contexts, which stay alive as long as the process.

    Args:
        api: the module ``cuda.bindings.driver``.
    """

    api: Any
    _contexts: dict[int, Any] = field(default_factory=dict)
    _functions: dict[tuple[int, str], Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def processors(self, device: torch.device) -> int:
        """Streaming multiprocessors of ``device``."""
        return torch.cuda.get_device_properties(device).multi_processor_count

    def run(self, launches: Sequence[Launch], device: torch.device) -> None:
        """Put ``launches`` on the current stream of ``device``.

        Raises:
            RuntimeError: the kernel is not loaded while a CUDA graph is captured, or the driver refuses.
        """
        index = _index(device)
        stream = torch.cuda.current_stream(device).cuda_stream
        for launch in launches:
            if (index, launch.kernel) not in self._functions:
                self.load(launch.program, device)
        with self._context(index):
            for launch in launches:
                parameters = pack(launch.arguments)
                kernel, grid, block = self._functions[index, launch.kernel], launch.blocks, launch.threads
                pointer = ctypes.addressof(parameters)
                nvrtc.checked(
                    self.api.cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, 0, stream, pointer, 0),
                    f"cannot launch {launch.kernel} on {grid} blocks of {block} threads",
                )

    def load(self, program: tuple[str, ...], device: torch.device) -> None:
        """Compile ``program`` for ``device`` and load it, once.

        Raises:
            RuntimeError: a CUDA graph is being captured, or the driver refuses.
        """
        index = _index(device)
        with self._lock:
            if all((index, kernel) in self._functions for kernel in program):
                return
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"{program[0]} is not loaded, and nothing can be loaded while a CUDA graph is captured; take "
                    "one step with the same types before the capture"
                )
            major, minor = torch.cuda.get_device_capability(device)
            compiled = nvrtc.compile_program(program, f"sm_{major}{minor}")
            with self._context(index):
                module = nvrtc.checked(self.api.cuModuleLoadData(compiled.image), "cannot load the kernels")
                for kernel in program:
                    symbol = compiled.symbols[kernel].encode()
                    self._functions[index, kernel] = nvrtc.checked(
                        self.api.cuModuleGetFunction(module, symbol), f"no {kernel} in the program"
                    )

    @contextlib.contextmanager
    def _context(self, index: int) -> Iterator[None]:
        """Make the context that torch uses on device ``index`` current, and put back what was."""
        if index not in self._contexts:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            handle = nvrtc.checked(self.api.cuDeviceGet(index), f"no CUDA device {index}")
            self._contexts[index] = nvrtc.checked(
                self.api.cuDevicePrimaryCtxRetain(handle), f"no context on CUDA device {index}"
            )
        nvrtc.checked(self.api.cuCtxPushCurrent(self._contexts[index]), "cannot change the CUDA context")
        try:
            yield
        finally:
            nvrtc.checked(self.api.cuCtxPopCurrent(), "cannot restore the CUDA context")


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _chunks(size: int, vector: int, batch: int, processors: int) -> int:
    """Blocks an image: a vector a thread while the GPU is not full, up to four when it is."""
    chunks = math.ceil(size / (vector * THREADS))
    return chunks if batch * chunks <= 8 * processors else math.ceil(chunks / 4)


def _whole_threads(size: int, vector: int) -> int:
    """Threads of the one block of an image."""
    return min(MOST_THREADS, 32 * math.ceil(size / (32 * vector)))


def _aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % (VECTOR * tensor.element_size()) == 0


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(_address(tensor))


def _amount(amount: float | Tensor) -> Amount:
    """By value, which costs no launch; a CUDA tensor by address, which a replayed graph reads again."""
    if isinstance(amount, Tensor) and amount.device.type != "cpu":
        return Amount(amount.data_ptr(), 0.0)
    return Amount(None, float(amount))

"""What the launcher tells the CUDA driver, seen by a driver that only writes it down."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paretune.kernels import launch, nvrtc
from paretune.kernels.launch import Driver, Launch

DEVICE = torch.device("cuda", 1)
PROGRAM = ("paretune::a", "paretune::b")


class WritesDown:
    """The calls that :class:`Driver` makes of ``cuda.bindings.driver``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails: str | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            bad = name == self.fails
            status = SimpleNamespace(value=int(bad), name="CUDA_ERROR_X" if bad else "CUDA_SUCCESS")
            return (status, f"{name} of {arguments[-1]!r}" if arguments else None)

        return call

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> WritesDown:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    compiled = []

    def compile_program(names: tuple[str, ...], arch: str) -> nvrtc.Program:
        compiled.append((names, arch))
        return nvrtc.Program(b"cubin", {name: f"symbol of {name}" for name in names})

    monkeypatch.setattr(nvrtc, "compile_program", compile_program)
    api = WritesDown()
    api.compiled = compiled
    return api


def call_of(kernel: str, value: int = 5) -> Launch:
    return Launch(kernel, PROGRAM, 3, 64, (ctypes.c_uint32(value),))


def test_a_launch_goes_to_the_current_stream_of_the_tensor_s_device(api: WritesDown) -> None:
    Driver(api).run([call_of("paretune::a")], DEVICE)
    (found,) = api.named("cuLaunchKernel")
    assert found[1] == "cuModuleGetFunction of b'symbol of paretune::a'"
    assert found[2:8] == (3, 1, 1, 64, 1, 1)
    assert found[8:10] == (0, 77)
    assert api.compiled == [(PROGRAM, "sm_90")]
    assert api.named("cuDeviceGet") == [("cuDeviceGet", 1)]


def test_the_parameters_point_to_the_arguments(api: WritesDown) -> None:
    seen = []

    def launch_kernel(*arguments: Any) -> tuple[Any, ...]:
        pointers = (ctypes.c_void_p * 1).from_address(arguments[9])
        seen.append(ctypes.c_uint32.from_address(pointers[0] or 0).value)
        return (SimpleNamespace(value=0, name="CUDA_SUCCESS"),)

    api.cuLaunchKernel = launch_kernel
    Driver(api).run([call_of("paretune::a", 5), call_of("paretune::b", 6)], DEVICE)
    assert seen == [5, 6]


def test_a_program_is_loaded_once_a_device_in_torch_s_own_context(api: WritesDown) -> None:
    driver = Driver(api)
    for _ in range(2):
        driver.run([call_of("paretune::a"), call_of("paretune::b")], DEVICE)
    assert len(api.named("cuModuleLoadData")) == len(api.named("cuDevicePrimaryCtxRetain")) == 1
    driver.run([call_of("paretune::a")], torch.device("cuda", 0))
    assert len(api.named("cuModuleLoadData")) == len(api.named("cuDevicePrimaryCtxRetain")) == 2
    assert not api.named("cuModuleUnload")


@pytest.mark.parametrize("fails", ["cuLaunchKernel", "cuModuleLoadData", "cuModuleGetFunction"])
def test_the_context_is_put_back_whatever_happens(api: WritesDown, fails: str) -> None:
    api.fails = fails
    with pytest.raises(RuntimeError, match="CUDA_ERROR_X"):
        Driver(api).run([call_of("paretune::a")], DEVICE)
    assert len(api.named("cuCtxPushCurrent")) == len(api.named("cuCtxPopCurrent")) > 0


def test_loading_while_a_graph_is_captured_is_refused_with_the_way_out(
    api: WritesDown, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(api)
    driver.load(PROGRAM, DEVICE)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    driver.run([call_of("paretune::a")], DEVICE)
    assert len(api.named("cuLaunchKernel")) == 1
    other = Launch("paretune::c", ("paretune::c",), 1, 32, ())
    with pytest.raises(RuntimeError, match="before the capture"):
        driver.run([other], DEVICE)
    assert len(api.named("cuModuleLoadData")) == 1


def test_a_number_goes_by_value_and_a_tensor_of_the_device_by_address() -> None:
    for number in (0.25, torch.tensor(0.25)):
        by_value = launch._amount(number)
        assert (by_value.at, by_value.value) == (None, 0.25)
    there = torch.empty((), device="meta")
    by_address = launch._amount(there)
    assert (by_address.at or 0, by_address.value) == (there.data_ptr(), 0.0)


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (1, 2**31 - 1), (256, 150528), (10**6, 7)])
def test_a_grid_never_exceeds_what_cuda_takes(batch: int, size: int) -> None:
    for vector in (1, launch.VECTOR):
        chunks = launch._chunks(size, vector, batch, 132)
        assert 1 <= batch * chunks < 2**31
        assert chunks * launch.THREADS * vector * 4 >= size  # at most four vectors a thread
        assert chunks * launch.THREADS + size < 2**32  # indices of a stride loop stay within 32 bits
        threads = launch._whole_threads(size, vector)
        assert threads % 32 == 0
        assert 32 <= threads <= launch.MOST_THREADS

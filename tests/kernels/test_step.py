"""What a step accepts, and which implementation takes it."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from paretune import kernels
from paretune.kernels import Norm, Step, launch, nvrtc, obstacle, pgd_step, reference
from paretune.selftest.comparing import NORMS


def plain_step() -> Step:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return Step(images - 0.5, images, images, "Linf", 0.1, 0.2)


@pytest.mark.slow
def test_inductor_makes_one_loop_of_the_whole_tail_of_a_linf_step() -> None:
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    images, amount = torch.rand(2, 3, 16, 16), torch.tensor(0.1)
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)

    def tail(gradient: Tensor, images: Tensor, images_adv: Tensor) -> tuple[Tensor, Tensor]:
        moved = reference.linf_step(gradient, images, images_adv, amount, amount)
        return moved, reference.model_input(moved, mean, std, torch.bfloat16)

    _, code = run_and_get_code(torch.compile(tail, fullgraph=True), images.bfloat16(), images, images)
    assert "\n".join(code).count("async_compile.cpp_pybinding(") == 1


def test_importing_the_kernels_starts_neither_the_gpu_nor_the_compiler() -> None:
    code = (
        "import sys, paretune.kernels, torch; "
        "print(torch.cuda.is_initialized(), 'cuda.bindings.nvrtc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"norm": "L1"}, ValueError, "norm must be 'Linf' or 'L2', got 'L1'"),
        ({"images": torch.zeros(2, 3, 4, 5).half()}, TypeError, "images must be float32"),
        ({"images_adv": torch.zeros(2, 3, 4, 5).double()}, TypeError, "images_adv must be float32"),
        ({"gradient": torch.zeros(2, 3, 4, 5).double()}, TypeError, "gradient must be float32, bfloat16"),
        (
            {"gradient": torch.zeros(2, 3, 4, 4)},
            ValueError,
            r"gradient must have the shape of images, \(2, 3",
        ),
        ({"step_size": torch.zeros(3)}, ValueError, r"step_size must have one value, got shape \(3,\)"),
        ({"epsilon": torch.zeros(()).double()}, TypeError, "epsilon must be a number or a float32 tensor"),
        ({"mean": torch.zeros(3)}, ValueError, "mean needs std"),
        ({"std": torch.zeros(3)}, ValueError, "std needs mean"),
        (
            {"mean": torch.zeros(2), "std": torch.zeros(2)},
            ValueError,
            r"mean must have one value a channel \(3\)",
        ),
        ({"out_dtype": torch.int8}, TypeError, "out_dtype must be"),
    ],
)
def test_a_wrong_argument_of_a_step_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pgd_step(replace(plain_step(), **changes))


@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_batch_gives_empty_results(norm: Norm) -> None:
    nothing = torch.zeros(0, 3, 4, 4)
    moved, model_input = pgd_step(Step(nothing, nothing, nothing, norm, 0.1, 0.1, out_dtype=torch.bfloat16))
    assert moved.shape == model_input.shape == nothing.shape
    assert model_input.dtype is torch.bfloat16


def on_cuda(*shape: int) -> Step:
    """A step of what the choice looks at, of images on a GPU."""

    class OnCuda:
        is_cuda, device, dtype = True, torch.device("cuda", 0), torch.float32

        def __init__(self) -> None:
            self.shape = shape

        def __len__(self) -> int:
            return shape[0]

        def numel(self) -> int:
            return int(torch.Size(shape).numel())

    images: Any = OnCuda()
    return Step(images, images, images, "Linf", 0.1, 0.1)


class Loads:
    """A driver that loads, or cannot."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem, self.tried = problem, 0

    def load(self, program: tuple[str, ...], device: torch.device) -> None:
        self.tried += 1
        if self.problem is not None:
            raise RuntimeError(self.problem)


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    """What was loaded, or could not be, is tried anew before and after."""
    kernels._not_loaded.cache_clear()
    yield
    kernels._not_loaded.cache_clear()


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: Loads) -> None:
    monkeypatch.setattr(nvrtc, "missing", lambda: None)
    monkeypatch.setattr(launch, "driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def test_on_the_cpu_plain_pytorch_takes_the_step() -> None:
    assert obstacle(plain_step()) == "the kernel needs images on a CUDA device, got cpu"


def test_on_cuda_the_kernel_takes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, Loads())
    assert obstacle(on_cuda(2, 3, 4, 4)) is None


def test_without_nvrtc_plain_pytorch_takes_the_step_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nvrtc, "missing", lambda: "no NVRTC here")
    assert obstacle(on_cuda(2, 3, 4, 4)) == "no NVRTC here"
    assert "attack steps on cuda:0 run in plain PyTorch: no NVRTC here" in caplog.text


def test_kernels_that_cannot_be_loaded_are_tried_once_and_plain_pytorch_takes_the_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Loads("pgd_step.cu does not compile")
    with_driver(monkeypatch, driver)
    for _ in range(2):
        assert obstacle(on_cuda(2, 3, 4, 4)) == "pgd_step.cu does not compile"
    assert driver.tried == 1
    assert "run in plain PyTorch: pgd_step.cu does not compile" in caplog.text


def test_kernels_that_a_capture_keeps_from_loading_are_an_error_and_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Loads("nothing can be loaded while a CUDA graph is captured")
    with_driver(monkeypatch, driver)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
        obstacle(on_cuda(2, 3, 4, 4))
    driver.problem = None
    assert obstacle(on_cuda(2, 3, 4, 4)) is None


def test_an_image_too_large_for_32_bit_indices_takes_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, Loads())
    assert obstacle(on_cuda(4, 2**31 - 1)) is None
    assert "at most 2147483647 numbers" in (obstacle(on_cuda(4, 2**31)) or "")

"""The operators under torch's own checks and compilers, and the messages of the front door."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretune import kernels
from paretune.kernels import ops, pgd_step, random_start
from paretune.kernels.reference import Norm
from paretune.selftest.comparing import NORMS


def arguments(**changes: Any) -> dict[str, Any]:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    plain = {
        "gradient": images - 0.5,
        "images": images,
        "images_adv": images,
        "norm": "Linf",
        "step_size": 0.1,
        "epsilon": 0.2,
    }
    return plain | changes


def positional(norm: Norm, out_dtype: torch.dtype | None, layout: torch.memory_format) -> tuple[Any, ...]:
    images = torch.rand(2, 3, 4, 5).contiguous(memory_format=layout)
    channel = None if out_dtype is None else torch.full((3,), 0.5)
    amounts = (torch.tensor(0.1), torch.tensor([0.1, 0.2]))
    return (images, images, images, *amounts, channel, channel, norm, out_dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("out_dtype", [None, torch.float16])
@pytest.mark.parametrize("norm", NORMS)
def test_the_step_operator_passes_torch_s_checks(
    norm: Norm, out_dtype: torch.dtype | None, layout: torch.memory_format
) -> None:
    outcomes = torch.library.opcheck(ops.pgd_step, positional(norm, out_dtype, layout))
    assert set(outcomes.values()) == {"SUCCESS"}


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_operator_passes_torch_s_checks(norm: Norm) -> None:
    images = torch.rand(2, 3, 4, 5)
    outcomes = torch.library.opcheck(
        ops.random_start, (images, torch.tensor([0.1, 0.2]), torch.tensor(3), norm)
    )
    assert set(outcomes.values()) == {"SUCCESS"}


def test_a_derivative_of_the_operators_is_refused_with_the_way_out() -> None:
    values = list(positional("Linf", None, torch.contiguous_format))
    values[2] = values[2].clone().requires_grad_()
    moved, _ = ops.pgd_step(*values)
    with pytest.raises(RuntimeError, match=r"no derivative.*detach"):
        moved.sum().backward()


class Victim(nn.Module):
    """Convolution, batch norm and a linear layer, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def attack_step(norm: Norm, use_operator: bool) -> Any:
    """Gradient and step in one function, as the engine compiles it."""
    victim, goals = Victim(), torch.tensor([0, 3])

    def loss(images: Tensor) -> Tensor:
        return nn.functional.cross_entropy(victim(images), goals, reduction="sum")

    def step(images: Tensor, images_adv: Tensor, step_size: Tensor, epsilon: Tensor) -> Tensor:
        gradient = torch.func.grad(loss)(images_adv)
        if use_operator:
            moved, _ = ops.pgd_step(gradient, images, images_adv, step_size, epsilon, None, None, norm, None)
        else:
            moved, _ = pgd_step(gradient, images, images_adv, norm=norm, step_size=step_size, epsilon=epsilon)
        return moved

    return step


def assert_one_graph(norm: Norm, use_operator: bool, backend: str) -> None:
    torch._dynamo.reset()
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    step = attack_step(norm, use_operator)
    compiled = torch.compile(step, fullgraph=True, backend=counting)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for amount in (0.1, 0.2):  # as tensors, so that another amount compiles nothing
            amounts = torch.tensor(amount / 2), torch.tensor(amount)
            assert torch.allclose(
                compiled(images, images, *amounts), step(images, images, *amounts), rtol=0, atol=1e-6
            )
    assert len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes if "paretune" in str(node.target)]
    assert bool(called) == use_operator


@pytest.mark.parametrize("use_operator", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_and_step_compile_to_one_graph(norm: Norm, use_operator: bool) -> None:
    assert_one_graph(norm, use_operator, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "use_operator"), [("Linf", False), ("L2", True)]
)  # what "auto" takes on a GPU
def test_gradient_and_step_compile_with_inductor(norm: Norm, use_operator: bool) -> None:
    assert_one_graph(norm, use_operator, "inductor")


@pytest.mark.slow
def test_inductor_makes_one_loop_of_the_whole_tail_of_a_linf_step() -> None:
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    images, amount = torch.rand(2, 3, 16, 16), torch.tensor(0.1)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)

    def tail(gradient: Tensor, images: Tensor, images_adv: Tensor) -> tuple[Tensor, Tensor]:
        return pgd_step(
            gradient,
            images,
            images_adv,
            norm="Linf",
            step_size=amount,
            epsilon=amount,
            mean=mean,
            std=std,
            out_dtype=torch.bfloat16,
        )

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
        ({"fused": "yes"}, ValueError, "fused must be"),
        ({"fused": "cuda"}, ValueError, "needs images on a CUDA device, got cpu"),
        ({"images": torch.zeros(2, 3, 4, 5).half()}, TypeError, "images must be float32"),
        ({"images_adv": torch.zeros(2, 3, 4, 5).double()}, TypeError, "images_adv must be float32"),
        ({"gradient": torch.zeros(2, 3, 4, 5).double()}, TypeError, "gradient must be float32, bfloat16"),
        (
            {"gradient": torch.zeros(2, 3, 4, 4)},
            ValueError,
            r"gradient must have the shape of images, \(2, 3",
        ),
        ({"step_size": torch.zeros(3)}, ValueError, r"step_size must have one value or one an image \(2\)"),
        ({"epsilon": torch.zeros(2).double()}, TypeError, "epsilon must be a number or a float32 tensor"),
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
        pgd_step(**arguments(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": 3}, TypeError, "seed must be an int64 tensor with one value"),
        ({"seed": torch.zeros(2, dtype=torch.long)}, TypeError, "seed must be an int64 tensor"),
        ({"images": torch.zeros(3)}, ValueError, "batch first"),
        ({"fused": "cuda"}, ValueError, "needs images on a CUDA device"),
    ],
)
def test_a_wrong_argument_of_a_start_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    plain = {"images": torch.zeros(2, 3, 4, 4), "epsilon": 0.1, "seed": torch.tensor(0), "norm": "Linf"}
    with pytest.raises(error, match=message):
        random_start(**(plain | changes))


@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_batch_gives_empty_results(norm: Norm) -> None:
    nothing = torch.zeros(0, 3, 4, 4)
    moved, model_input = pgd_step(
        nothing, nothing, nothing, norm=norm, step_size=0.1, epsilon=0.1, out_dtype=torch.bfloat16
    )
    assert moved.shape == model_input.shape == nothing.shape
    assert model_input.dtype is torch.bfloat16
    assert random_start(nothing, 0.1, torch.tensor(0), norm=norm).shape == nothing.shape


class OnCuda:
    """What the choice of a path looks at, of a tensor on a GPU."""

    is_cuda = True

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


@pytest.mark.parametrize(
    ("fused", "inductor_fuses", "compiling", "kernel"),
    [
        ("auto", True, False, True),
        ("auto", False, False, True),
        ("auto", True, True, False),
        ("auto", False, True, True),
        ("cuda", True, True, True),
        ("torch", False, False, False),
    ],
)
def test_on_cuda_the_kernel_is_taken_where_it_helps(
    fused: str, inductor_fuses: bool, compiling: bool, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    images: Any = OnCuda(2, 3, 4, 4)
    assert kernels._use_kernel(fused, images, inductor_fuses=inductor_fuses) is kernel


def test_without_nvrtc_cuda_tensors_take_plain_pytorch_and_cuda_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: "no NVRTC here")
    images: Any = OnCuda(2, 3, 4, 4)
    assert not kernels._use_kernel("auto", images, inductor_fuses=False)
    with pytest.raises(ImportError, match="no NVRTC here"):
        kernels._use_kernel("cuda", images, inductor_fuses=False)


def test_an_image_too_large_for_32_bit_indices_takes_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: None)
    fits: Any = OnCuda(4, 2**31 - 1)
    large: Any = OnCuda(4, 2**31)
    assert kernels._use_kernel("auto", fits, inductor_fuses=False)
    assert not kernels._use_kernel("auto", large, inductor_fuses=False)
    with pytest.raises(ValueError, match="at most 2147483647 numbers"):
        kernels._use_kernel("cuda", large, inductor_fuses=False)

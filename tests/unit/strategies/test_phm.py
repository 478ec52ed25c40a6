"""PHM layers against the Kronecker products of their definition."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paretune.backbones.sites import Site
from paretune.strategies.adapter import ACTIVATIONS
from paretune.strategies.compacter import Compacter, CompacterAdapter
from paretune.strategies.phm import PHM, bottleneck, new_rule

WIDTH = 24


def adapter(
    strategy: Compacter | None = None, width: int = WIDTH, dtype: torch.dtype = torch.float64
) -> CompacterAdapter:
    """With every parameter random."""
    strategy = strategy or Compacter(reduction=3, n=2, rank=2)
    like = torch.zeros(1, dtype=dtype)
    torch.manual_seed(0)
    rule = new_rule(strategy.n, like) if strategy.shared_rule else None
    made = CompacterAdapter(Site("", "output", "mlp", width, -1), strategy, rule, like)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def kronecker(layer: PHM, shared: Tensor | None) -> Tensor:
    """H = sum_i A_i ⊗ (s_i t_i), as it is written."""
    rule = layer.rule if shared is None else shared
    terms = [torch.kron(a, s @ t) for a, s, t in zip(rule, layer.s, layer.t, strict=True)]
    return torch.stack(terms).sum(0)


def by_definition(module: CompacterAdapter, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    rule = getattr(module, "rule", None)
    z = activation(x @ kronecker(module.down, rule) + module.down.b)
    return x + z @ kronecker(module.up, rule) + module.up.b


@pytest.mark.parametrize(
    "strategy",
    [
        *(Compacter(reduction=3, n=2, rank=2, activation=name) for name in ACTIVATIONS),
        Compacter(reduction=6, n=4),
        Compacter(reduction=24, n=1, rank=3),
        Compacter(reduction=3, n=3, shared_rule=False),
    ],
    ids=repr,
)
def test_outputs_and_all_gradients_are_those_of_the_kronecker_product(strategy: Compacter) -> None:
    module = adapter(strategy)
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    found, expected = module(x), by_definition(module, x, ACTIVATIONS[strategy.activation])
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected)
    direction = torch.randn_like(found)
    inputs = [x, *module.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_branches_of_convolutions_and_other_reads_compute_the_same() -> None:
    module = adapter()
    x, h = torch.randn(2, 3, 4, 5, WIDTH, dtype=torch.float64)[:, 0]
    change = by_definition(module, x, nn.functional.gelu) - x
    torch.testing.assert_close(module(x, h), h + change)
    torch.testing.assert_close(module(x, x), x + change)
    module.channel_axis = 1
    torch.testing.assert_close(module(x.movedim(-1, 1)), (x + change).movedim(-1, 1))


def test_a_gradient_of_the_gradient_is_right() -> None:
    module = adapter()
    parameters = list(module.parameters())

    def function(x: Tensor, *_: Tensor) -> Tensor:
        found: Tensor = module(x)
        return found

    x = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_a_gradient_by_torch_func_is_that_of_autograd() -> None:
    module = adapter()
    x = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(module(x).square().sum(), x)[0]
    found = torch.func.grad(lambda images: module(images).square().sum())(x.detach())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_training_compiles_without_a_graph_break(frozen: bool) -> None:
    module = adapter().requires_grad_(not frozen)
    x = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x).square().sum(), inputs)
    expected = torch.autograd.grad(module(x).square().sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16])
def test_under_autocast_the_branch_keeps_its_precision_and_training_works(width: torch.dtype) -> None:
    module = adapter(dtype=torch.float32)
    x = torch.randn(4, WIDTH).to(width).requires_grad_()
    expected = by_definition(module, x.float(), nn.functional.gelu)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x)
    assert found.dtype == width
    # The change is computed from bfloat16, of 8 bits: some additions of that relative error.
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=8 * 2**-8 * scale)
    found.float().square().sum().backward()
    exact = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    for parameter, other in zip(module.parameters(), exact, strict=True):
        assert parameter.grad is not None
        assert float(nn.functional.cosine_similarity(parameter.grad.flatten(), other.flatten(), dim=0)) > 0.99


class Largest(TorchDispatchMode):
    """Notes the shapes of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self.shapes += [value.shape for value in tree_leaves(outputs) if isinstance(value, Tensor)]
        return outputs


def test_no_tensor_without_the_batch_is_as_large_as_the_kronecker_product() -> None:
    module = adapter(Compacter(), width=768, dtype=torch.float32)
    tokens = 13  # divides no size of the layer
    x = torch.randn(tokens, 768, requires_grad=True)
    with Largest() as seen:
        module(x).sum().backward()
    assert seen.shapes
    narrow = Compacter().bottleneck(768)
    assert max(shape.numel() for shape in seen.shapes if shape.numel() % tokens) < 768 * narrow / 10


def test_training_keeps_the_branch_and_a_few_numbers_a_token() -> None:
    module = adapter(Compacter(), width=768, dtype=torch.float32)
    x = torch.randn(2, 197, 768, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = module(x)
    assert outputs.requires_grad
    kept.pop(x.untyped_storage().data_ptr())
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    constant = 4 * 2 * 16 * 24  # the two factors that the rule has mixed
    assert sum(size for place, size in kept.items() if place not in own) <= 4 * 2 * 197 * 16 + constant


def test_the_bottleneck_alone_is_the_change() -> None:
    module = adapter()
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    alone = bottleneck(x, module.down, module.up, module.rule, nn.functional.gelu, add=False)
    torch.testing.assert_close(x + alone, module(x))

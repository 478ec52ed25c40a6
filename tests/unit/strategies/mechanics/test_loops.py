"""A module that goes through its own children, or counts them, would run what is inserted into it: it is refused."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.strategies.mechanics.base import Inserted


class Branch(nn.Module):
    """Two layers, which the subclasses run in ways of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)


class ByChildren(Branch):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class ByName(Branch):
    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            x = layer(x) if name else x
        return x


class ByModules(Branch):
    """Finds the layers inside of what is inserted."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.modules():
            x = layer(x) if isinstance(layer, nn.Linear) else x
        return x


class LastAlone(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return [*self.children()][-1](self.one(x))  # type: ignore[no-any-return]


class Counting(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)) / len([*self.children()])  # type: ignore[no-any-return]


class Unpacking(Branch):
    def forward(self, x: Tensor) -> Tensor:
        one, two = self.children()
        return two(one(x))  # type: ignore[no-any-return]


class Plain(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Tokens of patches, a residual branch, a head."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 4, 4), branch, nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        return self.head((x + self.branch(x)).mean(1))  # type: ignore[no-any-return]


class Root(nn.Module):
    """A whole model that goes through its children."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.flat = nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


def backbone(kind: type[nn.Module], *sites: str) -> pt.Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Root() if kind is Root else Network(kind())
    return pt.Backbone(module.eval(), image_size=8, head="head", sites=sites or ["branch"])


STRATEGIES = [pt.Adapter(reduction=2), pt.Compacter(n=2, reduction=2), pt.LoRA(rank=2) + pt.Adapter()]


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        *itertools.product([ByChildren, ByName, LastAlone, Counting, Unpacking], STRATEGIES),
        (ByModules, pt.Adapter(reduction=2)),  # Compacter has no Linear that such a loop would find
    ],
    ids=repr,
)
def test_a_module_that_would_run_what_it_holds_is_refused_and_stays_as_it_is(
    kind: type[nn.Module], strategy: pt.strategies.Strategy
) -> None:
    base = backbone(kind)
    images, before = torch.rand(2, 3, 8, 8), [name for name, _ in base.named_modules()]
    expected = base(images)
    with pytest.raises(ValueError, match=r"Network (runs|changes) .* at 'branch'.*nn\.Sequential.*sites="):
        pt.adapt(base, strategy)
    assert [name for name, _ in base.named_modules()] == before
    assert torch.equal(base(images), expected)


def test_a_whole_model_that_goes_through_its_children_takes_no_border() -> None:
    with pytest.raises(ValueError, match=r"Root runs what is inserted at ''"):
        pt.adapt(backbone(Root, "stem"), pt.VisualPrompt(size=1))


def test_a_loop_over_all_modules_finds_the_layers_of_an_adapter_that_a_layer_holds() -> None:
    with pytest.raises(ValueError, match=re.escape("Network runs what is inserted at 'branch.two'")):
        pt.adapt(backbone(ByModules, "branch.two"), pt.Adapter())


@pytest.mark.parametrize("kind", [ByChildren, ByName, LastAlone, Counting, Unpacking, Plain])
def test_the_last_of_the_layers_is_the_way_out(kind: type[nn.Module], tmp_path: Path) -> None:
    adapted = pt.adapt(backbone(kind, "branch.two"), pt.Adapter())
    runs: list[str] = []
    for name, part in adapted.named_modules():
        if isinstance(part, Inserted):
            part.register_forward_hook(lambda *_, name=name: runs.append(name))
    adapted(torch.rand(2, 3, 8, 8))
    assert len(runs) == 1


def test_an_adapter_file_does_not_go_onto_such_a_module(tmp_path: Path) -> None:
    pt.save_adapter(pt.adapt(backbone(Plain), pt.Adapter()), tmp_path / "adapter")
    other = backbone(ByChildren)
    names = [name for name, _ in other.module.named_modules()]
    with pytest.raises(ValueError, match="runs what is inserted at 'branch'"):
        pt.load_adapter(other.module, tmp_path / "adapter")
    assert [name for name, _ in other.module.named_modules()] == names

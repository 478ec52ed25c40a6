"""Modules inserted around a sequence of layers run once, at its edge, and not as one more of its layers."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.strategies.mechanics.base import Inserted
from tests.contracts import contract


class Residual(nn.Module):
    """A branch whose layers are in ``body``, which is gone through."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """As any residual block."""
        return x + self.body(x)  # type: ignore[no-any-return]


class Steps(nn.ModuleDict):
    """Layers by name, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """Through all of them."""
        for layer in self.values():
            x = layer(x)
        return x


def network(kind: str) -> pt.Backbone:
    """A plain sequence with one residual block."""
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    bodies = {
        "sequential": lambda: nn.Sequential(*layers),
        "nested": lambda: nn.Sequential(nn.Sequential(*layers[:2]), layers[2]),
        "dict": lambda: Steps(dict(zip("abc", layers, strict=True))),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = Residual(bodies[kind]())
        module = nn.Sequential(
            nn.Conv2d(3, 8, 2, 2), block, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
        )
    return pt.Backbone(module.eval(), image_size=8, sites=["1.body"])


@pytest.mark.parametrize("kind", ["sequential", "nested", "dict"])
@pytest.mark.parametrize(
    "strategy",
    [pt.Compacter(), pt.Adapter(), pt.VisualPrompt(size=1), pt.LoRA(rank=2) + pt.Compacter()],
    ids=repr,
)
def test_the_contract_holds_around_a_sequence(
    kind: str, strategy: pt.strategies.Strategy, tmp_path: Path
) -> None:
    contract.check(network(kind), strategy, tmp_path)


@pytest.mark.parametrize("kind", ["sequential", "nested", "dict"])
@pytest.mark.parametrize("strategy", [pt.Compacter(), pt.Adapter(), pt.VisualPrompt(size=1)], ids=repr)
def test_an_inserted_module_runs_once(kind: str, strategy: pt.strategies.Strategy) -> None:
    backbone = pt.adapt(network(kind), strategy)
    runs: list[str] = []
    for name, part in backbone.named_modules():
        if isinstance(part, Inserted):
            part.register_forward_hook(lambda *_, name=name: runs.append(name))
    backbone(torch.rand(2, 3, 8, 8))
    assert len(runs) == 1


def test_an_empty_sequence_holds_nothing() -> None:
    backbone = pt.Backbone(
        nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Sequential(), nn.Flatten(), nn.Linear(128, 5)).eval(),
        image_size=8,
        sites=["1"],
    )
    with pytest.raises(ValueError, match="'1' is an empty Sequential"):
        pt.adapt(backbone, pt.Compacter())


def test_adapters_around_a_sequence_blend(tmp_path: Path) -> None:
    base = network("sequential")
    x = torch.rand(2, 3, 8, 8)
    for number in (1, 2):
        adapted = pt.adapt(copy.deepcopy(base), pt.Compacter(), seed=number)
        contract.perturb(adapted)
        pt.save_adapter(adapted, tmp_path / str(number))
        alone = contract.logits(adapted, x)
    together = pt.interchange.AdapterSet(base)
    for number in (1, 2):
        together.add(str(number), tmp_path / str(number))
    together.activate({"1": 0.0, "2": 1.0})
    torch.testing.assert_close(contract.logits(base, x), alone)

"""The depth of a parameter, by hand, where a network is not written in the order in which it runs too."""

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.backbones import Site
from paretune.training.depth import depths
from tests.contracts import backbones


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.fc(x).relu())


class Network(nn.Module):
    """Runs bottom, low, between, high, top; ``scale`` is used at the end and ``shared`` in both blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.token = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.unused = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 3)
        self.high, self.low = Block(), Block()
        self.high.shared = self.low.shared = nn.Parameter(torch.zeros(4))
        self.top, self.between, self.bottom = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bottom(x.flatten(1)) + self.token
        x = self.high(self.between(self.low(x) + self.low.shared)) + self.high.shared
        return self.head(self.top(x) * self.scale)


def backbone(module: nn.Module, *blocks: str) -> pt.Backbone:
    sites = [Site(f"{block}.drop", "output", "mlp", 4, -1, block) for block in blocks]
    return pt.Backbone(module, sites=sites, image_size=2, head="head")


def test_depth_is_counted_in_the_order_in_which_an_image_passes() -> None:
    assert depths(backbone(Network().eval(), "high", "low")) == {
        "unused": 0, "token": 0, "bottom.weight": 0, "bottom.bias": 0,
        "low.fc.weight": 1, "low.fc.bias": 1, "high.shared": 1,
        "between.weight": 2, "between.bias": 2, "high.fc.weight": 2, "high.fc.bias": 2,
        "top.weight": 2, "top.bias": 2, "scale": 2,
        "head.weight": 3, "head.bias": 3,
    }  # fmt: skip


def test_a_block_that_runs_twice_has_the_depth_of_its_first_run() -> None:
    class Twice(Network):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.head(self.low(self.bottom(x.flatten(1))))

    found = depths(backbone(Twice().eval(), "low", "high"))
    assert found["low.fc.weight"] == 1
    assert found["high.fc.weight"] == 2


def test_looking_changes_nothing() -> None:
    model = backbone(Network(), "low", "high").train()
    model.module.between.eval()
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    random = torch.get_rng_state()
    depths(model)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_known_blocks_there_is_no_depth() -> None:
    with pytest.raises(ValueError, match=r"no residual blocks are known in VGG.*sites="):
        depths(backbones.make("vgg11"))


@pytest.mark.parametrize(
    "name", ["hf_vit", "hf_convnext", "hf_resnet", "clip_vit", "tv_swin", "efficientnet_lite0"]
)
def test_depth_grows_from_the_stem_to_the_head_in_every_library(name: str) -> None:
    model = backbones.make(name)
    names = list(dict.fromkeys(site.block for site in model.sites))
    found = depths(model)
    assert found.keys() == dict(model.module.named_parameters()).keys()
    for key, depth in found.items():
        inside = [number for number, block in enumerate(names, start=1) if key.startswith(f"{block}.")]
        if inside:
            assert depth == inside[0], key
        elif key.startswith(f"{model.head}."):
            assert depth == len(names) + 1
        elif "embed" in key or key.startswith(("conv_stem", "features.0", "conv1")):
            assert depth == 0, key
    assert list(found.values()) == sorted(found.values())


@pytest.mark.parametrize("strategy", [pt.LoRA(rank=2), pt.Compacter(), pt.Adapter()], ids=repr)
def test_the_depth_of_the_model_is_the_same_with_an_adapter(strategy: pt.strategies.Strategy) -> None:
    before = depths(backbones.make("convnext_atto"))
    after = depths(pt.adapt(backbones.make("convnext_atto"), strategy))
    base = {
        name.replace("parametrizations.", "").replace(".original", ""): depth for name, depth in after.items()
    }
    assert {name: base[name] for name in before} == before

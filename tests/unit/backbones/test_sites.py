"""The ends of residual branches are found in each family, where they are said to be."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from paretune import Backbone
from paretune.backbones import Site
from paretune.strategies.mechanics.selection import blocks
from tests.contracts.backbones import EVERY, OTHERS, images, make

# Networks whose layers add nothing to a stream, or in a way that no family rule covers.
WITHOUT = {"densenet121", "repvgg_a0", "mobileone_s0", "vgg11", "vgg11_bn", "dla46_c", "hf_mobilenet_v1"}
QUICK = {
    "test_vit",
    "cait_xxs24_224",
    "swinv2_tiny_window8_256",
    "mobilenetv3_small_050",
    "regnety_002",
    "hf_swin",
    "hf_resnet",
    "visformer_tiny",
    "csatv2",
    *OTHERS,
}
WITH = [
    pytest.param(arch, marks=() if arch in QUICK else pytest.mark.slow)
    for arch in EVERY
    if arch not in WITHOUT
]
# Parts of a block through which the stream itself may go.
STREAM = ("downsample", "shortcut", "norm1", "pre_norm")


@pytest.mark.some(5)
@pytest.mark.parametrize("arch", WITH)
def test_a_branch_that_is_zero_at_its_site_is_cut_off(arch: str) -> None:
    """Of the whole of each branch: no parameter of it gets a gradient then; and the tensor is laid out as the site says."""
    backbone = make(arch)
    sites = backbone.sites
    assert sites
    shapes: dict[Site, torch.Size] = {}

    def cut(site: Site, branch: torch.Tensor) -> torch.Tensor:
        shapes[site] = branch.shape
        return branch * 0

    def changed(site: Site, output: Any) -> Any:
        return (cut(site, output[0]), *output[1:]) if isinstance(output, tuple) else cut(site, output)

    for site in sites:
        place = backbone.module.get_submodule(site.module)
        if site.edge == "input":
            place.register_forward_pre_hook(lambda _m, args, site=site: (cut(site, args[0]), *args[1:]))
        else:
            place.register_forward_hook(lambda _m, _args, output, site=site: changed(site, output))
    backbone.double()  # in float32 the gradient of the stem of hf_efficientnet is too small to be told from zero
    backbone(images(backbone.image_size).double()).square().sum().backward()
    assert list(shapes) == list(sites)  # each is passed once, and in forward order
    for site, shape in shapes.items():
        assert shape[site.channel_axis] == site.width
        assert len(shape) == 4 or site.channel_axis == -1 or site.branch == "attention"
        for name, parameter in _parameters(backbone, site):
            assert parameter.grad is None or not parameter.grad.any(), name
    parameters = dict(backbone.module.named_parameters())
    assert parameters[f"{backbone.head}.weight"].grad.any()
    # The stream still reaches what comes before the first block: the stem, or the class token where only that one is read.
    first = blocks(sites)[0]
    before = itertools.takewhile(lambda name: not name.startswith(first), parameters)
    assert any(parameters[name].grad is not None and parameters[name].grad.any() for name in before)


def _parameters(backbone: Backbone, site: Site) -> Iterator[tuple[str, torch.nn.Parameter]]:
    place = site.body or site.block
    for own, parameter in backbone.module.get_submodule(place).named_parameters():
        if site.body or not own.startswith(STREAM):
            yield f"{place}.{own}", parameter


@pytest.mark.parametrize("arch", sorted(WITHOUT))
def test_networks_without_residual_branches_have_no_sites(arch: str) -> None:
    assert make(arch).sites == ()


def test_blocks_are_counted_in_forward_order_each_once() -> None:
    assert blocks(make("test_vit").sites) == [f"blocks.{index}" for index in range(6)]
    assert blocks((Site("a", "output", "conv", 8, 1), Site("b.c", "input", "mlp", 8, -1, "b"))) == ["a", "b"]

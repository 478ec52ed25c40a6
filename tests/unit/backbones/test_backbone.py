"""Backbones: names, sizes, normalisation, heads, weights and sites."""

import pytest
import torch
from torch import nn

import paretune as pt
from paretune.backbones.backbone import find_head, in_order
from tests.contracts.backbones import make


def test_images_are_normalised_inside() -> None:
    inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model = pt.Backbone(inner, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125), image_size=8)
    x = torch.rand(4, 3, 8, 8)
    by_hand = (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.5, 0.25, 0.125]).view(
        1, 3, 1, 1
    )
    assert torch.equal(model(x), inner(by_hand))


def test_the_seed_decides_the_weights_and_the_global_random_state_stays() -> None:
    state = torch.get_rng_state()
    first, again, other = (make("test_vit", seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_the_fingerprint_covers_weights_but_not_the_head() -> None:
    backbone = make("resnet18")
    before = backbone.fingerprint
    with torch.no_grad():
        backbone.module.fc.weight.add_(1)
    assert backbone.fingerprint == before
    with torch.no_grad():
        backbone.module.bn1.running_mean[0] += 1
    assert backbone.fingerprint != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "did you mean 'timm:vit_tiny_patch16_224'"),
        ("dinov2_small", "did you mean 'dinov2-small'"),
        ("timm:resnet1234", "near names: resnet"),
        ("timm:no such", "timm has no model"),
        ("hf:/no/such/dir", "cannot read hf:"),
    ],
)
def test_an_unknown_name_gets_near_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pt.load_backbone(name, num_classes=3, pretrained=False)


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        pt.load_backbone("timm:resnet18", num_classes=1, pretrained=False)
    with pytest.raises(ValueError, match="img_size"):
        pt.load_backbone("timm:vit_tiny_patch16_224", num_classes=2, pretrained=False, img_size=100)
    with pytest.raises(ValueError, match="std > 0"):
        pt.Backbone(nn.Linear(2, 2), std=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="head must name"):
        find_head(nn.Sequential(nn.ReLU()), None)
    with pytest.raises(ValueError, match="head must name"):
        pt.Backbone(nn.Linear(2, 2), head="nope")


def test_a_state_dict_loads_with_a_fresh_head_and_a_wrong_one_is_named(tmp_path) -> None:
    from safetensors.torch import save_file

    source = pt.load_backbone("timm:resnet18", num_classes=7, pretrained=False, seed=5)
    state = dict(source.module.state_dict())
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    for weights in (state, tmp_path / "w.safetensors", str(tmp_path / "w.pth")):
        loaded = pt.load_backbone("timm:resnet18", num_classes=3, weights=weights)
        assert loaded.fingerprint == source.fingerprint
        assert loaded.num_classes == 3
    same = pt.load_backbone("timm:resnet18", num_classes=7, weights=state)
    assert torch.equal(same.module.fc.weight, source.module.fc.weight)
    del state["conv1.weight"]
    with pytest.raises(ValueError, match=r"missing conv1\.weight"):
        pt.load_backbone("timm:resnet18", num_classes=3, weights=state)
    with pytest.raises(ValueError, match="existing file"):
        pt.load_backbone("timm:resnet18", num_classes=3, weights=tmp_path / "nope.pth")


def test_position_embeddings_are_resampled_to_the_image_size() -> None:
    state = pt.load_backbone("timm:vit_tiny_patch16_224", num_classes=3, pretrained=False).module.state_dict()
    small = pt.load_backbone("timm:vit_tiny_patch16_224", num_classes=3, weights=dict(state), img_size=64)
    assert small.module.pos_embed.shape[1] == 17
    assert small(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_a_transformers_directory_loads_with_a_new_head(tmp_path) -> None:
    import transformers

    module = make("hf_vit").module
    module.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read|image_mean"):
        pt.load_backbone(f"hf:{tmp_path}", num_classes=3)
    transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.5, 0.5]).save_pretrained(
        tmp_path
    )
    loaded = pt.load_backbone(f"hf:{tmp_path}", num_classes=3)
    assert loaded.num_classes == 3
    assert loaded.image_size == 32
    assert [round(value, 3) for value in loaded.mean.flatten().tolist()] == [0.1, 0.2, 0.3]
    assert torch.equal(
        loaded.module.state_dict()["vit.embeddings.cls_token"], module.vit.embeddings.cls_token
    )
    with pytest.raises(ValueError, match="image_size=32"):
        pt.load_backbone(f"hf:{tmp_path}", num_classes=3, img_size=64)


@pytest.mark.parametrize(
    ("arch", "count", "width"),
    [
        ("test_vit", 12, 64),
        ("vit_tiny_patch16_224", 24, 192),
        ("convnext_atto", 12, 40),
        ("resnet18", 8, 64),
        ("efficientnet_lite0", 9, 24),
        ("hf_vit", 6, 64),
    ],
)
def test_residual_branches_are_found(arch: str, count: int, width: int) -> None:
    sites = make(arch).sites
    assert len(sites) == count
    assert sites[0].width == width


@pytest.mark.parametrize("arch", ["test_vit", "convnext_atto", "resnet18", "efficientnet_lite0", "hf_vit"])
def test_a_site_is_the_whole_branch(arch: str) -> None:
    """Zeroing the branch at every site leaves only the stream: a change inside the branches cannot reach the output."""
    backbone = make(arch)
    x = torch.rand(1, 3, backbone.image_size, backbone.image_size)
    for site in backbone.sites:
        place = backbone.module.get_submodule(site.module)
        if site.edge == "input":
            place.register_forward_pre_hook(lambda _module, args: (args[0] * 0,))
        else:
            place.register_forward_hook(lambda _module, _args, output: output * 0)
    before = backbone(x)
    names = {
        "test_vit": ["blocks.0.attn.qkv", "blocks.5.mlp.fc1"],
        "convnext_atto": ["stages.0.blocks.0.conv_dw", "stages.3.blocks.1.mlp.fc2"],
        "resnet18": ["layer1.0.conv1", "layer4.1.conv2"],
        "efficientnet_lite0": ["blocks.1.1.conv_pw", "blocks.5.3.conv_pwl"],
        "hf_vit": ["vit.layers.0.attention.q_proj", "vit.layers.2.mlp.fc1"],
    }[arch]
    with torch.no_grad():
        for name in names:
            backbone.module.get_submodule(name).weight.mul_(-3)
    assert torch.equal(backbone(x), before)


class Unknown(nn.Module):
    """A residual network of no known family."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.branch(x)
        return self.classifier(x.mean((2, 3)))


def test_an_unknown_family_takes_patterns_and_otherwise_lists_candidates() -> None:
    with pytest.raises(
        ValueError, match=r"no residual branch is known in Unknown.*candidates: stem, branch, classifier"
    ):
        pt.adapt(pt.Backbone(Unknown(), image_size=16), pt.Compacter())
    with pytest.raises(ValueError, match="pattern 'brunch' matches no module"):
        _ = pt.Backbone(Unknown(), image_size=16, sites=["brunch"]).sites
    backbone = pt.Backbone(Unknown(), image_size=16, sites=["bran*"])
    assert backbone.sites == (pt.backbones.Site("branch", "output", "conv", 8, 1),)
    pt.adapt(backbone, pt.Compacter(reduction=2))
    assert "branch.compacter.up.t" in pt.strategies.trainable_parameters(backbone)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_in_order_are_those_of_an_index_in_its_layout(layout: torch.memory_format) -> None:
    images = torch.rand(2, 3, 5, 7).contiguous(memory_format=layout)
    found, wanted = in_order(images, (2, 0, 1)), images[:, (2, 0, 1)]
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()

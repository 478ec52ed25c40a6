"""One image shows where the ends of branches are: no place is taken on faith, and none is adapted wrongly in silence."""

import logging
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune import Backbone
from paretune.backbones import Site
from paretune.strategies import Strategy
from tests.contracts.backbones import make
from tests.contracts.contract import check, logits, perturb

BOTTLENECKS = [pt.Adapter(reduction=4), pt.Compacter(n=2, reduction=4)]


class Branches(nn.Module):
    """A timm-like block of attention and MLP whose stream is laid out in any of the ways there are."""

    def __init__(self, width: int, layout: str = "tokens", **parts: nn.Module) -> None:
        super().__init__()
        self.layout = layout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop_path1 = parts.get("drop_path1", nn.Identity())
        self.drop_path2 = parts.get("drop_path2", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        back = (lambda y: y.movedim(-1, 1)) if self.layout == "images" else (lambda y: y)
        last = (lambda y: y.movedim(1, -1)) if self.layout == "images" else (lambda y: y)
        x = x + self.drop_path1(back(self.attn(self.norm1(last(x)))))
        return x + self.drop_path2(back(self.mlp(self.norm2(last(x)))))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Blocks on patches of 4 × 4 pixels, as images, as rows and columns of tokens, or as tokens."""

    def __init__(self, *blocks: nn.Module, width: int, layout: str = "tokens", repeat: int = 1) -> None:
        super().__init__()
        self.layout, self.repeat = layout, repeat
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.layout != "images":
            x = x.movedim(1, -1)
        if self.layout == "tokens":
            x = x.flatten(1, 2)
        for _ in range(self.repeat):
            for block in self.blocks:
                x = block(x)
        axes = (2, 3) if self.layout == "images" else tuple(range(1, x.ndim - 1))
        return self.head(x.mean(axes))  # type: ignore[no-any-return]


def backbone(*blocks: nn.Module, width: int, layout: str = "tokens", **changes: Any) -> Backbone:
    torch.manual_seed(0)
    repeat = changes.pop("repeat", 1)
    module = Network(*blocks, width=width, layout=layout, repeat=repeat)
    return Backbone(module.eval(), image_size=32, **changes)


@pytest.mark.parametrize("strategy", [*BOTTLENECKS, pt.Adapter(style="parallel")], ids=repr)
@pytest.mark.parametrize(
    "width", [8, 12]
)  # the image has 8 patches a side, so that 8 channels look like a side of it
@pytest.mark.parametrize("layout", ["images", "grid", "tokens"])
def test_the_contract_holds_however_the_stream_is_laid_out(
    layout: str, width: int, strategy: Strategy, tmp_path: Path
) -> None:
    base = backbone(*(Branches(width, layout) for _ in range(2)), width=width, layout=layout)
    assert {site.channel_axis for site in base.sites} == {1 if layout == "images" else -1}
    check(base, strategy, tmp_path / "adapter")


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("layout", ["images", "grid"])
def test_patterns_find_the_axis_of_the_channels_too(layout: str, width: int) -> None:
    base = backbone(Branches(width, layout), width=width, layout=layout, sites=["blocks.*.drop_path?"])
    axis = 1 if layout == "images" else -1
    assert [(site.width, site.channel_axis) for site in base.sites] == [(width, axis)] * 2


def test_a_pattern_whose_axis_nothing_tells_is_refused_by_name() -> None:
    class Fixed(Network):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] == 32
            return super().forward(x)

    module = Fixed(Branches(8, "grid"), width=8, layout="grid").eval()
    base = Backbone(module, image_size=32, sites=["blocks.0.drop_path1"])
    with pytest.raises(
        ValueError, match=r"'blocks.0.drop_path1', of shape \(1, 8, 8, 8\), may be on axis 1 or -1"
    ):
        _ = base.sites
    given = Site("blocks.0.drop_path1", "output", "mlp", 8, -1)
    assert Backbone(module, image_size=32, sites=[given]).sites == (given,)


def test_a_given_site_that_does_not_describe_its_module_is_refused() -> None:
    for site, reason in (
        (Site("blocks.0.drop_path1", "output", "mlp", 12, 1), "its channels are on axis -1"),
        (Site("blocks.0.drop_path1", "output", "mlp", 10, -1), "has no axis of 10 channels"),
        (Site("blocks.0", "output", "mlp", 10, -1), "has no axis of 10 channels"),
    ):
        base = backbone(Branches(12, "grid"), width=12, layout="grid", sites=[site])
        with pytest.raises(ValueError, match=reason):
            pt.adapt(base, pt.Adapter())


@pytest.mark.parametrize("strategy", BOTTLENECKS, ids=repr)
def test_a_place_that_serves_both_branches_is_left_out(
    strategy: Strategy, caplog: pytest.LogCaptureFixture
) -> None:
    shared = nn.Identity()
    base = backbone(Branches(12, drop_path1=shared, drop_path2=shared), Branches(12), width=12)
    with caplog.at_level(logging.WARNING):
        assert [site.block for site in base.sites] == ["blocks.1", "blocks.1"]
    assert "it runs 2 times while 'blocks.0' runs 1 times" in caplog.text
    pt.adapt(base, strategy)
    assert not any(name.startswith("blocks.0") for name in pt.strategies.trainable_parameters(base))


@pytest.mark.parametrize("strategy", BOTTLENECKS, ids=repr)
def test_a_network_that_runs_its_blocks_twice_runs_their_adapters_twice(
    strategy: Strategy, tmp_path: Path
) -> None:
    base = backbone(Branches(12), width=12, repeat=2)
    assert len(base.sites) == 2
    check(base, strategy, tmp_path / "adapter")


def test_blocks_that_do_not_run_count_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Idle(Branches):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Skipped(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks[0](self.stem(x).flatten(2).transpose(1, 2)).mean(1))  # type: ignore[no-any-return]

    for module in (
        Network(Branches(12), Idle(12), width=12),
        Skipped(Branches(12), Branches(12), width=12),
    ):
        base = Backbone(module.eval(), image_size=32)
        with caplog.at_level(logging.WARNING):
            assert {site.block for site in base.sites} == {"blocks.0"}
        assert "'blocks.1.drop_path1': it does not run on an image" in caplog.text
        pt.adapt(base, pt.LoRA(rank=1, where="last:1"))
        assert all(name.startswith(("blocks.0", "head")) for name in pt.strategies.trainable_parameters(base))


def test_a_model_that_fails_on_an_image_of_the_size_it_is_said_to_have_takes_no_bottleneck() -> None:
    class Fixed(Network):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 16:
                raise RuntimeError("made for 16 pixels")
            return super().forward(x)

    base = Backbone(Fixed(Branches(12), width=12).eval(), image_size=32)
    for strategy in BOTTLENECKS:
        with pytest.raises(ValueError, match=r"32 × 32 pixels.*made for 16 pixels.*image_size="):
            pt.adapt(base, strategy)
    pt.adapt(base, pt.LoRA(rank=1, where="last:1"))  # for which the structure says enough
    pt.adapt(Backbone(Fixed(Branches(12), width=12).eval(), image_size=16), pt.Adapter())


def test_nothing_runs_beside_an_mlp_of_another_width() -> None:
    base = backbone(Branches(12), width=12)
    base.module.blocks[0].norm2 = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24))
    base.module.blocks[0].mlp = nn.Linear(24, 12)
    with pytest.raises(ValueError, match=r"no bottleneck fits at 'blocks.0.mlp': it makes"):
        pt.adapt(base, pt.Adapter(style="parallel"))
    pt.adapt(base, pt.Adapter())


Attended = namedtuple("Attended", ["values", "weights"])


class Attention(nn.Module):
    """Returns its weights too, in a tuple of one kind or another."""

    def __init__(self, width: int, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        values = self.proj(weights @ v)
        return Attended(values, weights) if self.kind is Attended else self.kind([values, weights])


class InPlace(nn.Module):
    """Adds the stream to its branches in place."""

    def __init__(self, width: int, kind: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = Attention(width, kind)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        output = self.mixer(self.norm1(x))
        y: Tensor = output.values if isinstance(output, Attended) else output[0]
        y += x
        z: Tensor = self.ffn(self.norm2(y))
        z += y
        return z


@pytest.mark.parametrize("strategy", BOTTLENECKS, ids=repr)
@pytest.mark.parametrize("kind", [tuple, list, Attended])
def test_the_first_of_several_outputs_is_the_branch_and_may_be_changed_in_place(
    kind: Any, strategy: Strategy, tmp_path: Path
) -> None:
    sites = ["blocks.*.mixer", "blocks.*.ffn"]
    check(
        backbone(*(InPlace(12, kind) for _ in range(2)), width=12, sites=sites),
        strategy,
        tmp_path / "adapter",
    )


class Layers(nn.Module):
    def __init__(self, batch_first: bool, norm_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.stem = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.head(x.mean(1 if self.batch_first else 0))  # type: ignore[no-any-return]


@pytest.mark.parametrize("strategy", BOTTLENECKS, ids=repr)
@pytest.mark.parametrize(
    ("batch_first", "norm_first"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_encoder_layers_of_torch_are_a_known_family(
    batch_first: bool, norm_first: bool, strategy: Strategy
) -> None:
    base = Backbone(Layers(batch_first, norm_first).eval(), image_size=32)
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = logits(base, x)
    adapted = pt.adapt(base, strategy)
    torch.testing.assert_close(logits(adapted, x), before)  # torch's fused evaluation makes way for adapters
    assert len({name.rpartition(".")[0] for name in pt.strategies.trainable_parameters(adapted)}) > 4
    perturb(adapted)
    # Each image has its own logits, whichever images are beside it.
    torch.testing.assert_close(logits(adapted, x)[:1], logits(adapted, x[:1]))
    for part in adapted.modules():
        part.training = not isinstance(part, nn.Dropout)
    adapted(x).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.any() for p in pt.strategies.trainable_parameters(adapted).values()
    )


def test_prompts_are_refused_where_the_tokens_come_first() -> None:
    for base in (make("clip_vit"), Backbone(Layers(False, True).eval(), image_size=32)):
        with pytest.raises(ValueError, match=r"take no further tokens \(one image enters"):
            pt.adapt(base, pt.VisualPrompt(kind="deep", size=2))


def test_trying_places_leaves_the_model_as_it_was() -> None:
    base = make("test_vit")
    base.module.blocks[1].train()
    modes = [part.training for part in base.modules()]
    state = {name: value.clone() for name, value in base.state_dict().items()}
    random = torch.random.get_rng_state()
    assert base.sites == base.sites
    assert [part.training for part in base.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in base.modules())


def test_the_image_size_is_that_which_the_model_is_made_for() -> None:
    import timm
    import transformers

    config = transformers.ViTConfig(
        image_size=48, patch_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    assert Backbone(timm.create_model("test_vit")).image_size == 160
    assert Backbone(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)).image_size == 32
    assert Backbone(transformers.ViTForImageClassification(config)).image_size == 48
    assert Backbone(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))).image_size == 224
    assert Backbone(timm.create_model("test_vit"), image_size=64).image_size == 64

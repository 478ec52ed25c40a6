"""Differences and scales of weights are where they are said to be, and equal their closed forms."""

import itertools

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import paretune as pt
from paretune.attacks import attack_copy
from paretune.strategies import SSF, Strategy
from paretune.strategies.ia3 import IA3Delta
from paretune.strategies.lora import LoRADelta
from paretune.strategies.mechanics.roles import Rows, match_layer
from tests.contracts.backbones import images, make
from tests.contracts.contract import check, logits, perturb


def attentions() -> dict[str, tuple[nn.Module, str, tuple[int, ...]]]:
    """An attention module of each layout that timm has, the name of its fused layer, and a shape that it takes."""
    from timm.models.maxxvit import Attention2d, AttentionCl
    from timm.models.pvt_v2 import Attention as Reduced
    from timm.models.tiny_vit import Attention as ByHeads
    from timm.models.vision_transformer import Attention

    torch.manual_seed(0)
    return {
        "vit": (Attention(24, num_heads=3, qkv_bias=True), "qkv", (2, 5, 24)),
        "heads first": (AttentionCl(24, 24, dim_head=8, head_first=True), "qkv", (2, 5, 24)),
        "heads last": (AttentionCl(24, 24, dim_head=8, head_first=False), "qkv", (2, 5, 24)),
        "images": (Attention2d(24, 24, dim_head=8, head_first=True), "qkv", (2, 24, 2, 3)),
        "tiny vit": (ByHeads(24, 8, num_heads=3, attn_ratio=1, resolution=(2, 3)), "qkv", (2, 6, 24)),
        "pvt": (Reduced(24, num_heads=3, qkv_bias=True), "kv", (2, 6, 24)),
    }


@pytest.mark.parametrize("kind", attentions())
def test_the_rows_of_a_fused_projection_are_those_of_its_part(kind: str) -> None:
    """Doubling the values doubles the heads' output; doubling queries and halving keys changes nothing."""
    attention, fused, shape = attentions()[kind]
    attention.double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    arguments = ([2, 3],) if kind == "pvt" else ()
    layer = getattr(attention, fused)
    original = {name: value.detach().clone() for name, value in layer.named_parameters()}

    def heads(**factors: float) -> Tensor:
        """What enters the output projection when these parts of the fused one are multiplied."""
        with torch.no_grad():
            for name, value in layer.named_parameters():
                value.copy_(original[name])
                for part, factor in factors.items():
                    rows = match_layer(part, fused, layer, attention)
                    assert rows is not None
                    scale = rows.spread(torch.full((rows.of(len(value)),), factor, dtype=value.dtype), 1.0)
                    value.mul_(scale.view(-1, *[1] * (value.ndim - 1)))
        entered = []
        hook = attention.proj.register_forward_pre_hook(lambda _module, args: entered.append(args[0]))
        with torch.no_grad():
            attention(x, *arguments)
        hook.remove()
        return entered[0]

    plain = heads()
    torch.testing.assert_close(heads(v=2.0), 2 * plain)
    if fused == "qkv":
        torch.testing.assert_close(heads(q=2.0, k=0.5), plain)
    assert not torch.allclose(heads(k=3.0), plain)


def test_parts_that_are_not_of_one_size_are_refused() -> None:
    backbone = pt.Backbone(timm.create_model("lambda_resnet26t", num_classes=5).eval(), image_size=64)
    with pytest.raises(
        ValueError, match=r"'q' cannot be told apart in 'stages.2.1.self_attn.qkv' of a LambdaLayer"
    ):
        pt.adapt(backbone, pt.LoRA(targets="q"))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("parts", [p for p in itertools.product((True, False), repeat=3) if any(p)])
def test_a_difference_of_some_parts_leaves_the_others_alone(parts: tuple[bool, ...], groups: int) -> None:
    weight = torch.randn(36, 10)
    delta = LoRADelta(weight, 2, 0.5, Rows(parts, groups))
    nn.init.normal_(delta.lora_B)
    change = (delta(weight) - weight).detach().view(groups, 3, -1, 10).transpose(0, 1).reshape(3, -1, 10)
    a = delta.lora_A.view(sum(parts), -1, 10)
    b = delta.lora_B.view(sum(parts), 12, -1)
    expected = iter(0.5 * b @ a)
    for part, on in zip(change, parts, strict=True):
        torch.testing.assert_close(part, next(expected) if on else torch.zeros(12, 10))


def test_ranks_and_alphas_follow_the_patterns() -> None:
    strategy = pt.LoRA(
        rank=4, alpha=8.0, rank_pattern={"blocks.0.*": 2, "blocks.*": 3}, alpha_pattern={"*.fc1": 1.0}
    )
    assert strategy.of_layer("blocks.0.attn.qkv") == (2, 4.0)
    assert strategy.of_layer("blocks.1.mlp.fc1") == (3, 1 / 3)
    assert strategy.of_layer("head") == (4, 2.0)
    model = pt.adapt(make("test_vit"), strategy)
    parameters = pt.strategies.trainable_parameters(model)
    assert parameters["blocks.0.mlp.fc1.parametrizations.weight.0.lora_A"].shape[0] == 2
    assert parameters["blocks.5.mlp.fc1.parametrizations.weight.0.lora_A"].shape[0] == 3
    with pytest.raises(
        ValueError, match=r"pattern 'block\.0' matches none of the targeted layers patch_embed"
    ):
        pt.adapt(make("test_vit"), pt.LoRA(rank_pattern={"block.0": 2}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_pattern": {"a": 0}}, "rank_pattern must be a whole number"),
        ({"alpha_pattern": {"a": -1.0}}, "alpha_pattern must be above 0"),
        ({"rank_pattern": 3}, "rank_pattern must be a mapping"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_fields_of_lora_that_mean_nothing_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pt.LoRA(**fields)


def test_rank_stabilised_scaling_divides_by_the_root_of_the_rank() -> None:
    assert pt.LoRA(rank=16, alpha=8.0, rslora=True).scaling == 2.0
    assert pt.LoRA(rank=16, alpha=8.0).scaling == 0.5


def test_dropout_drops_whole_input_channels_while_training_only_and_keeps_the_mean() -> None:
    weight = torch.zeros(6, 8, 3, 3)
    delta = LoRADelta(weight, 4, 1.0, dropout=0.25)
    nn.init.normal_(delta.lora_B)
    full = delta.eval()(weight).detach()
    delta.train()
    torch.manual_seed(0)
    draws = torch.stack([delta(weight).detach() for _ in range(2000)])
    kept = draws.abs().sum(dim=(1, 3, 4)) > 0
    assert 0.7 < float(kept.float().mean()) < 0.8
    torch.testing.assert_close(draws[0][:, kept[0]], full[:, kept[0]] / 0.75)
    # Four standard errors of the mean of 2000 draws, each of standard deviation |full| · sqrt(1/3).
    assert bool(((draws.mean(0) - full).abs() <= 4 * full.abs() / (3 * 2000) ** 0.5 + 1e-6).all())


@pytest.mark.parametrize(
    "strategy",
    [
        *(
            pt.LoRA(rank=3, alpha=5.0, targets=targets, dropout=dropout)
            for targets in ("linear", ("q", "v"))
            for dropout in (0.0, 0.5)
        ),
        pt.IA3(),
        pt.IA3(targets=("k", "v", "fc1")) + pt.BitFit(),
        SSF(),
        SSF() + pt.LoRA(rank=3, targets=("q", "fc1"), where="last:1"),
    ],
    ids=repr,
)
def test_training_without_the_effective_weight_gives_the_logits_and_gradients_of_having_it(
    strategy: Strategy,
) -> None:
    model = pt.adapt(make("test_vit"), strategy).double()
    perturb(model)
    weights = pt.strategies.trainable_parameters(model)
    x = images(model.image_size).double().requires_grad_()
    found = []
    for forward in (None, nn.Linear.forward):
        for layer in model.modules():
            if forward is not None and isinstance(layer, nn.Linear) and hasattr(layer, "parametrizations"):
                type(layer).forward = forward
        torch.manual_seed(0)  # the same channels are dropped
        answer = model.train()(x)
        found.append([answer, *torch.autograd.grad(answer.square().sum(), [x, *weights.values()])])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("strategy", [pt.LoRA(rank=2), pt.IA3(targets="1"), SSF()], ids=repr)
def test_training_makes_no_tensor_of_the_size_of_the_weight(strategy: Strategy) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Linear(48, 2))
    model = pt.adapt(pt.Backbone(plain, mean=(0.5,), std=(0.5,), head="2"), strategy).train()
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and not func.is_view:
                sizes.append(made.numel())
            return made

    x = torch.rand(5, 1, 8, 8)
    with Sizes():
        model(x).sum().backward()
    assert sizes
    assert max(sizes) < 64 * 48
    with Sizes():
        model.eval()(x)
    assert max(sizes) == 64 * 48


def test_a_second_difference_on_a_weight_counts_in_training() -> None:
    model = pt.adapt(make("test_vit"), pt.LoRA(targets="linear") + pt.IA3()).double()
    perturb(model)
    x = images(model.image_size).double()
    torch.testing.assert_close(model.train()(x), model.eval()(x))


def test_ia3_scales_outputs_of_keys_and_values_and_inputs_of_the_second_layer() -> None:
    linear = nn.Linear(4, 6)
    x = torch.randn(3, 4)
    rows, columns = nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(4))
    plain = linear(x)
    scale = torch.cat([torch.ones(2), rows, torch.ones(2)])
    for tensor in ("weight", "bias"):
        IA3Delta(rows, Rows((False, True, False))).install(linear, tensor)
    torch.testing.assert_close(linear(x), plain * scale)
    other = nn.Linear(4, 6)
    plain = other(x * columns)
    IA3Delta(columns, None).install(other)
    torch.testing.assert_close(other(x), plain)


def test_ia3_scales_the_gain_of_scaled_weight_standardised_convolutions(tmp_path) -> None:
    check(make("nf_resnet26"), pt.IA3(where="last:1"), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("arch", "strategy", "reason"),
    [
        ("resnetv2_50x1_bit", pt.IA3(), "StdConv2d standardises its weight"),
        ("xcit_nano_12_p16_224", pt.IA3(), "XCA normalises each channel"),
        ("mobilenetv3_small_050", pt.IA3(bn="adapt"), "batch norms normalise each channel while training"),
    ],
)
def test_scales_that_the_model_undoes_are_refused(arch: str, strategy: pt.IA3, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pt.adapt(make(arch), strategy)


def test_the_gates_of_squeeze_and_excitation_are_no_mlp() -> None:
    model = pt.adapt(make("seresnet18"), pt.IA3())
    gate = model.module.get_submodule("layer1.0.se")
    for layer in (gate.fc1, gate.fc2):
        assert layer.parametrizations["weight"][0].ia3_l.shape == (layer.out_channels,)


@pytest.mark.parametrize("style", ["houlsby", "parallel"])
def test_an_adapter_computes_its_equation(style: str) -> None:
    backbone = make("test_vit")
    block = backbone.module.blocks[0]
    model = pt.adapt(backbone, pt.Adapter(style=style, where="first:1 & mlp", activation="relu", scale=0.5))
    perturb(model)
    seen = {}
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _module, args: seen.__setitem__("x", args[0])),
        block.mlp.fc2.register_forward_hook(lambda _module, _args, output: seen.__setitem__("mlp", output)),
        block.register_forward_pre_hook(lambda _module, args: seen.__setitem__("stream", args[0])),
        block.drop_path1.register_forward_hook(
            lambda _module, _args, output: seen.__setitem__("attention", output)
        ),
        block.register_forward_hook(lambda _module, _args, output: seen.__setitem__("after", output)),
    ]
    logits(model, images(backbone.image_size))
    for hook in hooks:
        hook.remove()
    adapter = (block.mlp if style == "parallel" else block.drop_path2).bottleneck
    x = seen["x"] if style == "parallel" else seen["mlp"]
    change = adapter.up(torch.relu(adapter.down(x)))
    expected = seen["stream"] + seen["attention"] + seen["mlp"] + 0.5 * change
    torch.testing.assert_close(seen["after"], expected)


def test_a_depthwise_adapter_mixes_neighbouring_pixels_only() -> None:
    from paretune.backbones.sites import Site
    from paretune.strategies.adapter import Bottleneck

    adapter = Bottleneck(Site("", "output", "conv", 6, 1), 3, 3, "gelu", 1.0)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(1, 6, 7, 7)
    moved = x.clone()
    moved[:, :, 3, 3] += 1
    changed = (adapter(moved) - adapter(x)).abs().sum(1)[0] > 0
    assert changed[2:5, 2:5].all()
    assert int(changed.sum()) == 9


def test_a_second_module_of_a_kind_at_one_place_is_refused_and_the_model_stays() -> None:
    backbone = make("test_vit")
    names = list(backbone.module.state_dict())
    with pytest.raises(ValueError, match=r"has a bottleneck already; give each its own part with where="):
        pt.adapt(backbone, pt.Adapter() + pt.Adapter(where="mlp"))
    assert list(backbone.module.state_dict()) == names


def test_attacks_see_no_dropout_while_the_model_trains() -> None:
    model = pt.adapt(make("test_vit"), pt.LoRA(dropout=0.5))
    perturb(model, 0.2)
    x = images(160)
    expected = logits(model, x)
    model.train()
    assert not torch.allclose(logits(model, x), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(attack_copy(model, precision="fp32")(x), expected, rtol=1e-4, atol=1e-5)

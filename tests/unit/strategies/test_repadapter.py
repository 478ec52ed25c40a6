"""RepAdapter computes the adapters of its authors' code in front of attention and MLP, in the weights that read them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import attack_copy
from paretune.strategies import SSF, RepAdapter, Strategy
from paretune.strategies.repadapter import RepBias, RepWeight
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits, train_without_chance


class Published(nn.Module):
    """The adapter of luogen1996/RepAdapter, by its formula: two convolutions over the tokens, the second in groups."""

    def __init__(self, weight: RepWeight, bias: RepBias | None, groups: int, scale: float) -> None:
        super().__init__()
        hidden, width = weight.rep_down.shape
        self.conv_a = nn.Conv1d(width, hidden, 1, bias=bias is not None)
        self.conv_b = nn.Conv1d(hidden, width, 1, groups=groups, bias=bias is not None)
        self.conv_a.weight.data = weight.rep_down.data[:, :, None]
        self.conv_b.weight.data = weight.rep_up.data[:, :, None]
        if bias is not None:
            self.conv_a.bias, self.conv_b.bias = bias.rep_down_bias, bias.rep_up_bias
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(…, width)."""
        tokens = x.flatten(0, -2)[None].transpose(1, 2)
        y = self.conv_b(self.conv_a(tokens)) * self.scale + tokens
        result: Tensor = y.transpose(1, 2).reshape(x.shape)
        return result

    def in_front(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = [*args, *kwargs.values()][0]
        mapped = self(given)
        return (
            tuple(mapped if each is given else each for each in args),
            {name: mapped if each is given else each for name, each in kwargs.items()},
        )


def move(model: pt.Backbone) -> None:
    """Give what has been added to the model, and not its head, other values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(model, head=False).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)


def adapted(base: pt.Backbone, strategy: Strategy) -> pt.Backbone:
    model = pt.adapt(copy.deepcopy(base), strategy)
    move(model)
    return model


def deltas(layer: Any, tensor: str = "weight") -> list[nn.Module]:
    """What changes a tensor of ``layer``."""
    lists = getattr(layer, "parametrizations", {})
    return list(lists[tensor]) if tensor in lists else []


# The attentions and MLPs, by hand, with a layer that reads the input of each.
BRANCHES = {
    "test_vit": {"blocks.{}.attn": "qkv", "blocks.{}.mlp": "fc1"},
    "hf_vit": {"vit.layers.{}.attention": "v_proj", "vit.layers.{}.mlp": "fc1"},
    "beit_base_patch16_224": {"blocks.{}.attn": "qkv", "blocks.{}.mlp": "fc1"},
    "tv_vit": {
        "encoder.layers.encoder_layer_{}.self_attention": "",
        "encoder.layers.encoder_layer_{}.mlp": "0",
    },
    "swin_tiny_patch4_window7_224": {"layers.0.blocks.{}.attn": "qkv", "layers.1.blocks.{}.mlp": "fc1"},
}


@pytest.mark.parametrize(("groups", "scale"), [(2, 1.0), (4, 0.5)])
@pytest.mark.parametrize("arch", BRANCHES)
def test_the_function_is_that_of_the_published_adapter(arch: str, groups: int, scale: float) -> None:
    base = make(arch).double()
    where = tuple(f"{body.format('[01]')}" for body in BRANCHES[arch]) + tuple(
        f"{body.format('[01]')}.*" for body in BRANCHES[arch]
    )
    model = adapted(base, RepAdapter(groups=groups, scale=scale, where=where))
    plain = copy.deepcopy(base)
    added = 0
    for pattern, reader in BRANCHES[arch].items():
        for block in range(2):
            body = pattern.format(block)
            layer = model.module.get_submodule(f"{body}.{reader}".strip("."))
            weight = deltas(layer, "weight" if reader else "in_proj_weight")[0]
            bias = (deltas(layer, "bias" if reader else "in_proj_bias") or [None])[0]
            assert (bias is None) == (arch.startswith("beit") and reader == "qkv")
            published = Published(weight, bias, groups, scale)  # type: ignore[arg-type]
            plain.module.get_submodule(body).register_forward_pre_hook(published.in_front, with_kwargs=True)
            added += sum(parameter.numel() for parameter in published.parameters())
    x = images(base.image_size).double()
    expected = logits(plain, x)
    torch.testing.assert_close(logits(model, x), expected)
    assert not torch.allclose(expected, logits(base, x))
    assert added == sum(
        each.numel() for each in pt.strategies.trainable_parameters(model, head=False).values()
    )
    training = copy.deepcopy(model)
    train_without_chance(training)  # by the factors, without effective weights
    torch.testing.assert_close(logits(training, x), expected)
    torch.testing.assert_close(logits(pt.merge_adapter(copy.deepcopy(model)), x), expected)
    torch.testing.assert_close(
        attack_copy(model, precision="fp32")(x.float()).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_merged_weights_are_those_of_the_published_formula() -> None:
    model = adapted(make("test_vit").double(), RepAdapter())
    qkv: Any = model.module.get_submodule("blocks.0.attn.qkv")
    rep, shift = deltas(qkv)[0], deltas(qkv, "bias")[0]
    weight, bias = qkv.parametrizations.weight.original, qkv.parametrizations.bias.original
    up = torch.zeros(64, 8, dtype=torch.float64)  # "sparse2dense"
    up[:32, :4], up[32:, 4:] = rep.rep_up[:32], rep.rep_up[32:]
    square = torch.eye(64, dtype=torch.float64) + up @ rep.rep_down
    constant = up @ shift.rep_down_bias + shift.rep_up_bias
    merged: Any = pt.merge_adapter(copy.deepcopy(model)).module.get_submodule("blocks.0.attn.qkv")  # type: ignore[attr-defined]
    torch.testing.assert_close(merged.weight, weight @ square)
    torch.testing.assert_close(merged.bias, weight @ constant + bias)


def test_layers_that_read_one_input_share_one_adapter() -> None:
    model = pt.adapt(make("hf_vit"), RepAdapter())
    attention: Any = model.module.get_submodule("vit.layers.0.attention")
    first, *others = [deltas(getattr(attention, f"{part}_proj"))[0] for part in "qkv"]
    assert all(each.rep_down is first.rep_down and each.rep_up is first.rep_up for each in others)
    # Width 64, 3 blocks of an attention and an MLP.
    assert len(pt.strategies.trainable_parameters(model, head=False)) == 3 * 2 * 4


def test_the_paper_counts_the_matrices() -> None:
    with torch.device("meta"):
        backbone = pt.load_backbone("timm:vit_base_patch16_224", num_classes=10, pretrained=False)
        pt.adapt(backbone, RepAdapter())
    added = pt.strategies.trainable_parameters(backbone, head=False).values()
    assert sum(each.numel() for each in added if each.ndim == 2) == 221_184  # 0.22M


@pytest.mark.parametrize("first", [pt.LoRA(rank=2), SSF()], ids=repr)
def test_in_a_union_the_adapter_is_in_front_of_what_came_before_it(first: Strategy) -> None:
    base = make("test_vit").double()
    model = adapted(base, first + RepAdapter(where="mlp"))
    plain = pt.adapt(copy.deepcopy(base), first)
    own = dict(plain.module.named_parameters())
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            if name in own:
                own[name].copy_(value)
    for block in range(len(base.module.blocks)):
        fc1: Any = model.module.get_submodule(f"blocks.{block}.mlp.fc1")
        published = Published(deltas(fc1)[-1], deltas(fc1, "bias")[-1], 2, 1.0)  # type: ignore[arg-type]
        plain.module.get_submodule(f"blocks.{block}.mlp").register_forward_pre_hook(
            published.in_front, with_kwargs=True
        )
    x = images(160).double()
    torch.testing.assert_close(logits(model, x), logits(plain, x))
    torch.testing.assert_close(logits(pt.merge_adapter(copy.deepcopy(model)), x), logits(model, x))


def test_what_comes_later_does_not_change_the_adapter() -> None:
    base = make("test_vit").double()
    model = adapted(base, RepAdapter() + pt.LoRA(rank=2))
    qkv: Any = model.module.get_submodule("blocks.0.attn.qkv")
    rep, lora = deltas(qkv)
    weight = qkv.parametrizations.weight.original
    torch.testing.assert_close(qkv.weight, rep(weight) + lora.scaling * lora.lora_B @ lora.lora_A)
    shift: Any = deltas(qkv, "bias")[0]
    up = torch.block_diag(rep.rep_up[:32], rep.rep_up[32:])
    constant = up @ shift.rep_down_bias + shift.rep_up_bias
    torch.testing.assert_close(qkv.bias, qkv.parametrizations.bias.original + weight @ constant)


def test_a_branch_that_does_more_with_its_input_is_refused_and_the_model_stays() -> None:
    base = make("pvt_v2_b0")
    state = list(base.module.state_dict())
    with pytest.raises(
        ValueError, match=r"cannot hold an adapter of its input, .* 'stages.0.blocks.0.attn', .*attn.q, "
    ):
        pt.adapt(base, RepAdapter())
    assert list(base.module.state_dict()) == state
    model = adapted(base, RepAdapter(where="mlp"))
    assert any(deltas(model.module.get_submodule("stages.0.blocks.0.mlp.fc1")))


class Layers(nn.Module):
    """An encoder of torch, whose blocks have no module for their MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


def test_an_mlp_whose_first_layer_is_not_known_is_refused() -> None:
    base = pt.Backbone(Layers().eval(), image_size=16)
    with pytest.raises(
        ValueError, match=r"which layers read the input of the mlp branch .* is not known; leave it out"
    ):
        pt.adapt(base, RepAdapter(groups=2))
    pt.adapt(base, RepAdapter(where="attention"))


@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_a_tensor_shared_by_two_branches_is_refused(tensor: str) -> None:
    base = make("test_vit")
    one, other = (base.module.blocks[block].mlp.fc1 for block in range(2))
    setattr(other, tensor, getattr(one, tensor))
    with pytest.raises(
        ValueError, match=f"'blocks.0.mlp.fc1' shares its {tensor} with a layer that would need another"
    ):
        pt.adapt(base, RepAdapter())
    assert getattr(other, tensor) is getattr(one, tensor)


def test_queries_and_keys_that_share_a_weight_share_what_changes_it() -> None:
    base = make("hf_vit").double()
    for layer in base.module.vit.layers:
        layer.attention.k_proj.weight = layer.attention.q_proj.weight
    untied = copy.deepcopy(base)
    for layer in untied.module.vit.layers:
        layer.attention.k_proj.weight = nn.Parameter(layer.attention.q_proj.weight.detach().clone())
    x = images(32).double()
    tied, apart = adapted(base, RepAdapter()), adapted(untied, RepAdapter())
    torch.testing.assert_close(logits(tied, x), logits(apart, x))
    torch.testing.assert_close(logits(pt.merge_adapter(tied), x), logits(apart, x))


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: RepAdapter(hidden=0), "hidden must be at least 1, got 0"),
        (lambda: RepAdapter(groups=3), "groups=3 does not divide hidden=8"),
        (lambda: RepAdapter(scale=-1.0), "scale must be above 0"),
        (
            lambda: pt.adapt(make("test_vit"), RepAdapter(hidden=6, groups=6)),
            "groups=6 does not divide the width 64",
        ),
        (lambda: pt.adapt(make("resnet18"), RepAdapter()), "no attention or MLP is known in ResNet"),
    ],
)
def test_what_cannot_be_is_refused(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


def test_an_attack_copy_follows_weights_and_biases() -> None:
    model = adapted(make("test_vit"), pt.LoRA(rank=2) + RepAdapter())
    victim, x = attack_copy(model, precision="fp32"), images(160)
    before = victim(x)
    move(model)
    victim.refresh()
    expected = logits(model, x)
    torch.testing.assert_close(victim(x), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before, expected, rtol=1e-3, atol=1e-3)
    assert len(dict(victim._any.module.named_parameters())) == len(list(make("test_vit").parameters()))

"""LNLoRA adds a low-rank function of a norm of the input to each layer, and refuses a layer that it could not reach."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paretune as pt
from paretune.strategies import LNLoRA
from tests.contracts.backbones import images, make
from tests.contracts.contract import logits


def normed(x: Tensor, norm: Any) -> Tensor:
    """A layer norm over the last axis, by its formula."""
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    scaled: Tensor = unit * norm.weight
    return scaled if norm.bias is None else scaled + norm.bias


def move(model: pt.Backbone) -> None:
    """Give what has been added to the model, and not its head, other values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in pt.strategies.trainable_parameters(model, head=False).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)


@pytest.mark.parametrize("arch", ["test_vit", "hf_vit", "swin_tiny_patch4_window7_224", "hf_convnext"])
def test_each_layer_adds_a_low_rank_function_of_its_normed_input(arch: str) -> None:
    base = make(arch).double()
    model = pt.adapt(copy.deepcopy(base), LNLoRA(rank=3, alpha=1.5))
    move(model)
    meant = {
        name
        for name, layer in base.module.named_modules()
        if (isinstance(layer, nn.Linear) and name != base.head)
        or (isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride)
    }
    seen = set()

    def compare(name: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            (x,), plain, branch = args, base.module.get_submodule(name), layer.lnlora
            expected = plain(x)
            if isinstance(plain, nn.Conv2d):  # patch by patch
                (h, w), out = plain.kernel_size, expected.permute(0, 2, 3, 1).clone()
                for i in range(out.shape[1]):
                    for j in range(out.shape[2]):
                        patch = x[:, :, i * h : (i + 1) * h, j * w : (j + 1) * w].flatten(1)
                        low = normed(patch, branch.norm) @ branch.down.weight.T
                        out[:, i, j] += 1.5 / 3 * low @ branch.up.weight.T
                expected = out.permute(0, 3, 1, 2)
            else:
                low = normed(x, branch.norm) @ branch.down.weight.T
                expected = expected + 1.5 / 3 * low @ branch.up.weight.T
            torch.testing.assert_close(output, expected)
            seen.add(name)

        return hook

    for name in meant:
        model.module.get_submodule(name).register_forward_hook(compare(name))
    x = images(base.image_size).double()
    assert not torch.allclose(logits(model, x), logits(base, x))
    assert seen == meant


def test_a_bias_that_the_softmax_undoes_is_left_out() -> None:
    model = pt.adapt(make("hf_vit"), LNLoRA())
    attention: Any = model.module.get_submodule("vit.layers.0.attention")
    has = [getattr(attention, f"{part}_proj").lnlora.norm.bias is not None for part in "qkvo"]
    assert has == [True, False, True, True]


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("beit_base_patch16_224", "blocks.0.attn.qkv"),
        ("eva02_tiny_patch14_224", "blocks.0.attn.qkv"),
        ("swinv2_tiny_window8_256", "layers.0.blocks.0.attn.qkv"),
        ("tv_vit", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"),
    ],
)
def test_a_layer_whose_weight_the_model_reads_itself_is_refused(arch: str, layer: str) -> None:
    base = make(arch)
    state, hooks = list(base.module.state_dict()), count_hooks(base)
    with pytest.raises(ValueError, match=f"never runs these, .* such as '{layer}'"):
        pt.adapt(base, LNLoRA())
    assert list(base.module.state_dict()) == state
    assert count_hooks(base) == hooks
    model = pt.adapt(base, LNLoRA(where="mlp"))
    blocks = sum(site.branch == "mlp" for site in base.sites)
    assert (
        sum(name.endswith("lnlora.up.weight") for name in pt.strategies.trainable_parameters(model))
        == 2 * blocks
    )


def count_hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


class Reading(nn.Module):
    """A layer that runs, and one whose weight is read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        tokens = nn.functional.linear(self.stem(x).flatten(2).mT, self.mix.weight, self.mix.bias)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def test_the_layers_that_a_model_runs_are_tried_on_a_blank_image() -> None:
    base = pt.Backbone(Reading().eval(), image_size=16)
    with pytest.raises(
        ValueError, match=r"reads the weights of layers itself .*; 1 of 2, such as 'mix'; name"
    ):
        pt.adapt(base, LNLoRA())
    assert [*pt.strategies.trainable_parameters(pt.adapt(base, LNLoRA(where="stem")), head=False)] == [
        f"stem.lnlora.{name}" for name in ("norm.weight", "norm.bias", "down.weight", "up.weight")
    ]
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.Linear(8, 5)).eval()
    with pytest.raises(
        ValueError, match=r"Sequential must run on an image, .* shapes .*; say the size: Backbone"
    ):
        pt.adapt(pt.Backbone(fixed), LNLoRA())
    pt.adapt(pt.Backbone(fixed, image_size=16), LNLoRA())


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: LNLoRA(rank=0), "rank must be at least 1, got 0"),
        (lambda: LNLoRA(alpha=0.0), "alpha must be above 0 or None"),
        (
            lambda: pt.adapt(make("resnet18"), LNLoRA()),
            "no Linear layer or patch embedding outside the head 'fc'",
        ),
        (lambda: pt.merge_adapter(pt.adapt(make("test_vit"), LNLoRA())), "its norms depend on the input"),
    ],
)
def test_what_cannot_be_is_refused(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import paretune as pt
from paretune.attacks import attack_copy
from paretune.attacks.copy.equality import difference
from paretune.attacks.copy.rewriting import PatchConv, class_token_only, patches_as_products
from paretune.attacks.copy.twin import run
from tests.unit.attacks.copy.test_engine import assert_same_function, shake, timm_model


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gradient(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    (found,) = torch.autograd.grad((logits * torch.linspace(-1, 1, logits.shape[1])).sum(), leaf)
    return found


# ---- patches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (14, 9), (3, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cutting_patches_by_a_product_is_the_convolution(
    height: int, width: int, bias: bool, layout: torch.memory_format
) -> None:
    conv = nn.Conv2d(3, 5, (3, 4), stride=(3, 4), bias=bias).double()
    images = torch.rand(2, 3, height, width, dtype=torch.float64).to(memory_format=layout)
    expected = conv(images), gradient(lambda x: conv(x).flatten(1), images)
    patches_as_products(nn.Sequential(conv))
    assert type(conv) is PatchConv
    assert torch.allclose(conv(images), expected[0], rtol=1e-12, atol=1e-14)
    assert torch.allclose(gradient(lambda x: conv(x).flatten(1), images), expected[1], rtol=1e-12, atol=1e-14)


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 2),
        nn.Conv2d(4, 4, 2, stride=2, padding=1),
        nn.Conv2d(4, 4, 2, stride=2, groups=2),
        nn.Conv2d(4, 4, 2, stride=2, dilation=2),
        nn.Conv2d(4, 4, 2, stride=2, padding="valid", groups=4),
        OwnConv(4, 4, 2, stride=2),
    ],
    ids=repr,
)
def test_other_convolutions_stay(conv: nn.Conv2d) -> None:
    kind = type(conv)
    patches_as_products(nn.Sequential(conv))
    assert type(conv) is kind


# ---- activations ------------------------------------------------------------------------------------------------


class ReadsItsInputAgain(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(12, 8), nn.ReLU6(inplace), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1) * 20)
        return self.head(self.act(x) + x)


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Mish, nn.ReLU])
def test_activations_leave_their_input_where_that_saves_a_copy(activation: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation(inplace=True), nn.Flatten(), nn.Linear(16, 5)
    )
    victim, images = attack_copy(shake(model).eval(), precision="fp32"), torch.rand(2, 3, 4, 4)
    assert_same_function(victim, model, images)
    assert victim._any.network.get_submodule("2").inplace == (activation is nn.ReLU)
    assert model[2].inplace
    exact = gradient(copy.deepcopy(model).double(), images.double())
    assert torch.allclose(gradient(victim, images).double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_model_that_relies_on_a_changed_input_keeps_it(inplace: bool) -> None:
    model, images = ReadsItsInputAgain(inplace).eval(), torch.rand(4, 3, 2, 2)
    victim = attack_copy(model, precision="fp32")
    assert torch.equal(victim(images), model(images))
    assert victim._any.network.get_submodule("act").inplace == inplace


# ---- the last block ---------------------------------------------------------------------------------------------


def vit(**options: Any) -> nn.Module:
    options = {"img_size": 32, "global_pool": "token", "init_values": 0.5} | options
    return shake(
        timm.models.vision_transformer.VisionTransformer(
            patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, **options
        )
    ).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 3},
        {"qkv_bias": False},
        {"qk_norm": True},
        {"scale_attn_norm": True},
        {"pre_norm": True, "fc_norm": True},
        {"proj_bias": False, "init_values": None},
        {"final_norm": False},
    ],
    ids=str,
)
def test_a_last_block_for_the_class_token_alone_gives_the_same_logits_and_gradients(options: Any) -> None:
    model, images = vit(**options), torch.rand(3, 3, 32, 32)
    victim = attack_copy(model, precision="fp32")
    assert_same_function(victim, model, images)
    assert victim._any.rewritten == ("blocks.1",)
    exact = gradient(copy.deepcopy(model).double(), images.double())
    plain, found = gradient(model, images), gradient(victim, images)
    assert float((found - exact).norm()) <= 2 * float((plain - exact).norm())
    seen: list[int] = []
    victim._any.network.get_submodule("blocks.1.mlp").register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].shape[1])
    )
    victim(images)
    assert seen == [1]


def with_hook(name: str) -> nn.Module:
    model = vit()
    model.get_submodule(name).register_forward_hook(lambda _m, _a, output: output * 1.5)
    return model


def with_mixing_hook() -> nn.Module:
    """What it adds to the class token comes from the other tokens, so only the comparison of logits shows it."""
    model = vit()
    model.get_submodule("blocks.1.mlp").register_forward_hook(
        lambda _m, _a, output: output + output.mean(dim=1, keepdim=True)
    )
    return model


class OwnBlock(timm.models.vision_transformer.Block):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: vit(global_pool="avg"),
        lambda: vit(global_pool="map", class_token=False),
        lambda: vit(block_fn=OwnBlock),
        lambda: with_hook("blocks.1"),
        lambda: with_hook("blocks.1.attn.qkv"),
        with_mixing_hook,
    ],
    ids=["average", "attention pool", "own block", "hook on the block", "hook on qkv", "mixing hook"],
)
def test_a_model_that_may_read_other_tokens_stays_as_it_is(make: Callable[[], nn.Module]) -> None:
    model = make()
    victim, images = attack_copy(model, precision="fp32"), torch.rand(3, 3, 32, 32)
    assert_same_function(victim, model, images)
    assert victim._any.rewritten == ()


def test_other_models_are_passed_over() -> None:
    assert class_token_only(timm_model("test_resnet").eval(), torch.rand(1, 3, 32, 32), run) == []
    huggingface = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
        )
    ).eval()
    assert class_token_only(huggingface, torch.rand(1, 3, 16, 16), run) == []


def test_refreshed_weights_reach_the_rewritten_parts() -> None:
    model = pt.adapt(pt.Backbone(vit(), image_size=32), pt.Compacter(reduction=4))
    victim, images = attack_copy(model, precision="fp32"), torch.rand(2, 3, 32, 32)
    before = victim(images)
    assert victim._any.rewritten == ("blocks.1",)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    victim.refresh()
    assert_same_function(victim, model, images)
    assert not torch.equal(victim(images), before)


# ---- the comparison ---------------------------------------------------------------------------------------------


def test_a_change_of_the_function_is_told_from_one_of_its_form() -> None:
    model, image = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(1, 3, 2, 2)
    nn.init.zeros_(model[1].weight)  # must not hide the change
    before = copy.deepcopy(model.state_dict())

    def scale(by: float) -> Callable[[nn.Module], None]:
        def change(trial: nn.Module) -> None:
            trial.get_submodule("1").weight.data.mul_(by)  # type: ignore[operator]

        return change

    def crop(trial: nn.Module) -> None:
        trial.add_module("2", nn.AdaptiveAvgPool1d(2))

    def fail(trial: nn.Module) -> None:
        raise KeyError("nothing")

    assert difference(model, scale(1 + 1e-12), image, run) == ""
    assert "logits differ by" in difference(model, scale(1 + 1e-6), image, run)
    assert "logits differ by" in difference(model, scale(float("nan")), image, run)
    assert "shape (2, 2) instead of (2, 3)" in difference(model, crop, image, run)
    assert "failed with KeyError" in difference(model, fail, image, run)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

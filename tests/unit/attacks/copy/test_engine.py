import copy
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import timm
import torch
import transformers
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from paretune import Backbone, Compacter, LoRA, adapt
from paretune.attacks import APGD, FAB, FGSM, L2, PGD, Attack, AttackCopy, Linf, attack_copy


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def shake(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and everything that starts at zero a value, so that no mistake multiplies by 0."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if part.running_mean is not None and part.running_var is not None:
                part.running_mean.uniform_(-0.3, 0.3)
                part.running_var.uniform_(0.5, 2)
            if part.affine:
                part.weight.data.uniform_(0.5, 1.5)
                part.bias.data.uniform_(-0.3, 0.3)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.uniform_(-0.1, 0.1)
    return model


def timm_model(name: str, **options: Any) -> nn.Module:
    return shake(timm.create_model(name, pretrained=False, num_classes=5, **options))


def assert_same_function(victim: AttackCopy, model: nn.Module, images: Tensor) -> None:
    """The copy may be wrong by as much as the model itself in float32, twice, and by the rounding of its output.

    Both are compared with the model in float64.
    """
    with torch.no_grad():
        exact = copy.deepcopy(model).double().eval()(images.double())
        plain = copy.deepcopy(model).eval()(images)
        exact, plain = getattr(exact, "logits", exact), getattr(plain, "logits", plain)
        found = victim(images)
    assert found.dtype == torch.float32
    rounding = 2**-21 * float(exact.abs().max())
    assert float((found - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + rounding


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that an attack could disturb."""

    def value(tensor: Tensor | None) -> bytes | None:
        return None if tensor is None else tensor.detach().numpy().tobytes()

    found: dict[str, Any] = {"rng": value(torch.random.get_rng_state())}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = (
            id(tensor),
            value(tensor),
            value(tensor.grad),
            tensor.requires_grad,
            tensor._version,
            tensor.stride(),
        )
    for name, part in model.named_modules():
        hooks = [len(kept) for kept in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)]
        plain = {
            key: value for key, value in vars(part).items() if isinstance(value, bool | int | float | str)
        }
        found[f"{name}()"] = (
            type(part),
            part.training,
            hooks,
            plain,
            list(part._modules),
            list(part._parameters),
        )
    return found


# ---- the same function ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "folded", "channels_last"),
    [
        ("test_resnet", 32, 15, True),
        (
            "test_efficientnet",
            32,
            13,
            True,
        ),  # batch norm and activation in one module, depthwise convolutions
        ("tf_mobilenetv3_small_minimal_100", 32, 34, True),  # padding computed in the forward
        ("test_byobnet", 32, 14, True),
        ("test_nfnet", 32, 0, True),  # weight-standardised convolutions
        ("test_convnext", 32, 0, True),
        ("test_vit", 160, 0, False),
    ],
)
def test_computes_what_the_model_computes_in_evaluation_mode(
    name: str, size: int, folded: int, channels_last: bool
) -> None:
    model, images = timm_model(name).train(), torch.rand(4, 3, size, size)
    victim = attack_copy(model)
    assert_same_function(victim, model, images)
    assert len(victim.folded) == folded
    assert victim.channels_last == channels_last


@pytest.mark.parametrize(
    "options", [{"fold_batchnorm": False}, {"channels_last": False}, {"channels_last": True}]
)
def test_options_change_the_form_only(options: Any) -> None:
    model, images = timm_model("test_resnet"), torch.rand(4, 3, 32, 32)
    victim = attack_copy(model, **options)
    assert_same_function(victim, model, images)
    assert bool(victim.folded) == options.get("fold_batchnorm", True)
    assert victim.channels_last == options.get("channels_last", True)


def test_folds_grouped_and_biased_convolutions_and_norms_without_affine() -> None:
    model = shake(
        nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2, bias=True, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, groups=8, bias=False),
            nn.BatchNorm2d(8, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 1),
            nn.BatchNorm2d(6),
            nn.Flatten(),
        )
    )
    victim = attack_copy(model)
    assert_same_function(victim, model, torch.rand(3, 4, 6, 6))
    assert victim.folded == ("1", "3", "6")


def test_huggingface_models() -> None:
    resnet = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
        )
    )
    victim = attack_copy(shake(resnet))
    assert_same_function(victim, resnet, torch.rand(2, 3, 32, 32))
    assert len(victim.folded) == 6
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            num_labels=5,
        )
    )
    assert_same_function(attack_copy(shake(vit)), vit, torch.rand(2, 3, 16, 16))


def test_a_half_precision_model_is_attacked_in_float32() -> None:
    model = timm_model("test_resnet").bfloat16()
    images = torch.rand(2, 3, 32, 32)
    assert_same_function(attack_copy(model), copy.deepcopy(model).float(), images)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_wrappers_of_compile_and_data_parallel_are_taken_off() -> None:
    model, images = timm_model("test_resnet"), torch.rand(2, 3, 32, 32)
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert_same_function(attack_copy(wrapped), model, images)


def test_neither_the_callers_autocast_nor_the_models_output_lowers_the_precision() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images).bfloat16()

    model, images = Half(), torch.rand(2, 3, 2, 2)
    assert attack_copy(model)(images).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attack_copy(model.inner)(images)
    assert torch.equal(found, model.inner(images))


def test_the_mixed_precision_of_accelerate_is_taken_off() -> None:
    model: Any = timm_model("test_resnet").eval()
    images = torch.rand(2, 3, 32, 32)
    expected = attack_copy(model)(images)
    # What Accelerator(mixed_precision="bf16").prepare_model does, without its global state.
    model._original_forward = model.forward
    forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward.__func__)
    model.forward = MethodType(convert_outputs_to_fp32(forward), model)
    prepared = model.forward
    assert not torch.allclose(model(images), expected, rtol=1e-4)
    assert torch.equal(attack_copy(model)(images), expected)
    assert model.forward is prepared


def test_a_copy_is_returned_as_it_is() -> None:
    victim = attack_copy(nn.Linear(2, 2))
    assert attack_copy(victim) is victim


def test_only_the_images_get_a_gradient() -> None:
    model = timm_model("test_resnet")
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    victim = attack_copy(model)
    victim(images)
    victim.refresh()
    victim(images).sum().backward()
    assert images.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in victim._any.module.parameters())


def test_attention_is_explicit_on_the_cpu_in_the_copy_only() -> None:
    model: Any = timm_model("test_vit")
    twin: Any = attack_copy(model)._any.module
    assert all(block.attn.fused_attn for block in model.blocks)
    assert not any(block.attn.fused_attn for block in twin.blocks)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_copy_made_without_gradients_still_gives_gradients_later(context: Callable[[], Any]) -> None:
    model = timm_model("test_resnet")
    with context():
        victim = attack_copy(model)
        victim(torch.rand(2, 3, 32, 32))
        victim.refresh()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    victim(images).sum().backward()
    assert images.grad is not None
    assert len(victim.folded) == 15


# ---- the model is only read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm_model("test_resnet", drop_rate=0.5, drop_path_rate=0.2),
        lambda: timm_model("test_efficientnet", drop_rate=0.5, drop_path_rate=0.2),
        lambda: timm_model("test_vit", img_size=32, drop_rate=0.3, attn_drop_rate=0.3, drop_path_rate=0.2),
        lambda: adapt(Backbone(timm_model("test_vit", img_size=32), image_size=32), LoRA(rank=2)),
        lambda: adapt(Backbone(timm_model("test_resnet"), image_size=32), Compacter(reduction=8)),
    ],
    ids=["resnet", "efficientnet", "vit", "lora", "compacter"],
)
@pytest.mark.parametrize(
    "attack", [PGD(Linf(8 / 255), steps=2), PGD(L2(1.0), steps=2, keep="last")], ids=repr
)
def test_an_attack_leaves_the_model_as_it_is(make: Callable[[], nn.Module], attack: PGD) -> None:
    model = make().train()
    next(
        part for part in model.modules() if isinstance(part, nn.Dropout | nn.Identity)
    ).eval()  # a mixed state
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    F.cross_entropy(model(images), labels).backward()
    before = fingerprint(model)
    attack(model, images, labels)
    victim = attack_copy(model)
    attack(victim, images, labels)
    victim.refresh()
    assert fingerprint(model) == before


def test_a_model_in_training_mode_is_attacked_through_its_evaluation_twin() -> None:
    model = timm_model("test_efficientnet", drop_rate=0.5)
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    expected = PGD(Linf(8 / 255))(model.eval(), images, labels)
    assert torch.equal(PGD(Linf(8 / 255))(model.train(), images, labels), expected)


# ---- adapters ---------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """A parametrization W · (1 + s)."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(0.25))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.s)


def test_merging_the_copy_leaves_the_parametrization_of_the_original() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    parametrize.register_parametrization(model[1], "weight", Scale())
    images = torch.rand(2, 3, 2, 2)
    expected = model(images)
    victim = attack_copy(model)
    assert torch.equal(victim(images), expected)
    assert not any(parametrize.is_parametrized(part) for part in victim._any.module.modules())
    assert torch.equal(model(images), expected)
    assert parametrize.is_parametrized(model[1], "weight")
    model[1].parametrizations.weight[0].s.data.fill_(1.0)
    assert not torch.equal(model(images), expected)


def test_merging_one_of_two_layers_that_share_a_weight_leaves_the_other() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[2].weight = model[1].weight
    parametrize.register_parametrization(model[2], "weight", Scale())
    images = torch.rand(2, 6, 1, 1)
    victim = attack_copy(model)
    assert torch.equal(victim(images), model(images))
    with torch.no_grad():
        model[1].weight.mul_(2)
    victim.refresh()
    assert torch.equal(victim(images), model(images))


@pytest.mark.parametrize(
    "kind", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_torchs_own_parametrizations(kind: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Flatten(), kind(nn.Linear(12, 3))).train()
    images = torch.rand(2, 3, 2, 2)
    victim = attack_copy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(images).square().sum().backward()
        optimizer.step()
        victim.refresh()
        assert torch.equal(victim(images), copy.deepcopy(model).eval()(images))


# ---- refreshing -------------------------------------------------------------------------------------------------


def train_a_step(model: nn.Module, images: Tensor) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    model.train()
    F.cross_entropy(model(images), torch.arange(len(images)) % 5).backward()
    optimizer.step()
    optimizer.zero_grad()


class Block(nn.Module):
    """A convolution, a batch norm and a head; subclasses use them in ways that forbid folding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def features(self, images: Tensor) -> Tensor:
        return self.bn(self.conv(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = Block()
    model.kept = model(torch.rand(1, 3, 6, 6))
    with pytest.raises(
        ValueError, match=r"Block cannot be copied, so it cannot be attacked: .*keeps an activation"
    ):
        attack_copy(model)


def test_a_forward_that_belongs_to_the_original_is_refused() -> None:
    model = Block()
    forward = model.forward
    model.forward = lambda images: forward(images)
    with pytest.raises(ValueError, match="the forward of a Block was replaced by a plain function"):
        attack_copy(model)


def test_channels_last_must_be_known() -> None:
    with pytest.raises(ValueError, match="channels_last must be True, False or 'auto', got 'yes'"):
        attack_copy(Block(), channels_last="yes")


def test_a_model_without_tensors_counts_as_on_the_cpu() -> None:
    victim = attack_copy(nn.Flatten())
    assert victim.device == torch.device("cpu")
    assert victim(torch.zeros(0, 2, 2)).shape == (0, 4)


# ---- every strategy on every kind of backbone -------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_copy_of_a_model_that_checkpoints_its_activations_does_not(
    reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm.layers.config, "_USE_REENTRANT_CKPT", reentrant)
    plain = timm.create_model("test_vit", num_classes=5).eval()
    checkpointing = copy.deepcopy(plain)
    checkpointing.set_grad_checkpointing()
    x = torch.rand(2, 3, 160, 160)
    labels = plain(x).argmax(1)
    for attack in (PGD(Linf(0.01), steps=2), FGSM(Linf(0.01))):
        assert torch.equal(attack(checkpointing, x, labels), attack(plain, x, labels))
    assert checkpointing.grad_checkpointing


# torch warns in passes that need no gradient.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "attack",
    [PGD(Linf(0.1), steps=1), FGSM(Linf(0.1)), APGD(Linf(0.1), steps=1), FAB(Linf(0.1), steps=1)],
    ids=repr,
)
def test_a_model_that_checkpoints_in_the_reentrant_way_itself_is_refused(attack: Attack) -> None:
    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            flat = images.flatten(1)
            logits: Tensor = checkpoint(self.layer, flat, use_reentrant=True)
            return logits

    model, x = Reentrant(), torch.rand(3, 3, 2, 2)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        attack(model, x, model.layer(x.flatten(1)).argmax(1))

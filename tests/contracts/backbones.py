"""Small models of each family, with random weights that leave no branch at zero."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from paretune import Backbone

# The smallest member of each family of timm, at a small image size; families of large members with fewer blocks or channels.
# Name: image size in pixels, and what differs from timm's own architecture.
_SLIM = {"depth": 2, "embed_dim": 96, "num_heads": 3}
TIMM: dict[str, tuple[int, Mapping[str, Any]]] = {
    "test_vit": (160, {}),
    "vit_tiny_patch16_224": (32, {}),
    "deit_tiny_patch16_224": (32, {"depth": 3}),
    "deit3_small_patch16_224": (32, _SLIM),
    "vit_small_patch14_dinov2": (28, _SLIM),
    "vit_small_patch14_reg4_dinov2": (28, _SLIM),
    "vit_small_patch16_dinov3": (32, _SLIM),
    "eva02_tiny_patch14_224": (28, {"depth": 3}),
    "beit_base_patch16_224": (32, _SLIM),
    "beitv2_base_patch16_224": (32, _SLIM),
    "cait_xxs24_224": (32, {"depth": 3}),
    "xcit_nano_12_p16_224": (32, {"depth": 3}),
    "swin_tiny_patch4_window7_224": (56, {"depths": (2, 2), "embed_dim": 48, "num_heads": (3, 6)}),
    "swinv2_tiny_window8_256": (64, {"depths": (2, 2), "embed_dim": 48, "num_heads": (3, 6)}),
    "maxvit_rmlp_pico_rw_256": (64, {}),
    "coatnet_pico_rw_224": (64, {}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 2, 1)}),
    "twins_pcpvt_small": (
        64,
        {"depths": (1, 1, 1, 1), "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)},
    ),
    "tiny_vit_5m_224": (64, {"depths": (1, 1, 2, 1)}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "poolformer_s12": (64, {}),
    "mixer_s32_224": (32, {}),
    "gmlp_ti16_224": (64, {}),
    "resmlp_12_224": (64, {}),
    "convnext_atto": (64, {}),
    "convnextv2_atto": (64, {"depths": (1, 1, 2, 1)}),
    "inception_next_atto": (64, {"depths": (1, 1, 2, 1)}),
    "resnet18": (64, {}),
    "resnet26d": (64, {"channels": (16, 32, 48, 64)}),
    "resnext50_32x4d": (64, {"layers": (1, 1, 1, 1)}),
    "seresnet18": (64, {"channels": (16, 32, 48, 64)}),
    "resnetv2_50x1_bit": (64, {}),
    "nf_resnet26": (64, {}),
    "regnety_002": (64, {}),
    "densenet121": (64, {"block_config": (2, 2, 2, 2)}),
    "efficientnet_b0": (64, {}),
    "efficientnet_lite0": (64, {}),
    "tf_efficientnetv2_b0": (64, {}),
    "mobilenetv2_050": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "mnasnet_small": (64, {}),
    "repvgg_a0": (64, {}),
    "mobileone_s0": (64, {}),
    "hrnet_w18_small": (32, {}),
    "vgg11": (32, {"mlp_ratio": 0.05}),
    "vgg11_bn": (32, {"mlp_ratio": 0.05}),
    "ghostnet_050": (64, {}),
    "dla46_c": (64, {}),
    "res2net50_26w_4s": (64, {"layers": (1, 1, 1, 1)}),
    "visformer_tiny": (64, {"depth": (1, 2, 1), "embed_dim": 96, "num_heads": 3}),
    "csatv2": (64, {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 2)}),
}
HUGGING_FACE = (
    "hf_vit",
    "hf_deit",
    "hf_dinov2",
    "hf_beit",
    "hf_swin",
    "hf_convnext",
    "hf_resnet",
    "hf_regnet",
    "hf_mobilenet_v1",
    "hf_mobilenet_v2",
    "hf_efficientnet",
)
OTHERS = ("tv_vit", "tv_swin", "tv_swin_v2", "tv_convnext", "clip_vit")
# Networks of many convolutions in a row, in which random weights and statistics let the signal die out or blow up.
_SETTLED = {"repvgg_a0", "mobileone_s0", "hf_mobilenet_v1", "hf_mobilenet_v2", "hf_efficientnet"}
EVERY = (*TIMM, *HUGGING_FACE, *OTHERS)
# One of each kind of block: tokens, fused and apart, windows, convolutions with and without a batch norm.
FEW = ("test_vit", "vit_tiny_patch16_224", "convnext_atto", "resnet18", "efficientnet_lite0", "hf_vit")


def make(name: str, seed: int = 0) -> Backbone:
    """A backbone of 5 classes; the same ``seed`` gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make_it = _hugging_face if name in HUGGING_FACE else _other if name in OTHERS else _timm
        backbone = make_it(name)
    # Fresh models zero whole branches (layer scale, the last norm of a residual block), which would hide
    # a dead parameter behind them; and fresh batch norms have trivial statistics.
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, parameter in backbone.module.named_parameters():
            constant = bool((parameter == parameter.flatten()[0]).all())
            if key.endswith("gamma") or constant:
                parameter.copy_(0.5 + 0.5 * torch.rand(parameter.shape, generator=generator))
        for key, buffer in backbone.module.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + 0.5 * torch.rand(buffer.shape, generator=generator))
    if name in _SETTLED:
        _settle(backbone, generator)
    return backbone.eval()


def _settle(backbone: Backbone, generator: torch.Generator) -> None:
    """Give the batch norms the statistics of random images, so that each passes on values of the size of one."""
    norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        backbone.train()(torch.rand(8, 3, backbone.image_size, backbone.image_size, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _timm(name: str) -> Backbone:
    import timm

    size, changes = TIMM[name]
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and size != config.input_size[-1]:
        changes = {"img_size": size, **changes}
    module = timm.create_model(name, pretrained=False, num_classes=5, **changes)
    return Backbone(module.eval(), image_size=size)


def _hugging_face(name: str) -> Backbone:
    import transformers

    tokens = {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    stages = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 48], "depths": [1, 2, 1, 1]}
    kind, settings = {
        "hf_vit": ("ViT", tokens),
        "hf_deit": ("DeiT", tokens),
        "hf_dinov2": ("Dinov2", {**tokens, "mlp_ratio": 2}),
        "hf_beit": ("Beit", {**tokens, "use_relative_position_bias": True}),
        "hf_swin": ("Swin", {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4],
                             "window_size": 4}),
        "hf_convnext": ("ConvNext", {"hidden_sizes": [16, 32, 32, 48], "depths": [1, 2, 1, 1]}),
        "hf_resnet": ("ResNet", {**stages, "layer_type": "basic"}),
        "hf_regnet": ("RegNet", {**stages, "groups_width": 16}),
        "hf_mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25}),
        "hf_mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35}),
        "hf_efficientnet": ("EfficientNet", {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320,
                                             "image_size": 64, "initializer_range": 0.3}),
    }[name]  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **settings)
    module: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    size: int = settings.get("image_size", 64)  # type: ignore[assignment]
    return Backbone(module, image_size=size)


def _other(name: str) -> Backbone:
    from torchvision.models import convnext, swin_transformer, vision_transformer

    module: nn.Module
    windows: dict[str, Any] = {
        "patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4],
    }  # fmt: skip
    if name == "tv_vit":
        module = vision_transformer.VisionTransformer(32, 8, 3, 2, 64, 96, num_classes=5)
    elif name == "tv_swin":
        module = swin_transformer.SwinTransformer(num_classes=5, **windows)
    elif name == "tv_swin_v2":
        module = swin_transformer.SwinTransformer(
            num_classes=5,
            block=swin_transformer.SwinTransformerBlockV2,
            downsample_layer=swin_transformer.PatchMergingV2,
            **windows,
        )
    elif name == "tv_convnext":
        stages = [
            convnext.CNBlockConfig(16, 32, 1),
            convnext.CNBlockConfig(32, 48, 2),
            convnext.CNBlockConfig(48, None, 1),
        ]
        module = convnext.ConvNeXt(stages, num_classes=5)
    else:
        module = Tower(64, 3)
    return Backbone(module.eval(), image_size=32)


class Tower(nn.Module):
    """The vision tower of CLIP; the tokens in it are (tokens, batch, width)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(16, width))
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width) for _ in range(depth)))
        self.ln_post = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        tokens = self.conv1(x).flatten(2).transpose(1, 2) + self.positional_embedding
        return self.head(self.ln_post(self.resblocks(tokens.transpose(0, 1)).mean(0)))  # type: ignore[no-any-return]


class ResidualAttentionBlock(nn.Module):
    """As in CLIP; the attention returns a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, batch, width)."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


@functools.cache
def images(size: int) -> torch.Tensor:
    """Two images in [0, 1]."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(7))

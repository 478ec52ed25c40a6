"""Small models of each family, with random weights that leave no branch at zero."""

import functools

import torch
from torch import nn

from paretune import Backbone, load_backbone

ARCHITECTURES = ("test_vit", "vit_tiny", "convnext_atto", "resnet18", "efficientnet_lite0", "hf_vit")
_TIMM = {
    "test_vit": ("test_vit", 160),
    "vit_tiny": ("vit_tiny_patch16_224", 64),
    "convnext_atto": ("convnext_atto", 64),
    "resnet18": ("resnet18", 64),
    "efficientnet_lite0": ("efficientnet_lite0", 64),
}


def make(name: str, seed: int = 0) -> Backbone:
    """A backbone of 5 classes; the same ``seed`` gives the same weights."""
    if name == "hf_vit":
        backbone = _huggingface_vit(seed)
    else:
        architecture, size = _TIMM[name]
        backbone = load_backbone(
            f"timm:{architecture}", num_classes=5, img_size=size, pretrained=False, seed=seed
        )
    # Fresh models zero whole branches (layer scale, the last norm of a residual block), which would hide
    # a dead parameter behind them; and fresh batch norms have trivial statistics.
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, parameter in backbone.module.named_parameters():
            if key.endswith("gamma") or not parameter.any() or (parameter == 1).all():
                parameter.copy_(0.5 + 0.5 * torch.rand(parameter.shape, generator=generator))
        for key, buffer in backbone.module.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + 0.5 * torch.rand(buffer.shape, generator=generator))
    return backbone.eval()


def _huggingface_vit(seed: int) -> Backbone:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module: nn.Module = ViTForImageClassification(config).eval()
    return Backbone(module, head="classifier", image_size=32)


@functools.cache
def images(size: int) -> torch.Tensor:
    """Two images in [0, 1]."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(7))

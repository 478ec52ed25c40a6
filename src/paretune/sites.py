"""Where a residual branch ends: the places at which bottleneck adapters are inserted.

A *site* is the output of a residual branch (attention, MLP or convolution) before it is added to the stream.
Sites are found by the structure of the block, not by the name of the model, so that a family's relatives work too.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """The end of one residual branch.

    Args:
        module: dotted name of the module at whose edge the branch can be changed.
        edge: whether the branch is that module's input or its output.
        branch: what the branch computes.
        width: number of channels.
        channel_axis: -1 for tokens (batch, tokens, width), 1 for images (batch, width, height, width).
    """

    module: str
    edge: Literal["input", "output"]
    branch: Literal["attention", "mlp", "conv"]
    width: int
    channel_axis: Literal[-1, 1]


def find_sites(module: nn.Module, given: Sequence[str | Site] | None, example: Tensor) -> tuple[Site, ...]:
    """Sites of ``module`` in forward order: those ``given`` (objects or glob patterns), or those of a known family.

    Raises:
        ValueError: a pattern matches no module, or the module it matches returns no tensor of three or four axes.
    """
    if given is None:
        return tuple(site for name, block in module.named_modules() for site in _block_sites(name, block))
    fixed = [site for site in given if isinstance(site, Site)]
    names = [name for name, _ in module.named_modules() if name]
    for site in fixed:
        if site.module not in names:
            raise ValueError(f"sites: no module is named {site.module!r}; {candidates(module)}")
    patterns = [pattern for pattern in given if isinstance(pattern, str)]
    matched: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(f"sites: pattern {pattern!r} matches no module; {candidates(module)}")
        matched += [name for name in hits if name not in matched]
    return (*fixed, *_probe(module, matched, example))


def candidates(module: nn.Module) -> str:
    """A line listing module names a pattern could match, numbers folded to ``*`` and the deepest first left out."""
    folded: dict[str, None] = {}
    for name, _ in module.named_modules():
        if name:
            folded[".".join("*" if part.isdigit() else part for part in name.split("."))] = None
    shown = list(folded)[:40]
    more = f" … and {len(folded) - len(shown)} more" if len(folded) > len(shown) else ""
    return f"candidates: {', '.join(shown)}{more}"


def _block_sites(name: str, block: Any) -> Iterator[Site]:
    def has(*attributes: str) -> bool:
        return all(isinstance(getattr(block, attribute, None), nn.Module) for attribute in attributes)

    prefix = f"{name}." if name else ""
    if has("drop_path1", "drop_path2", "norm1", "norm2", "attn", "mlp"):
        # timm: ViT, DeiT, DINOv2, EVA, BEiT, Swin. The input of drop_path comes after LayerScale.
        yield Site(prefix + "drop_path1", "input", "attention", block.norm1.weight.numel(), -1)
        yield Site(prefix + "drop_path2", "input", "mlp", block.norm2.weight.numel(), -1)
    elif has("attention", "mlp", "layernorm_before", "layernorm_after") and hasattr(
        block.attention, "o_proj"
    ):
        # transformers: ViT and relatives.
        yield Site(
            prefix + "attention.o_proj", "output", "attention", block.attention.o_proj.out_features, -1
        )
        yield Site(prefix + "mlp.fc2", "output", "mlp", block.mlp.fc2.out_features, -1)
    elif has("conv_dw", "norm", "mlp", "drop_path") and hasattr(block, "gamma"):
        # timm: ConvNeXt. The last layer of its MLP is a Linear or a 1×1 convolution.
        yield Site(prefix + "drop_path", "input", "conv", block.mlp.fc2.weight.shape[0], 1)
    elif has("drop_path") and getattr(block, "has_skip", False):
        # timm: EfficientNet and MobileNet blocks that have a skip; the others are not residual.
        norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
        if norms:
            yield Site(prefix + "drop_path", "input", "conv", norms[-1].num_features, 1)
    elif has("conv1", "bn1", "conv2", "bn2") and hasattr(block, "downsample"):
        # timm: ResNet, ResNeXt and relatives.
        norm = "bn3" if has("bn3") else "bn2"
        width = getattr(block, norm).weight.numel()
        if has("drop_path"):
            yield Site(prefix + "drop_path", "input", "conv", width, 1)
        else:
            yield Site(prefix + ("se" if has("se") else norm), "output", "conv", width, 1)


def _probe(module: nn.Module, names: Sequence[str], example: Tensor) -> list[Site]:
    """Run one blank image to learn the width and the layout of each named module's output."""
    outputs: dict[str, Any] = {}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: outputs.setdefault(name, output)
        )
        for name in names
    ]
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
        for part, training in modes:
            part.training = training
    sites = []
    for name in names:
        output = outputs.get(name)
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            got = "it did not run" if name not in outputs else getattr(output, "shape", type(output).__name__)
            raise ValueError(
                f"sites: the output of {name!r} must be a tensor of three or four axes; got {got}"
            )
        tokens = output.ndim == 3
        sites.append(
            Site(
                name,
                "output",
                "mlp" if tokens else "conv",
                output.shape[-1 if tokens else 1],
                -1 if tokens else 1,
            )
        )
    return sites

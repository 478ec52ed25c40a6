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

from paretune._modes import modes_kept


@dataclass(frozen=True)
class Site:
    """The end of one residual branch.

    Args:
        module: dotted name of the module at whose edge the branch can be changed.
        edge: whether the branch is that module's input or its output.
        branch: what the branch computes; ``"attention"`` is also said of what mixes tokens in its place.
        width: number of channels.
        channel_axis: -1 for tokens (batch, …, width), 1 for images (batch, width, height, width).
        block: dotted name of the block that the branch belongs to; empty for ``module`` itself.
        body: dotted name of the attention or MLP in the branch, whose input and output have its width; empty if unknown.
    """

    module: str
    edge: Literal["input", "output"]
    branch: Literal["attention", "mlp", "conv"]
    width: int
    channel_axis: Literal[-1, 1]
    block: str = ""
    body: str = ""


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
    """The ends of the branches of ``block``; none if it is of no known kind or has no residual branch."""
    prefix = f"{name}." if name else ""

    def has(*attributes: str) -> bool:
        return all(isinstance(getattr(block, attribute, None), nn.Module) for attribute in attributes)

    def site(
        place: str, edge: Literal["input", "output"], branch: Any, width: int, axis: Any, body: str = ""
    ) -> Site:
        return Site(prefix + place, edge, branch, width, axis, name, body and prefix + body)

    mixer = next((own for own in ("attn", "token_mixer") if has(own)), "")
    norm = next(
        (part for part in (getattr(block, "norm2", None), _norm_in_mlp(block)) if part is not None), None
    )
    if mixer and norm is not None and has("mlp", "drop_path1", "drop_path2"):
        # timm: ViT, DeiT, DINOv2, EVA, BEiT, Swin, XCiT, MaxViT, CoAtNet, PVT, MetaFormer, TinyViT. The input of drop_path
        # comes after LayerScale.
        axis = _channel_axis(norm)
        width = _norm_width(norm)
        yield site("drop_path1", "input", "attention", width, axis, mixer)
        if has("norm3", "local_mp", "drop_path3"):
            yield site("drop_path3", "input", "conv", width, axis)
        yield site("drop_path2", "input", "mlp", width, axis, "mlp")
    elif has("norm1", "norm2", "attn", "mlp", "drop_path"):
        # timm: CaiT. One drop_path serves both branches, so that its input does not tell them apart.
        for body, branch in (("attn", "attention"), ("mlp", "mlp")):
            yield site(body, "output", branch, _norm_width(block.norm1), -1, body)
    elif has("drop_path", "mlp_channels"):
        # timm: MLP-Mixer, ResMLP, gMLP. What mixes the tokens returns them on the last axis.
        for body in ("mlp_tokens", "linear_tokens"):
            if has(body):
                yield site(body, "output", "attention", _last(block.mlp_channels, nn.Linear).out_features, 1)
        width = _last(block.mlp_channels, nn.Linear).out_features
        yield site("mlp_channels", "output", "mlp", width, -1, "mlp_channels")
    elif has("attention", "mlp") and hasattr(block.attention, "o_proj"):
        # transformers: ViT, DeiT, DINOv2, BEiT, Swin.
        width = block.attention.o_proj.out_features
        yield site("attention.o_proj", "output", "attention", width, -1, "attention")
        yield site("mlp", "output", "mlp", width, -1, "mlp")
    elif (
        has("drop_path", "mlp", "norm") and (has("conv_dw") or has("token_mixer")) and hasattr(block, "gamma")
    ):
        # timm: ConvNeXt, InceptionNeXt. The last layer of the MLP is a Linear or a 1×1 convolution.
        yield site("drop_path", "input", "conv", block.mlp.fc2.weight.shape[0], 1, "mlp")
    elif has("dwconv", "layernorm", "pwconv1", "pwconv2", "drop_path"):
        # transformers: ConvNeXt.
        yield site("drop_path", "input", "conv", block.pwconv2.out_features, 1)
    elif has("drop_path") and _adds_its_input(block):
        # timm: EfficientNet, MobileNet, RegNet, pre-activation ResNet, NF-ResNet, MbConv; transformers: BiT.
        conv = _last(block, nn.Conv2d, besides=_BESIDES)
        if conv is not None:
            yield site("drop_path", "input", "conv", conv.out_channels, 1)
    elif has("conv1", "bn1") and (has("bn2") or has("bn3")) and hasattr(block, "downsample"):
        # timm: ResNet, ResNeXt, Res2Net, HRNet and relatives.
        last = "bn3" if has("bn3") else "bn2"
        width = getattr(block, last).weight.numel()
        yield site("se" if has("se") else last, "output", "conv", width, 1)
    elif has("ghost1", "ghost2", "shortcut"):
        # timm: GhostNet.
        yield site("ghost2", "output", "conv", block.ghost2.out_chs, 1)
    elif has("stack") and not getattr(block, "no_skip", True):
        # timm: Xception.
        yield site("stack", "output", "conv", block.out_channels, 1)
    elif has("shortcut", "layer", "activation") and isinstance(block.layer, nn.Sequential):
        # transformers: ResNet, RegNet.
        yield site("layer", "output", "conv", _last(block.layer, nn.Conv2d).out_channels, 1)
    elif has("reduce_1x1") and getattr(block, "use_residual", False):
        # transformers: MobileNetV2.
        yield site("reduce_1x1", "output", "conv", _last(block.reduce_1x1, nn.Conv2d).out_channels, 1)
    elif has("project_conv", "dropout") and getattr(block, "apply_dropout", False):
        # transformers: EfficientNet.
        yield site("dropout", "input", "conv", block.project_conv.out_channels, 1)


def _norm_in_mlp(block: Any) -> nn.Module | None:
    """The norm of an MLP that brings its own (TinyViT)."""
    norm = getattr(getattr(block, "mlp", None), "norm", None)
    return norm if isinstance(norm, nn.LayerNorm) else None


# What lies on the shortcut, or is a gate of the branch rather than a layer of it.
_BESIDES = ("shortcut", "downsample", "se", "se_early", "attn", "attn_last")


def _adds_its_input(block: Any) -> bool:
    """Whether a block of convolutions that ends in ``drop_path`` has a skip connection, by what timm's families record."""
    for attribute in ("has_skip", "shortcut"):
        if hasattr(block, attribute):
            return getattr(block, attribute) not in (None, False)
    if hasattr(block, "downsample"):
        # Without a skip RegNet has None; in the other families, which have these names too, None is the identity.
        return block.downsample is not None or hasattr(block, "norm1") or hasattr(block, "skipinit_gain")
    return False


def _last(module: Any, kind: type[nn.Module], besides: Sequence[str] = ()) -> Any:
    """The last layer of ``kind`` inside ``module``, not looking into its children named ``besides``."""
    found = [
        part
        for name, part in module.named_modules()
        if isinstance(part, kind) and name.split(".")[0] not in besides
    ]
    return found[-1] if found else None


def _norm_width(norm: nn.Module) -> int:
    return next(parameter.numel() for parameter in norm.parameters())


def _channel_axis(norm: nn.Module) -> Literal[-1, 1]:
    """1 for norms of images (batch, channels, height, width), -1 for norms of the last axis."""
    kind = type(norm)
    over_images = issubclass(kind, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) or "2d" in kind.__name__
    return 1 if over_images else -1


def _probe(module: nn.Module, names: Sequence[str], example: Tensor) -> list[Site]:
    """Run one blank image to learn the width and the layout of each named module's output."""
    outputs: dict[str, Any] = {}
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: outputs.setdefault(name, output)
        )
        for name in names
    ]
    try:
        with modes_kept(module), torch.no_grad():
            module.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
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

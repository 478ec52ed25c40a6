"""Where a residual branch ends: the places at which bottleneck adapters are inserted.

A *site* is the output of a residual branch (attention, MLP or convolution) before it is added to the stream.
Sites are found by the structure of the block, not by the name of the model, so that a family's relatives work too. One
blank image then shows whether each place runs, once for each run of its block, and on which axis the channels are.
"""

import contextlib
import fnmatch
import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from paretune.backbones.passing import one_pass

log = logging.getLogger(__name__)


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
    """Sites of ``module``: those ``given`` (objects or glob patterns), or in forward order those of a known family.

    Places of a family that ``example`` shows not to be the end of a branch are left out, and the log says why. Where the
    model does not run on ``example``, or has no values yet, the structure alone counts.

    Raises:
        ValueError: a pattern matches no module, or a place that is ``given`` is not laid out as it is said to be.
    """
    if given is None:
        known = [site for name, block in module.named_modules() for site in _block_sites(name, block)]
        if not known or example.is_meta:
            return tuple(known)
        try:
            sites, wrong = laid_out(module, known, example)
        except Exception as error:  # whatever a model raises
            log.info("sites: not tried, as %s fails on a blank image: %s", type(module).__name__, error)
            return tuple(known)
        if wrong:
            name, reason = next(iter(wrong.items()))
            log.warning("sites: %d of %d left out, such as %r: %s", len(wrong), len(known), name, reason)
        return tuple(sites)
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
    if example.is_meta and not matched:
        return tuple(fixed)
    places = {place for site in fixed for place in (site.module, site.block)}
    passes = _Passes(module, places | {*matched}, example)
    for site in fixed:
        checked = _checked(site, passes)
        if checked != site:
            what = checked if isinstance(checked, str) else f"its channels are on axis {checked.channel_axis}"
            raise ValueError(f"sites: {site} does not describe {site.module!r}: {what}")
    return (*fixed, *(_described(module, name, passes) for name in matched))


def laid_out(
    module: nn.Module, sites: Sequence[Site], example: Tensor, *, beside: bool = False
) -> tuple[list[Site], dict[str, str]]:
    """``sites`` as one image finds them, in forward order; and what is wrong with the others, by the names of their modules.

    Args:
        module: run once in evaluation mode.
        sites: as the structure of the model says; the axis of the channels may be another.
        example: one image.
        beside: whether a branch shall be computed from the input of the site's module, which then needs its output's shape.
    """
    names = {name for site in sites for name in (site.module, site.block)}
    passes = _Passes(module, names, example)
    order = list(passes.first)
    correct: list[Site] = []
    wrong: dict[str, str] = {}
    for site in sites:
        checked = _checked(site, passes, beside=beside)
        if isinstance(checked, Site):
            correct.append(checked)
        else:
            wrong[site.module] = checked
    return sorted(correct, key=lambda site: order.index(site.module)), wrong


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

    mixer = next((child for child in ("attn", "token_mixer") if has(child)), "")
    norm = getattr(block, "norm2", None)
    norm = _norm_in_mlp(block) if norm is None else norm
    if mixer and norm is not None and has("mlp", "drop_path1", "drop_path2"):
        # timm: ViT, DeiT, DINOv2, EVA, BEiT, Swin, XCiT, MaxViT, CoAtNet, PVT, MetaFormer, TinyViT. The input of drop_path
        # comes after LayerScale.
        axis = _channel_axis(norm)
        width = _norm_width(norm)
        yield site("drop_path1", "input", "attention", width, axis, mixer)
        if has("norm3", "local_mp", "drop_path3"):
            yield site("drop_path3", "input", "conv", width, axis)
        yield site("drop_path2", "input", "mlp", width, axis, "mlp")
    elif has("norm2", "mlp", "drop_path") and hasattr(block, "attn"):
        # timm: CaiT, Visformer. One drop_path serves both branches, so that its input does not tell them apart.
        for body, branch in (("attn", "attention"), ("mlp", "mlp")):
            if has(body):
                yield site(body, "output", branch, _norm_width(block.norm2), _channel_axis(block.norm2), body)
    elif has("norm1", "attn", "norm2", "mlp", "stochastic_depth"):
        # torchvision: Swin, whose second version has the norms at the ends of the branches.
        behind = type(block).__name__.endswith("V2")
        for body, norm, branch in (("attn", "norm1", "attention"), ("mlp", "norm2", "mlp")):
            yield site(norm if behind else body, "output", branch, _norm_width(block.norm1), -1, body)
    elif has("ln_1", "self_attention", "dropout", "ln_2", "mlp"):
        # torchvision: ViT. The attention returns its weights too; what follows it does not.
        width = _norm_width(block.ln_1)
        yield site("dropout", "input", "attention", width, -1, "self_attention")
        yield site("mlp", "output", "mlp", width, -1, "mlp")
    elif has("ln_1", "attn", "ln_2", "mlp"):
        # open_clip, and CLIP itself, whose attention returns a tuple.
        for body, scale, branch in (("attn", "ls_1", "attention"), ("mlp", "ls_2", "mlp")):
            place = scale if has(scale) else body
            yield site(place, "output", branch, _norm_width(block.ln_1), -1, body)
    elif has("self_attn", "linear1", "linear2", "dropout1", "dropout2", "norm1", "norm2"):
        # torch: nn.TransformerEncoderLayer.
        width = block.linear2.out_features
        yield site("dropout1", "input", "attention", width, -1, "self_attn")
        yield site("dropout2", "input", "mlp", width, -1)
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
    elif has("block", "stochastic_depth") and (
        hasattr(block, "layer_scale") or getattr(block, "use_res_connect", False)
    ):
        # torchvision: ConvNeXt, EfficientNet.
        gamma = getattr(block, "layer_scale", None)
        width = _last(block.block, nn.Conv2d).out_channels if gamma is None else gamma.shape[0]
        yield site("stochastic_depth", "input", "conv", width, 1)
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


def _last(module: Any, kind: Any, besides: Sequence[str] = ()) -> Any:
    """The last layer of ``kind`` inside ``module``, not looking into its children named ``besides``."""
    layers = [
        part
        for name, part in module.named_modules()
        if isinstance(part, kind) and name.split(".")[0] not in besides
    ]
    return layers[-1] if layers else None


def _norm_width(norm: nn.Module) -> int:
    return next(parameter.numel() for parameter in norm.parameters())


def _channel_axis(norm: nn.Module) -> Literal[-1, 1]:
    """1 for norms of images (batch, channels, height, width), -1 for norms of the last axis."""
    kind = type(norm)
    over_images = issubclass(kind, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) or "2d" in kind.__name__
    return 1 if over_images else -1


Shape = tuple[int, ...]
# The shapes of the first argument and of the (first) output of a module at each of its runs; None for what is no tensor.
Runs = dict[str, list[tuple[Shape | None, Shape | None]]]


class _Passes:
    """What the modules ``names`` do on one image, and on one of twice its sides if that is asked for."""

    def __init__(self, module: nn.Module, names: Iterable[str], example: Tensor) -> None:
        self._module, self._names, self._example = module, sorted(names), example
        self.sides = example.shape[-2:]  # height and width
        self.first = self._run(example)
        self._second: Runs | None = None

    @property
    def second(self) -> Runs:
        """Empty for a model of one image size."""
        if self._second is None:
            try:
                self._second = self._run(self._example.repeat(1, 1, 2, 2))
            except Exception:  # whatever a model raises at the wrong size
                self._second = {}
        return self._second

    def _run(self, images: Tensor) -> Runs:
        runs: Runs = {}

        def note(name: str, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensors = (args[0] if args else None, first_of(output))
            shapes = (tuple(value.shape) if isinstance(value, Tensor) else None for value in tensors)
            runs.setdefault(name, []).append((next(shapes), next(shapes)))

        with contextlib.ExitStack() as hooks:
            for name in self._names:
                part = self._module.get_submodule(name)
                hook = functools.partial(note, name)
                hooks.enter_context(part.register_forward_hook(hook))
            one_pass(self._module, images)
        return runs


def first_of(output: Any) -> Any:
    """What a module returns, or the first of several things, such as of an attention that returns its weights too."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _checked(site: Site, passes: _Passes, *, beside: bool = False) -> Site | str:
    """``site`` with the axis on which its channels are, or what is wrong with it."""
    runs = passes.first.get(site.module, [])
    times = len(passes.first.get(site.block, [])) if site.block else len(runs)
    if not runs:
        return "it does not run on an image"
    if len(runs) != (times or 1):
        return f"it runs {len(runs)} times while {site.block!r} runs {times} times, for more than this branch"
    shapes = [run[site.edge == "output"] for run in runs]
    if None in shapes:
        return f"its {site.edge} is no tensor given by position"
    if beside and any(given != output for given, output in runs):
        return f"it makes {runs[0][1]} of {runs[0][0]}, so that no bottleneck fits beside it"
    axes = {_axis(site, shape, passes, index) for index, shape in enumerate(shapes) if shape is not None}
    if len(axes) != 1 or None in axes:
        return f"its {site.edge} of shape {shapes[0]} has no axis of {site.width} channels"
    return replace(site, channel_axis=axes.pop())


def _axis(site: Site, shape: Shape, passes: _Passes, index: int) -> Any:
    """The axis of ``shape`` that has the site's width, or None: of tokens only that which is claimed, of images either."""
    if len(shape) != 4:
        fits = len(shape) > 1 and shape[site.channel_axis] == site.width
        return site.channel_axis if fits else None
    axes = _image_axes(shape, site.width)
    if len(axes) == 2:
        other = passes.second.get(site.module, [])
        larger = other[index][site.edge == "output"] if index < len(other) else None
        axes = _image_axes(larger, site.width) if larger is not None and len(larger) == 4 else axes
    return axes[0] if len(axes) == 1 else site.channel_axis if axes else None


def _image_axes(shape: Shape, width: int) -> list[int]:
    return [axis for axis in (1, -1) if shape[axis] == width]


def _described(module: nn.Module, name: str, passes: _Passes) -> Site:
    """The site at the output of a module that a pattern names.

    Raises:
        ValueError: the output is no tensor of three or four axes, or its channels may be on either of two axes.
    """
    output = passes.first[name][0][1] if name in passes.first else None
    if output is None or len(output) not in (3, 4):
        got = "it did not run" if name not in passes.first else output or "no tensor"
        raise ValueError(f"sites: the output of {name!r} must be a tensor of three or four axes; got {got}")
    if len(output) == 3:
        return Site(name, "output", "mlp", output[-1], -1)
    axes = [axis for axis, sides in ((1, output[2:]), (-1, output[1:3])) if _alike(sides, passes.sides)]
    layer = _last(module.get_submodule(name), nn.Linear | nn.Conv2d | nn.modules.batchnorm._BatchNorm)
    if len(axes) != 1 and layer is not None and layer.weight is not None:
        axes = _image_axes(output, layer.weight.shape[0])
    if len(axes) != 1:
        larger = passes.second[name][0][1] if name in passes.second else None
        axes = [axis for axis in (1, -1) if larger and larger[axis] == output[axis]]
    if len(axes) != 1:
        raise ValueError(
            f"sites: the channels of the output of {name!r}, of shape {output}, may be on axis 1 or -1; say which with "
            f"Site({name!r}, 'output', 'conv', {output[1]}, 1) or Site({name!r}, 'output', 'mlp', {output[-1]}, -1)"
        )
    axis: Literal[-1, 1] = 1 if axes[0] == 1 else -1
    return Site(name, "output", "conv" if axis == 1 else "mlp", output[axis], axis)


def _alike(sides: Shape, image: Shape) -> bool:
    """Whether two axes are as long as height and width of an image that was made smaller, both by one factor."""
    (height, width), (rows, columns) = image, sides
    rounding = 0 if height == width else height + width  # each side may have been rounded by one
    return abs(rows * width - columns * height) <= rounding

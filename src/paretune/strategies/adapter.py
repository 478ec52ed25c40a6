"""Bottleneck adapters behind the branches of a model, or beside them.

Behind a branch h: h + s · up(f(down(h))). Houlsby et al. 2019 (https://arxiv.org/abs/1902.00751, figure 2) put one after
attention and one after the MLP, Pfeiffer et al. 2021 (https://arxiv.org/abs/2005.00247) only the latter. Beside the MLP:
MLP(x) + s · up(f(down(x))), the parallel adapter of He et al. 2022 (https://arxiv.org/abs/2110.04366, table 1).
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune._values import later
from paretune.backbones.passing import blank_image
from paretune.backbones.sites import Site, candidates, laid_out
from paretune.data.sizes import pair
from paretune.strategies.mechanics.base import Anatomy, Strategy, parameter_names
from paretune.strategies.mechanics.stream import Reader

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class Adapter(Strategy):
    """Insert bottlenecks into the residual branches. They start as the exact identity: ``up`` is zero.

    On ConvNets ``down`` and ``up`` act on the channels of each pixel (1×1), and every branch of convolutions has an adapter.

    Args:
        style: ``"houlsby"`` after attention and MLP, ``"pfeiffer"`` after the MLP only, ``"parallel"`` beside the MLP, from
            its input to its output.
        reduction: width of the branch over width of the bottleneck; the latter is rounded, and at least 1.
        width: of the bottleneck, at least 1; it then counts instead of ``reduction``.
        kernel: side of a depthwise convolution between ``down`` and the activation, in branches of
            convolutions; odd, 1 for none.
        activation: f; ``"gelu"``, ``"gelu_tanh"`` (its approximation), ``"relu"``, ``"leaky_relu"`` (of slope 0.01),
            ``"silu"``, ``"mish"``, ``"tanh"`` or ``"sigmoid"``.
        scale: s, above 0.
        reads: what ``down`` is applied to, unless in parallel: ``"branch"`` h, ``"stream"`` x that h will be added to, or
            ``"sum"`` h + x; in each case the change is added to h. In the adapters library (Poth et al. 2023,
            https://arxiv.org/abs/2311.11077) Pfeiffer's adapters read the sum, parallel ones the stream. For ViT, DeiT,
            DINOv2, BEiT, EVA-02 and Swin (that of transformers after the MLP only).
        dropout: probability of dropping a number of f(down(h)) while training, at least 0 and below 1. Attacks see none.
    """

    _: KW_ONLY
    style: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    reduction: float = 16
    kernel: int = 1
    activation: str = "gelu"
    scale: float = 1.0
    reads: Literal["branch", "stream", "sum"] = "branch"
    width: int | None = None
    dropout: float = later(0.0)

    why_not_mergeable: ClassVar[str] = (
        "its bottlenecks are nonlinear, so no weight of the base model can absorb them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activation(self.activation)
        if self.style == "parallel" and self.reads != "branch":
            raise ValueError(
                f"style='parallel' reads the input of the MLP; for reads={self.reads!r} use style='pfeiffer' or 'houlsby'"
            )
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width must be at least 1 or None for reduction, got {self.width}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {self.kernel}")
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    def bottleneck(self, width: int) -> int:
        """Width of the bottleneck for a branch of ``width`` channels."""
        return max(1, round(width / self.reduction)) if self.width is None else self.width

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Insert one adapter a site.

        Raises:
            ValueError: the model has no known branch of the kind that ``style``, ``kernel`` and ``where`` ask for.
        """
        sites = chosen_sites(self, module, anatomy, attention=self.style == "houlsby")
        if self.style == "parallel":
            sites = [_beside(site, module) for site in sites if site.body]
            if not sites:
                raise ValueError(
                    f"Adapter: no branch of {type(module).__name__} is a known MLP, which style='parallel' runs beside; use "
                    "Adapter(style='houlsby')"
                )
        sites = tried_sites(self, module, anatomy, sites, beside=self.style == "parallel")
        if self.kernel > 1 and not any(map(_is_image, sites)):
            raise ValueError(
                f"Adapter: kernel={self.kernel} is for branches of convolutions, and {type(module).__name__} has none in "
                f"where={self.where!r}; use kernel=1"
            )
        some = next(module.parameters())
        reads = "input" if self.style == "parallel" else self.reads
        new: list[Bottleneck] = []
        for site in sites:
            kernel = self.kernel if _is_image(site) else 1
            width = self.bottleneck(site.width)
            adapter = Bottleneck(site, width, kernel, self.activation, self.scale, self.dropout)
            new.append(adapter.to(some.device, some.dtype))
            adapter.attach_reading(module, site, reads)
        return parameter_names(module, new)


def check_activation(name: str) -> None:
    """Raise ValueError unless ``name`` is one of :data:`ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")


def chosen_sites(strategy: Strategy, module: nn.Module, anatomy: Anatomy, *, attention: bool) -> list[Site]:
    """The ends of branches in ``where``, those of attention only if asked for.

    Raises:
        ValueError: there is none.
    """
    name = type(strategy).__name__
    if not anatomy.sites:
        raise ValueError(
            f"{name}: no residual branch is known in {type(module).__name__}; name the modules whose output is one with "
            f"Backbone(module, sites=[PATTERN, ...]); {candidates(module)}"
        )
    chosen = strategy.select(module, anatomy)
    sites = [
        site for site in anatomy.sites if chosen.site(site) and (attention or site.branch != "attention")
    ]
    if not sites:
        kind = "residual branch" if attention else "branch other than attention"
        raise ValueError(f"{name}: {type(module).__name__} has no {kind} in where={strategy.where!r}")
    return sites


def tried_sites(
    strategy: Strategy, module: nn.Module, anatomy: Anatomy, sites: list[Site], *, beside: bool = False
) -> list[Site]:
    """``sites`` in the layout in which one blank image passes them; see :func:`~paretune.backbones.sites.laid_out`.

    A model without values, or whose image size is unknown, is not tried.

    Raises:
        ValueError: the model does not run, or a site is not the end of a branch of the width that it is said to have.
    """
    name, size = type(strategy).__name__, anatomy.image_size
    if size is None or next(module.parameters()).is_meta:
        return sites
    try:
        fitting, wrong = laid_out(module, sites, blank_image(module, anatomy.channels, size), beside=beside)
    except Exception as error:  # whatever a model raises
        height, width = pair(size)
        raise ValueError(
            f"{name}: {type(module).__name__} fails on a blank image of {height} × {width} pixels, by which places for "
            f"bottlenecks are tried ({' '.join(str(error).split())[:200]}); say the size: Backbone(module, image_size=...)"
        ) from error
    for place, reason in wrong.items():
        raise ValueError(
            f"{name}: no bottleneck fits at {place!r}: {reason}; leave it out with where=, or name the places with "
            "Backbone(module, sites=...)"
        )
    return fitting


def _is_image(site: Site) -> bool:
    return site.branch == "conv" and site.channel_axis == 1


def _beside(site: Site, module: nn.Module) -> Site:
    """The site around the whole of the branch's body: its output, which the hook sees together with its input."""
    body = module.get_submodule(site.body)
    first = next((part for part in body.modules() if isinstance(part, nn.Linear | nn.Conv2d)), None)
    axis: Literal[-1, 1] = 1 if isinstance(first, nn.Conv2d) else -1
    branch = site.branch if axis == 1 else "mlp"
    return Site(site.body, "output", branch, site.width, axis, site.block, site.body)


class Bottleneck(Reader):
    """h + s · up(f(down(z))) over the channel axis, with z what it reads: h unless said otherwise.

    Shapes, for width w and bottleneck m: ``down`` (m, w), ``up`` (w, m), ``depthwise`` (m, 1, kernel, kernel) if any, and
    their biases.
    """

    NAME = "bottleneck"

    def __init__(
        self, site: Site, bottleneck: int, kernel: int, activation: str, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.channel_axis = site.channel_axis
        self.activation = activation
        self.scale = scale
        self.dropout = dropout
        self.down = nn.Linear(site.width, bottleneck)
        self.depthwise: nn.Conv2d | None = None
        if kernel > 1:
            self.depthwise = nn.Conv2d(bottleneck, bottleneck, kernel, padding=kernel // 2, groups=bottleneck)
        self.up = nn.Linear(bottleneck, site.width)
        for start in (self.up.weight, self.up.bias, self.down.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor:
        """The changed branch, of the shape of ``branch`` (of ``x`` if None)."""
        z = self.down(x.movedim(self.channel_axis, -1))
        if self.depthwise is not None:
            z = self.depthwise(z.movedim(-1, 1)).movedim(1, -1)
        z = F.dropout(ACTIVATIONS[self.activation](z), self.dropout, self.training)
        change: Tensor = self.up(z)
        kept = x if branch is None else branch
        return torch.add(kept, change.movedim(-1, self.channel_axis), alpha=self.scale)

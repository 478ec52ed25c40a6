"""Compacter: bottleneck adapters made of PHM layers (Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647).

A PHM layer is y = x H + b with H = sum_i A_i ⊗ (s_i t_i) (their equations 2 and 4): n small matrices A_i (n × n),
shared by every layer, times rank-r matrices of each layer's own. Their PHM-Adapter shares nothing.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from paretune.backbones.sites import Site
from paretune.strategies.adapter import ACTIVATIONS, Adapter, check_activation, chosen_sites, tried_sites
from paretune.strategies.mechanics.base import Anatomy, Strategy, parameter_names
from paretune.strategies.mechanics.stream import Reader
from paretune.strategies.normtune import NormTune
from paretune.strategies.phm import PHM, bottleneck, new_rule


@dataclass(frozen=True)
class Compacter(Strategy):
    """Insert x + up(gelu(down(x))) at the end of residual branches, with PHM projections ``down`` and ``up``.

    The bottleneck is width / reduction, rounded to a multiple of n and at least n. On ConvNets the projections act
    on the channels of each pixel (1×1). It starts as the exact identity: the factor t of ``up`` is zero.

    Args:
        reduction: width of the branch over width of the bottleneck.
        n: number and size of the Kronecker factors; must divide the width.
        rank: r, rank of s_i t_i.
        placement: ``"both"`` after attention and MLP (Compacter), ``"mlp"`` after the MLP only (Compacter++). Branches of
            convolutions always count.
        activation: between ``down`` and ``up``; those of :class:`~paretune.Adapter`.
        reads: what ``down`` is applied to: ``"branch"``, ``"stream"`` or ``"sum"``, as for :class:`~paretune.Adapter`. The
            Compacter++ of the adapters library reads the sum.
        shared_rule: one rule A for the whole model; False gives each projection its own.
        train_norms: train the norms in ``where`` too, as the authors do (:class:`~paretune.strategies.NormTune`).
    """

    _: KW_ONLY
    reduction: float = 32
    n: int = 4
    rank: int = 1
    placement: Literal["both", "mlp"] = "both"
    activation: str = "gelu"
    reads: Literal["branch", "stream", "sum"] = "branch"
    shared_rule: bool = True
    train_norms: bool = False

    learning_rate: ClassVar[float] = 1e-2
    why_not_mergeable: ClassVar[str] = Adapter.why_not_mergeable

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reduction", "n", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_activation(self.activation)

    def bottleneck(self, width: int) -> int:
        """Width of the bottleneck for a branch of ``width`` channels."""
        return max(self.n, self.n * round(width / self.reduction / self.n))

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Insert one adapter a site.

        Raises:
            ValueError: the model has no known residual branch, or a width is not divisible by n.
        """
        sites = chosen_sites(self, module, anatomy, attention=self.placement == "both")
        for site in sites:
            if site.width % self.n:
                raise ValueError(
                    f"Compacter: n={self.n} does not divide the width {site.width} of {site.module!r}"
                )
        sites = tried_sites(self, module, anatomy, sites)
        rule = new_rule(self.n, next(module.parameters())) if self.shared_rule else None
        new: list[CompacterAdapter] = []
        for site in sites:
            new.append(CompacterAdapter(site, self, rule, like=next(module.parameters())))
            new[-1].attach_reading(module, site, self.reads)
        norms = NormTune(where=self.where).install(module, anatomy) if self.train_norms else []
        return parameter_names(module, new) + norms


class CompacterAdapter(Reader):
    """h + up(f(down(z))) over the channel axis of a branch h, with z what it reads: h unless said otherwise."""

    NAME = "compacter"

    def __init__(self, site: Site, strategy: Compacter, rule: nn.Parameter | None, like: Tensor) -> None:
        super().__init__()
        self.channel_axis = site.channel_axis
        self.activation = strategy.activation
        if rule is not None:
            self.rule = rule  # one Parameter, shared by every adapter of the model
        narrow, n, rank = strategy.bottleneck(site.width), strategy.n, strategy.rank
        self.down = PHM(site.width, narrow, n, rank, rule, like)
        self.up = PHM(narrow, site.width, n, rank, rule, like)
        nn.init.zeros_(self.up.t)

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor:
        """The changed branch, of the shape of ``branch`` (of ``x`` if None)."""
        rule = getattr(self, "rule", None)
        f = ACTIVATIONS[self.activation]
        alone = branch is None or branch is x
        if alone and self.channel_axis == -1 and not torch.is_autocast_enabled(x.device.type):
            return bottleneck(x, self.down, self.up, rule, f, add=True)
        wide = x.movedim(self.channel_axis, -1)
        change = bottleneck(wide, self.down, self.up, rule, f, add=False)
        return (x if branch is None else branch) + change.movedim(-1, self.channel_axis)

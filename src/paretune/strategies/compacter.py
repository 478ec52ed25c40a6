"""Compacter: bottleneck adapters made of PHM layers (Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647).

A PHM layer is y = x H + b with H = sum_i A_i ⊗ (s_i t_i) (their equations 2 and 4): n small matrices A_i (n × n),
shared by every layer, times rank-r matrices of each layer's own.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, einsum, nn

from paretune.sites import Site
from paretune.strategies.adapter import chosen_sites
from paretune.strategies.base import Anatomy, Inserted, Strategy
from paretune.strategies.normtune import NormTune


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
        train_norms: train the norms in ``where`` too, as the authors do (:class:`~paretune.NormTune`).
    """

    _: KW_ONLY
    reduction: float = 32
    n: int = 4
    rank: int = 1
    placement: Literal["both", "mlp"] = "both"
    train_norms: bool = False

    learning_rate: ClassVar[float] = 1e-2
    why_not_mergeable: ClassVar[str] = (
        "its bottlenecks are nonlinear, so no weight of the base model can absorb them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reduction", "n", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.placement not in ("both", "mlp"):
            raise ValueError(f"placement must be 'both' or 'mlp', got {self.placement!r}")

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
        some = next(module.parameters())
        rule = nn.Parameter(torch.empty(self.n, self.n, self.n, device=some.device, dtype=some.dtype))
        nn.init.normal_(rule, std=RULE_STD)
        names = []
        for site in sites:
            adapter = CompacterAdapter(site, self.bottleneck(site.width), rule, self.rank)
            name = adapter.attach(module, site)
            names += [f"{name}.{own}" for own, _ in adapter.named_parameters()]
        if self.train_norms:
            names += NormTune(where=self.where).install(module, anatomy)
        return names


# The authors draw the shared rule with std 1e-4 to start near the identity. We start exactly there through t = 0, so
# the rule may have the scale at which H keeps the variance of its input: n terms, each of n entries.
RULE_STD = 0.25


class CompacterAdapter(Inserted):
    """x + up(gelu(down(x))) over the channel axis of a branch."""

    NAME = "compacter"

    def __init__(self, site: Site, bottleneck: int, rule: nn.Parameter, rank: int) -> None:
        super().__init__()
        self.channel_axis = site.channel_axis
        self.rule = rule  # one Parameter, shared by every adapter of the model
        self.down = PHM(site.width, bottleneck, rule, rank)
        self.up = PHM(bottleneck, site.width, rule, rank)
        nn.init.zeros_(self.up.t)

    def forward(self, branch: Tensor) -> Tensor:
        """The changed branch, of the same shape."""
        x = branch.movedim(self.channel_axis, -1)
        change: Tensor = self.up(nn.functional.gelu(self.down(x, self.rule)), self.rule)
        return branch + change.movedim(-1, self.channel_axis)


class PHM(nn.Module):
    """y = x H + b with H = sum_i A_i ⊗ (s_i t_i), contracted factor by factor: H is never built.

    Shapes: ``s`` (n, inputs / n, rank), ``t`` (n, rank, outputs / n), ``b`` (outputs,); the rule A is (n, n, n).
    """

    def __init__(self, inputs: int, outputs: int, rule: Tensor, rank: int) -> None:
        super().__init__()
        n = rule.shape[0]
        made: dict[str, Any] = {"device": rule.device, "dtype": rule.dtype}
        self.s = nn.Parameter(torch.empty(n, inputs // n, rank, **made))
        self.t = nn.Parameter(torch.empty(n, rank, outputs // n, **made))
        self.b = nn.Parameter(torch.zeros(outputs, **made))
        for factor in (*self.s.data, *self.t.data):
            nn.init.xavier_normal_(factor)

    def forward(self, x: Tensor, rule: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs)."""
        x = rearrange(x, "... (a p) -> ... a p", a=rule.shape[0])
        z = einsum("...ap,ipr->...air", x, self.s)  # rank-r summary of each of the n slices, for each i
        z = einsum("...air,iab->...bir", z, rule)
        y = einsum("...bir,irq->...bq", z, self.t)
        flat: Tensor = rearrange(y, "... b q -> ... (b q)")
        return flat + self.b

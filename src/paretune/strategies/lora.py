"""LoRA in weight space: W + (alpha / r) B A (Hu et al. 2022, https://arxiv.org/abs/2106.09685, section 4.1)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paretune.backbones.modes import modes_kept
from paretune.backbones.sites import candidates
from paretune.strategies.mechanics.base import Anatomy, Strategy, holders, parameter_names
from paretune.strategies.mechanics.frozen import frozen_linear
from paretune.strategies.mechanics.keeping import KeptDelta
from paretune.strategies.mechanics.roles import ROLES, Matrix, Rows, match_layer, matrices, named

Pattern = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LoRA(Strategy):
    """Train a low-rank difference of each targeted weight; it merges exactly and costs nothing after merging.

    Works on ``nn.Linear`` and on every ``nn.Conv2d`` (grouped, depthwise, dilated, any padding mode,
    weight-standardised), whose weight is seen as a matrix (out, in / groups · height · width); and on the projections that
    ``nn.MultiheadAttention`` holds itself. Layers that share one weight share its difference.

    Args:
        rank: r. A layer whose weight has a smaller rank gets that smaller one (depthwise 3×3: at most 9).
        alpha: scale of the difference, alpha / rank; the rank itself when None, so that the scale is 1.
        targets: which layers. ``"all"`` (every Linear and Conv2d, and projections of attention modules), ``"linear"``,
            ``"conv"``, the roles ``"q" "k" "v" "o" "fc1" "fc2"``, or glob patterns of full module names such as
            ``"blocks.*.attn.proj"``; for the projections of an attention module its name, or theirs
            (``"*.self_attn.in_proj_weight"``). The head is never a target: it trains in full. In a fused ``qkv`` or
            ``in_proj_weight`` each of ``q``, ``k`` and ``v`` has its own pair of factors; those not named stay untouched.
        rslora: divide alpha by sqrt(rank) instead of rank (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
        rank_pattern: other ranks for some layers, as pairs of a glob pattern of full names and a rank, or as a mapping; the
            first that matches counts.
        alpha_pattern: likewise other values of alpha.
        dropout: probability of dropping an input channel of the difference while training, at least 0 and below 1. The
            difference lives in the weight, so that one draw holds for the whole batch. Attacks and evaluation have none.
    """

    _: KW_ONLY
    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("all",)
    rslora: bool = False
    rank_pattern: Pattern = ()
    alpha_pattern: Pattern = ()
    dropout: float = 0.0

    learning_rate: ClassVar[float] = 4e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.targets  # a single name or a list does as well
        object.__setattr__(self, "targets", (given,) if isinstance(given, str) else tuple(given))
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, _pairs(name, getattr(self, name)))
        for field, rank in (("rank", self.rank), *(("rank_pattern", rank) for _, rank in self.rank_pattern)):
            if rank < 1 or int(rank) != rank:
                raise ValueError(f"{field} must be a whole number of at least 1, got {rank}")
        for field, alpha in (
            ("alpha", self.alpha),
            *(("alpha_pattern", alpha) for _, alpha in self.alpha_pattern),
        ):
            if alpha is not None and not alpha > 0:
                raise ValueError(f"{field} must be above 0 or None for the rank, got {alpha}")
        if not self.targets:
            raise ValueError("targets is empty; name layers, or use LinearProbe() to train only the head")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def scaling(self) -> float:
        """The factor in front of B A, where no pattern says otherwise."""
        return self._scaling(self.rank, self.alpha)

    def of_layer(self, name: str) -> tuple[int, float]:
        """Rank and scaling of the layer ``name``."""
        rank = int(_first(self.rank_pattern, name, self.rank))
        alpha = _first(self.alpha_pattern, name, self.alpha)
        return rank, self._scaling(rank, alpha)

    def _scaling(self, rank: int, alpha: float | None) -> float:
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self.rslora else rank)

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Parametrize the targeted weights.

        Raises:
            ValueError: a target or a pattern matches no layer; the message lists what could be meant.
        """
        matches = self._matches(module, anatomy)
        for pattern, _ in (*self.rank_pattern, *self.alpha_pattern):
            if not any(named(name, pattern) for name in matches):
                raise ValueError(
                    f"LoRA: pattern {pattern!r} matches none of the targeted layers {', '.join(matches)}"
                )
        layers, places = matrices(module, anatomy.head), holders(module)
        settings: dict[int, tuple[str, tuple[int, float], Rows]] = {}
        new: list[LoRADelta] = []
        for name, rows in matches.items():
            weight = layers[name].weight
            first, *others = settings.setdefault(id(weight), (name, self.of_layer(name), rows))
            if others != [self.of_layer(name), rows]:
                raise ValueError(
                    f"LoRA: {first!r} and {name!r} share one weight, and are to be adapted in two ways"
                )
            if first != name:
                continue
            rank, scaling = self.of_layer(name)
            new.append(LoRADelta(weight, rank, scaling, rows, self.dropout))
            for layer, tensor in places[id(weight)]:
                new[-1].install(layer, tensor)
        return parameter_names(module, new)

    def _matches(self, module: nn.Module, anatomy: Anatomy) -> dict[str, Rows]:
        """Each targeted layer, with the rows that get a difference."""
        layers = matrices(module, anatomy.head)
        rows_of: dict[str, Rows] = {}
        for target in self.targets:
            hits = {
                name: rows
                for name, layer in layers.items()
                if (rows := _match(target, name, layer, module)) is not None
            }
            if not hits:
                raise ValueError(
                    f"LoRA: target {target!r} matches no Linear or Conv2d layer outside the head {anatomy.head!r}; use "
                    f"'all', 'linear', 'conv', a role of {', '.join(ROLES)} or a pattern; {candidates(module)}"
                )
            for name, rows in hits.items():
                if len(rows_of.get(name, rows).parts) != len(rows.parts):
                    raise ValueError(
                        f"LoRA: targets {self.targets} name {name!r} both as a whole and by its q, k, v parts"
                    )
                rows_of[name] = rows_of.get(name, rows) | rows
        chosen = self.select(module, anatomy)
        kept = {name: rows_of[name] for name in layers if name in rows_of and chosen(name)}
        if not kept:
            raise ValueError(
                f"LoRA: none of the layers that targets={self.targets!r} means lies in where={self.where!r}"
            )
        return kept


def _pairs(field: str, given: Any) -> Pattern:
    items = given.items() if isinstance(given, Mapping) else given
    try:
        return tuple((str(pattern), value) for pattern, value in items)
    except (TypeError, ValueError):
        raise ValueError(
            f"{field} must be a mapping or pairs of a pattern and a number, got {given!r}"
        ) from None


def _first(pattern: Pattern, name: str, default: Any) -> Any:
    return next((value for glob, value in pattern if named(name, glob)), default)


def _match(target: str, name: str, matrix: Matrix, module: nn.Module) -> Rows | None:
    is_conv = isinstance(matrix.layer, nn.Conv2d)
    kinds = {"all": True, "linear": not is_conv, "conv": is_conv}
    if target in kinds:
        return Rows() if kinds[target] else None
    return match_layer(target, name, matrix.layer, module)


class LoRADelta(KeptDelta):
    """W + scaling · B A, seen as a matrix of (rows, columns) = (out, fan-in).

    Where ``rows`` means parts of a fused projection (q, k, v), each part has its own factors, which together form one
    block-structured B.

    Shapes, with ``n`` parts meant: ``lora_A`` (n · rank, columns), ``lora_B`` (n · rows of a part, rank).
    """

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        scaling: float,
        rows: Rows | Sequence[bool] = (True,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.rows = rows if isinstance(rows, Rows) else Rows(tuple(rows))
        height, columns = weight.shape[0], weight[0].numel()
        self.n = sum(self.rows.parts) if len(self.rows.parts) > 1 else 1
        self.rank = min(rank, height // len(self.rows.parts), columns)
        self.scaling = scaling
        self.dropout = dropout
        factory: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(self.n * self.rank, columns, **factory))
        self.lora_B = nn.Parameter(torch.zeros(self.rows.of(height), self.rank, **factory))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as loralib and peft

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A of shape (n · rank, columns) and B of shape (rows, n · rank), whose product is the difference."""
        a: Tensor = self.lora_A
        b: Tensor = self.lora_B
        if self.training and self.dropout:
            channels = weight.shape[1] if weight.ndim > 1 else 1
            kept = nn.functional.dropout(a.new_ones(channels), self.dropout)
            a = a * kept.repeat_interleave(a.shape[1] // channels)
        if self.n > 1:
            b = torch.block_diag(*b.view(self.n, -1, self.rank))  # type: ignore[no-untyped-call]
        return a, self.rows.spread(b, 0.0)

    def effective(self, weight: Tensor) -> Tensor:
        """Effective weight, of the shape of ``weight``."""
        a, b = self.factors(weight)
        if weight.ndim == 2:
            return torch.addmm(weight, b, a, alpha=self.scaling)  # one pass over the weight
        # clone() keeps the strides, which `weight + delta` does not. By them oneDNN picks its kernel where the image is
        # one pixel, and its choice for the wrong ones is far slower for wide depthwise convolutions.
        return weight.clone().add_((b @ a).view_as(weight), alpha=self.scaling)

    def linear(self, layer: Any, inputs: Tensor) -> Tensor:
        """x Wᵀ + b + scaling (x Aᵀ) Bᵀ."""
        weight = layer.parametrizations["weight"].original
        a, b = self.factors(weight)
        outputs = frozen_linear(inputs, weight, layer.bias)
        difference = nn.functional.linear(nn.functional.linear(inputs, a), b)
        return outputs.add_(difference, alpha=self.scaling)

    def change_squared(self, tensor: Tensor) -> Tensor:
        """‖scaling · B A‖² = scaling² · tr(BᵀB · AAᵀ)."""
        with modes_kept(self):
            a, b = (
                factor.float() if factor.element_size() < 4 else factor
                for factor in self.eval().factors(tensor)
            )
        return self.scaling**2 * ((b.T @ b) * (a @ a.T)).sum()

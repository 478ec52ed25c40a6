"""FacT: the increments of all weights as one tensor of few factors (Jie & Deng 2023, https://arxiv.org/abs/2212.03145).

The weights of a vision transformer of L blocks of width d are 12 L squares of d × d: q, k, v and o, and four each for the
two layers of the MLP. Their increments are one tensor (12 L, d, d), of which square n is s · U Σ_n Vᵀ, with U and V (d, r)
shared by all. FacT-TT, the format of a tensor train, trains each Σ_n (r, r); FacT-TK, that of Tucker, has Σ_n = sum_z
P[n, z] C_z, with one core C (r, r, r) and r numbers a square: 2 d r + 12 L r² parameters, or 2 d r + 12 L r + r³.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from paretune.backbones.backbone import inside
from paretune.backbones.sites import candidates
from paretune.strategies.mechanics.base import Anatomy, Strategy, holders, parameter_names
from paretune.strategies.mechanics.frozen import frozen_linear
from paretune.strategies.mechanics.keeping import KeptDelta
from paretune.strategies.mechanics.roles import matrices


@dataclass(frozen=True)
class FacT(Strategy):
    """Train factors that all attention and MLP weights of a transformer share; they merge exactly.

    Every matrix of these branches that is at least d × d, with d the width of the branch, is cut into squares of d × d, so
    that a fused qkv is three; what its sides have beyond a multiple of d is cut from a further square. Smaller matrices,
    such as those of positions or gates, stay as they are. Stages of other widths have factors of their own. It starts as
    the exact identity: V is zero.

    Args:
        form: ``"TT"``, a matrix (r, r) for each square, or ``"TK"``, r numbers for each and a core (r, r, r).
        rank: r, at most d.
        scale: s, above 0; the authors choose among powers of ten from 0.01 to 100.
    """

    _: KW_ONLY
    form: Literal["TT", "TK"] = "TT"
    rank: int = 16
    scale: float = 1.0

    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Parametrize the weights of attention and MLP.

        Raises:
            ValueError: no such weight is known in ``where``, or the rank is larger than a width.
        """
        chosen, places = self.select(module, anatomy), holders(module)
        bodies = {site.body: site.width for site in anatomy.sites if site.body and site.branch != "conv"}
        weights: dict[int, dict[int, tuple[str, nn.Parameter]]] = {}  # by width, each weight once
        for name, matrix in matrices(module, anatomy.head).items():
            width = next((width for body, width in bodies.items() if inside(name, body)), None)
            if width is not None and chosen(name):
                weight = matrix.weight
                if weight.ndim == 2 and min(weight.shape) >= width:
                    weights.setdefault(width, {}).setdefault(id(weight), (name, weight))
        if not weights:
            raise ValueError(
                f"FacT: no weight of an attention or MLP is known in {type(module).__name__} in where={self.where!r}; "
                f"use LoRA; {candidates(module)}"
            )
        if self.rank > min(weights):
            raise ValueError(f"FacT: rank={self.rank} is more than the width {min(weights)} of a branch")
        new: list[FacTDelta] = []
        for width, of_width in weights.items():
            counts = [math.prod(_squares(weight, width)) for _, weight in of_width.values()]
            shared, first = self._shared(width, sum(counts), next(module.parameters())), 0
            for (key, (_, weight)), count in zip(of_width.items(), counts, strict=True):
                new.append(FacTDelta(weight, width, self.scale, shared, first))
                first += count
                for layer, tensor in places[key]:
                    new[-1].install(layer, tensor)
        return parameter_names(module, new)

    def _shared(self, width: int, squares: int, like: Tensor) -> dict[str, nn.Parameter]:
        """Fresh factors that all ``squares`` of one width share, drawn as the authors draw them."""
        shapes: dict[str, tuple[int, ...]] = {"u": (self.rank, width), "v": (width, self.rank)}
        if self.form == "TK":
            shapes |= {"c": (self.rank,) * 3, "p": (squares, self.rank)}
        shared = {name: nn.Parameter(like.new_zeros(shape)) for name, shape in shapes.items()}
        nn.init.kaiming_uniform_(shared["u"], a=math.sqrt(5))
        for name in shared.keys() & {"c", "p"}:
            nn.init.xavier_uniform_(shared[name])
        return shared


def _squares(weight: Tensor, width: int) -> tuple[int, int]:
    """How many squares cover the rows of ``weight``, and its columns."""
    rows, columns = weight.shape
    return math.ceil(rows / width), math.ceil(columns / width)


class FacTDelta(KeptDelta):
    """W + s · V Σ U on each square of a weight of (rows, columns).

    Shapes, for a · b squares: ``fact_u`` (r, d) and ``fact_v`` (d, r), shared; of TT ``fact_s`` (a · r, b · r); of TK
    ``fact_c`` (r, r, r) and ``fact_p`` (all squares, r), shared. As a layer computes x Wᵀ, u reads its input and v gives its
    output, as Uᵀ and V of the paper do.
    """

    fact_u: Tensor
    fact_v: Tensor
    fact_s: Tensor
    fact_c: Tensor
    fact_p: Tensor

    def __init__(
        self, weight: Tensor, width: int, scale: float, shared: dict[str, nn.Parameter], first: int
    ) -> None:
        super().__init__()
        self.a, self.b = _squares(weight, width)
        self.first, self.width, self.scale = first, width, scale
        self.rank = len(shared["u"])
        for name, parameter in shared.items():
            self.register_parameter(f"fact_{name}", parameter)
        if "c" not in shared:
            self.fact_s = nn.Parameter(shared["u"].new_empty(self.a * self.rank, self.b * self.rank))
            nn.init.kaiming_uniform_(self.fact_s, a=math.sqrt(5))

    def sigma(self) -> Tensor:
        """(a · r, b · r): what u reads of each block of columns, to what v gives to each block of rows."""
        if "fact_s" in self._parameters:
            return self.fact_s
        p = self.fact_p[self.first : self.first + self.a * self.b]
        squares = torch.einsum("xyz,nz->nyx", self.fact_c, p)
        grid = squares.view(self.a, self.b, self.rank, self.rank)
        return grid.transpose(1, 2).reshape(self.a * self.rank, -1)

    def effective(self, weight: Tensor) -> Tensor:
        """Effective weight, of the shape of ``weight``."""
        rows, columns = weight.shape
        left = self.fact_v @ self.sigma().view(self.a, self.rank, -1)  # (a, d, b · r)
        delta = (left.reshape(-1, self.rank) @ self.fact_u).view(self.a * self.width, -1)
        return weight.clone().add_(delta[:rows, :columns], alpha=self.scale)

    def linear(self, layer: Any, inputs: Tensor) -> Tensor:
        """x Wᵀ + b + s · (x Uᵀ) Σᵀ Vᵀ, block by block."""
        weight = layer.parametrizations["weight"].original
        rows, columns = weight.shape
        wide = pad(inputs, (0, self.b * self.width - columns))
        read = linear(wide.view(*inputs.shape[:-1], self.b, self.width), self.fact_u).flatten(-2)
        given = linear(read, self.sigma()).view(*inputs.shape[:-1], self.a, self.rank)
        change = linear(given, self.fact_v).flatten(-2)
        return frozen_linear(inputs, weight, layer.bias).add_(change[..., :rows], alpha=self.scale)

"""LNLoRA: a low-rank branch that reads a norm of the layer's input (Yuan et al. 2024, https://arxiv.org/abs/2401.01752)."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.backbones.sites import Site, candidates
from paretune.strategies.mechanics.base import Anatomy, Inserted, Strategy, parameter_names
from paretune.strategies.mechanics.roles import Matrix, matrices
from paretune.strategies.mechanics.trial import show_an_image
from paretune.strategies.ssf import POSITIONS, scaled_and_shifted


@dataclass(frozen=True)
class LNLoRA(Strategy):
    """Train W x + (alpha / r) B A LN(x) in each Linear layer and each patch embedding (FullLoRA, of FullLoRA-AT).

    LN is a layer norm of the branch's own, with a weight and a bias, over the features of x. A patch embedding, that is a
    convolution whose windows cut its input into patches, is the linear layer of each patch that it is. B starts at zero, so
    that the start is the base. Left out is what would train for nothing: the bias of LN where a softmax or a norm undoes it,
    as for keys that have a layer of their own; layers that compute a table of relative positions, which sees no image; and
    layers of one input, whose norm is a constant. Other convolutions stay as they are.

    Args:
        rank: r. A layer whose weight has a smaller rank gets that smaller one.
        alpha: scale of the branch, alpha / rank; the rank itself when None, so that the scale is 1.
    """

    _: KW_ONLY
    rank: int = 8
    alpha: float | None = None

    why_not_mergeable: ClassVar[str] = (
        "its norms depend on the input, so no weight of the base model can absorb them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be above 0 or None for the rank, got {self.alpha}")

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Put a branch beside each layer.

        Raises:
            ValueError: there is none, or the model reads the weight of one itself, past what stands beside the layer.
        """
        chosen = self.select(module, anatomy)
        selected = {name: matrix for name, matrix in matrices(module, anatomy.head).items() if chosen(name)}
        layers: dict[nn.Module, str] = {}  # with the first of its names
        for name, matrix in selected.items():
            if _is_meant(matrix) and not POSITIONS.search(name):
                layers.setdefault(matrix.layer, name)
        if not layers:
            raise ValueError(
                f"LNLoRA: no Linear layer or patch embedding outside the head {anatomy.head!r} lies in "
                f"where={self.where!r}; {candidates(module)}"
            )
        run = _that_run(module, anatomy, layers)
        past = [
            name for layer, name in layers.items() if layer not in run or selected[name].tensor != "weight"
        ]
        if past:
            raise ValueError(
                f"LNLoRA: {type(module).__name__} reads the weights of layers itself and never runs these, so that nothing "
                f"can stand beside them; {len(past)} of {len(layers)}, such as {past[0]!r}; name others with where=, or use "
                "LoRA()"
            )
        new: list[LNLoRABranch] = []
        for layer, name in layers.items():
            _, shifted = scaled_and_shifted(name, layer, module)
            alpha = self.rank if self.alpha is None else self.alpha
            new.append(LNLoRABranch(layer, self.rank, alpha, bias=any(shifted.parts)))
            new[-1].attach(module, Site(name, "output", "mlp", len(selected[name].weight), -1))
        return parameter_names(module, new)


def _is_meant(matrix: Matrix) -> bool:
    """Whether it is a linear map of several inputs: of a convolution, one of patches that do not overlap."""
    layer: Any = matrix.layer
    if not isinstance(layer, nn.Conv2d):
        return matrix.weight.shape[1] > 1
    return (
        layer.kernel_size == layer.stride != (1, 1)
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def _that_run(module: nn.Module, anatomy: Anatomy, layers: Iterable[nn.Module]) -> set[nn.Module]:
    """Those of ``layers`` that ``module`` calls with a tensor, as an image shows."""
    run: set[nn.Module] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: run.update([layer] if args else []))
        for layer in layers
    ]
    show_an_image(module, anatomy, hooks, "LNLoRA", "which shows the layers that it calls")
    return run


class LNLoRABranch(Inserted):
    """What ``layer`` makes of x, + (alpha / r) · up(down(norm(x))).

    Shapes: ``norm`` (fan-in,) for its weight and its bias, ``down`` (r, fan-in), ``up`` (out, r); the fan-in of a patch
    embedding is channels · height · width of a patch.
    """

    NAME = "lnlora"

    def __init__(self, layer: Any, rank: int, alpha: float, *, bias: bool) -> None:
        super().__init__()
        weight: Tensor = layer.weight
        out, fan_in = weight.flatten(1).shape
        self.patch: tuple[int, ...] | None = layer.kernel_size if isinstance(layer, nn.Conv2d) else None
        self.scaling = alpha / rank
        factory: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.norm = nn.LayerNorm(fan_in, bias=bias, **factory)
        self.down = nn.Linear(fan_in, min(rank, out, fan_in), bias=False, **factory)
        self.up = nn.Linear(self.down.out_features, out, bias=False, **factory)
        nn.init.zeros_(self.up.weight)

    def changed(self, args: tuple[Any, ...], branch: Tensor) -> Tensor:
        """As in :class:`~paretune.strategies.mechanics.base.Inserted`, by the input of the layer."""
        result: Tensor = self(args[0], branch)
        return result

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """The changed output of the layer, of the shape of ``branch``."""
        if self.patch is not None:
            x = F.unfold(x, self.patch, stride=self.patch).mT  # (batch, patches, fan-in)
        change: Tensor = self.up(self.down(self.norm(x)))
        if self.patch is not None:
            change = change.mT.reshape(branch.shape)
        return torch.add(branch, change, alpha=self.scaling)

"""LoRA in weight space: W + (alpha / r) B A (Hu et al. 2022, https://arxiv.org/abs/2106.09685, section 4.1)."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paretune.sites import candidates
from paretune.strategies.base import Anatomy, Delta, Strategy

# Last name components of attention projections and MLP layers in timm and transformers.
ROLES: dict[str, tuple[str, ...]] = {
    "q": ("q", "q_proj", "query"),
    "k": ("k", "k_proj", "key"),
    "v": ("v", "v_proj", "value"),
    "o": ("o_proj", "out_proj"),
    "fc1": ("fc1",),
    "fc2": ("fc2",),
}
_FUSED = ("qkv",)
_FUSED_PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class LoRA(Strategy):
    """Train a low-rank difference of each targeted weight; it merges exactly and costs nothing after merging.

    Works on ``nn.Linear`` and on every ``nn.Conv2d`` (grouped, depthwise, dilated, any padding mode,
    weight-standardised), whose weight is seen as a matrix (out, in / groups · height · width).

    Args:
        rank: r. A layer whose weight has a smaller rank gets that smaller one (depthwise 3×3: at most 9).
        alpha: scale of the difference, alpha / rank; the rank itself when None, so that the scale is 1.
        targets: which layers. ``"all"`` (every Linear and Conv2d), ``"linear"``, ``"conv"``, the roles ``"q" "k" "v"
            "o" "fc1" "fc2"``, or glob patterns of full module names such as ``"blocks.*.attn.proj"``. The
            head is never a target: it trains in full. On a fused ``qkv`` layer each of ``q``, ``k`` and ``v`` has its own
            pair of factors, and those not named stay untouched.
        rslora: divide alpha by sqrt(rank) instead of rank (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
    """

    _: KW_ONLY
    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("all",)
    rslora: bool = False

    learning_rate: ClassVar[float] = 4e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.targets  # a single name or a list does as well
        object.__setattr__(self, "targets", (given,) if isinstance(given, str) else tuple(given))
        if self.rank < 1 or int(self.rank) != self.rank:
            raise ValueError(f"rank must be a whole number of at least 1, got {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be above 0 or None for the rank, got {self.alpha}")
        if not self.targets:
            raise ValueError("targets is empty; name layers, or use LinearProbe() to train only the head")

    @property
    def scaling(self) -> float:
        """The factor in front of B A."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Parametrize the targeted weights.

        Raises:
            ValueError: a target matches no layer; the message lists what could be meant.
        """
        names = []
        for name, parts in self._matches(module, anatomy.head).items():
            layer = module.get_submodule(name)
            LoRADelta(layer.weight, self.rank, self.scaling, parts).install(layer)  # type: ignore[arg-type]
            names += [f"{name}.parametrizations.weight.0.lora_{letter}" for letter in "AB"]
        return names

    def _matches(self, module: nn.Module, head: str) -> dict[str, tuple[bool, ...]]:
        """Each targeted layer, with the blocks of rows that get a delta: (True,), or one entry each for q, k and v."""
        layers = {
            name: layer
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and name != head
        }
        found: dict[str, tuple[bool, ...]] = {}
        for target in self.targets:
            hits = {name: parts for name, layer in layers.items() if (parts := _match(target, name, layer))}
            if not hits:
                raise ValueError(
                    f"LoRA: target {target!r} matches no Linear or Conv2d layer outside the head {head!r}; use 'all', "
                    f"'linear', 'conv', a role of {', '.join(ROLES)} or a pattern; {candidates(module)}"
                )
            for name, parts in hits.items():
                if len(found.get(name, parts)) != len(parts):
                    raise ValueError(
                        f"LoRA: targets {self.targets} name {name!r} both as a whole and by its q, k, v parts"
                    )
                found[name] = tuple(a or b for a, b in zip(found.get(name, parts), parts, strict=True))
        return {name: found[name] for name in layers if name in found}


def _match(target: str, name: str, layer: nn.Module) -> tuple[bool, ...]:
    last = name.rpartition(".")[2]
    if target in ("all", "linear", "conv"):
        wanted = {"all": (nn.Linear, nn.Conv2d), "linear": (nn.Linear,), "conv": (nn.Conv2d,)}[target]
        return (True,) if isinstance(layer, wanted) else ()
    if target in ROLES:
        if last in _FUSED and target in _FUSED_PARTS:
            return tuple(part == target for part in _FUSED_PARTS)
        in_attention = target == "o" and last == "proj" and ".attn." in f".{name}"
        return (True,) if last in ROLES[target] or in_attention else ()
    return (True,) if fnmatch.fnmatchcase(name, target) else ()


class LoRADelta(Delta):
    """W + scaling · B A, seen as a matrix of (rows, columns) = (out, fan-in).

    With ``parts`` the rows are cut into equal blocks (q, k, v of a fused projection); each block that is on has its own
    factors, which together form one block-structured B.

    Shapes, with ``n`` blocks on: ``lora_A`` (n · rank, columns), ``lora_B`` (n · rows / blocks, rank).
    """

    def __init__(self, weight: Tensor, rank: int, scaling: float, parts: Sequence[bool] = (True,)) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        if rows % len(parts):
            raise ValueError(f"a weight of {rows} rows cannot be cut into {len(parts)} equal parts")
        block = rows // len(parts)
        self.rank = min(rank, block, columns)
        self.scaling = scaling
        self.parts = tuple(parts)
        made: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(sum(parts) * self.rank, columns, **made))
        self.lora_B = nn.Parameter(torch.zeros(sum(parts) * block, self.rank, **made))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as loralib and peft

    def forward(self, weight: Tensor) -> Tensor:
        """Effective weight, of the shape of ``weight``."""
        if len(self.parts) == 1:
            delta = self.lora_B @ self.lora_A
        else:
            on = sum(self.parts)
            rank, columns = self.rank, self.lora_A.shape[1]
            blocks = iter(self.lora_B.view(on, -1, rank) @ self.lora_A.view(on, rank, columns))
            off = weight.new_zeros(weight.shape[0] // len(self.parts), columns)
            delta = torch.cat([next(blocks) if part else off for part in self.parts])
        # clone() keeps the strides, which `weight + delta` does not. By them oneDNN picks its kernel where the image is
        # one pixel, and its choice for the wrong ones is far slower for wide depthwise convolutions.
        return weight.clone().add_(delta.view_as(weight), alpha=self.scaling)

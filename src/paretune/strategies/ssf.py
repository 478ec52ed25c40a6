"""SSF: a scale and a shift of what each operation computes (Lian et al. 2022, https://arxiv.org/abs/2210.08823).

Their equation: y = γ ⊙ x + β, where x is the output of a projection of the attention, a layer of the MLP, a convolution or
a norm. It is the same layer with weight γ W and bias γ b + β, so all of it merges. They draw γ around 1 and β around 0; here
both are exact, so that training starts at the base.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from paretune.backbones.backbone import inside
from paretune.strategies.ia3 import is_scaled, is_standardised, scaled_tensors
from paretune.strategies.mechanics.base import Anatomy, Strategy, holders, parameter_names, plain_tensor
from paretune.strategies.mechanics.frozen import scaled_linear
from paretune.strategies.mechanics.keeping import KeptDelta
from paretune.strategies.mechanics.roles import Rows, match_layer, matrices
from paretune.strategies.normtune import norm_layers


@dataclass(frozen=True)
class SSF(Strategy):
    """Train a scale and a shift for each channel that a Linear layer, a convolution or a norm outputs.

    Left out is what would train for nothing, or has no place in the merged model:

    - the shift of a layer without a bias. A bias that the model keeps apart from the layer (BEiT, EVA-02) stays as it is;
    - the shift of keys, which the softmax undoes, unless a norm of the keys comes between, and of a layer that outputs keys
      and more where they cannot be told apart (MobileViT-v2);
    - any other shift that what follows undoes, as far as that is known: in CaiT, MLP-Mixer and PoolFormer;
    - the scale of a weight that the layer standardises, and of queries and keys that are normalised by channel (XCiT);
    - layers that compute a table of relative positions, which sees no image.

    Layers that share one weight share its scale.
    """

    learning_rate: ClassVar[float] = 1e-2

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Parametrize weights and biases.

        Raises:
            ValueError: ``where`` holds nothing to scale or shift, or batch norms that follow training would undo it.
        """
        chosen, places = self.select(module, anatomy), holders(module)
        scales: dict[int, nn.Parameter] = {}  # by the weight that is scaled
        scaled: dict[int, list[tuple[nn.Parameter, Rows | None]]] = {}  # by the tensor
        shifted: set[tuple[int, Rows]] = set()
        new: list[KeptDelta] = []

        def add(delta: KeptDelta, tensor: Tensor | None) -> None:
            new.append(delta)
            for holder, attribute in places[id(tensor)]:
                delta.install(holder, attribute)

        for name, layer, weight, kept, moved in _operations(module, anatomy.head):
            if not chosen(name):
                continue
            if isinstance(layer, nn.Conv2d) and any(self.follows(module).values()):
                raise ValueError(
                    f"SSF: a scale of {name!r} has no effect, because with bn='adapt' the batch norms normalise each "
                    "channel while training; use bn='frozen', or NormTune(bn='adapt')"
                )
            matrix: Any = plain_tensor(layer, weight)
            for tensor, rows in scaled_tensors(layer, weight, kept).items() if any(kept.parts) else ():
                plain: Any = plain_tensor(layer, tensor)
                scale = scales.setdefault(id(matrix), nn.Parameter(matrix.new_ones(kept.of(len(matrix)))))
                before = scaled.setdefault(id(plain), [])
                if not is_scaled(before, scale, rows, f"SSF: {name!r} shares its {tensor}"):
                    add(ScaleDelta(scale, rows), plain)
            for tensor, rows in scaled_tensors(layer, weight, moved).items() if any(moved.parts) else ():
                plain = plain_tensor(layer, tensor)
                if tensor.endswith("bias") and (id(plain), rows) not in shifted:
                    shifted.add((id(plain), rows))
                    add(ShiftDelta(nn.Parameter(plain.new_zeros(rows.of(len(plain)))), rows), plain)
        if not new:
            raise ValueError(
                f"SSF: no Linear, Conv2d or norm outside the head {anatomy.head!r} lies in where={self.where!r}"
            )
        return parameter_names(module, new)


_ALL, _NONE = Rows(), Rows((False,))
# Those that return weight * x + bias or weight * x; the others of NormTune hold something else.
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.RMSNorm)
_NORM_OF_KEYS = re.compile(r"(^|\.)((k|key)_?(layer_?)?norm|norm_k)$")
_FIRST_NORM = re.compile(r"(^|\.)(norm1|before_norm)$")
# Layers that compute a table of relative positions.
POSITIONS = re.compile("rel_pos|cpb|position_bias")
# Products of queries and keys on their way into the softmax (CaiT); one number for all channels of a token (MLP-Mixer).
_UNDONE = re.compile(r"(^|\.)(proj_l|mlp_tokens\.fc2)$")


def _operations(module: nn.Module, head: str) -> Iterator[tuple[str, Any, str, Rows, Rows]]:
    """Name, layer, its weight, and the rows of its outputs that are scaled and shifted."""
    for name, matrix in matrices(module, head).items():
        if not POSITIONS.search(name):
            yield name, matrix.layer, matrix.tensor, *scaled_and_shifted(name, matrix.layer, module)
    for name, norm in norm_layers(module):
        is_known = isinstance(norm, _NORMS) or re.search("(Rms|Simple)Norm", type(norm).__name__)
        if is_known and not inside(name, head) and plain_tensor(norm, "weight") is not None:
            block = module.get_submodule(name.rpartition(".")[0])
            undone = _NORM_OF_KEYS.search(name) or (_is_pooled(block) and _FIRST_NORM.search(name))
            yield name, norm, "weight", _ALL, _NONE if undone else _ALL


def scaled_and_shifted(name: str, layer: Any, module: nn.Module) -> tuple[Rows, Rows]:
    """Which outputs of the matrix ``name`` are scaled, and which are shifted."""
    outer, _, last = name.rpartition(".")
    attention = module.get_submodule(outer)
    if is_standardised(layer) and not isinstance(getattr(layer, "gain", None), nn.Parameter):
        return _NONE, _ALL
    try:
        keys = match_layer("k", name, layer, module)
    except ValueError:  # fused, with parts of several sizes
        return _ALL, _NONE
    if keys is None:
        return _ALL, _NONE if "kv" in last or _UNDONE.search(name) else _ALL
    every = Rows((True,) * len(keys.parts), keys.groups)
    if "XCA" in type(attention).__name__:
        return Rows((False, False, True)), every
    norms = [part for child, part in attention.named_children() if _NORM_OF_KEYS.search(child)]
    if any(not isinstance(norm, nn.Identity) for norm in norms):
        return every, every
    return every, Rows(tuple(not part for part in keys.parts), keys.groups)


def _is_pooled(block: nn.Module) -> bool:
    """Whether the tokens of ``block`` are mixed by the difference between a mean and themselves (PoolFormer)."""
    return any(type(part).__name__.endswith("Pooling") for part in block.children())


class ScaleDelta(KeptDelta):
    """γ ⊙ the rows of a weight, bias or gain; those of one layer share γ. Shape of ``ssf_scale``: (scaled rows,)."""

    def __init__(self, scale: nn.Parameter, rows: Rows) -> None:
        super().__init__()
        self.ssf_scale = scale
        self.rows = rows

    def effective(self, tensor: Tensor) -> Tensor:
        """The scaled tensor, of the same shape and strides."""
        return tensor.clone().mul_(self.rows.spread(self.ssf_scale, 1.0).view(-1, *[1] * (tensor.ndim - 1)))

    def linear(self, layer: Any, inputs: Tensor) -> Tensor:
        """(x Wᵀ) ⊙ γ + b, with the bias that the layer has now, which is scaled and shifted."""
        weight = layer.parametrizations["weight"].original
        return scaled_linear(inputs, weight, self.rows.spread(self.ssf_scale, 1.0), layer.bias)


class ShiftDelta(KeptDelta):
    """A bias + β. Shape of ``ssf_shift``: (shifted rows,)."""

    def __init__(self, shift: nn.Parameter, rows: Rows) -> None:
        super().__init__()
        self.ssf_shift = shift
        self.rows = rows

    def effective(self, tensor: Tensor) -> Tensor:
        """The shifted bias."""
        return tensor + self.rows.spread(self.ssf_shift, 0.0)

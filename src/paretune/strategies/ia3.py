"""(IA)³: learned scales on keys, values and the hidden units of the MLP (Liu et al. 2022, https://arxiv.org/abs/2205.05638).

Their equations: softmax(Q (l_k ⊙ K)ᵀ / sqrt(d_k)) (l_v ⊙ V), and (l_ff ⊙ γ(W_1 x)) W_2. A scale of a layer's
outputs is one of the rows of its weight and bias, a scale of its inputs one of the columns of its weight: all of it merges.
"""

import re
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from paretune.backbones.sites import candidates
from paretune.strategies.mechanics.base import Anatomy, Strategy, holders, parameter_names, plain_tensor
from paretune.strategies.mechanics.frozen import frozen_linear, scaled_linear
from paretune.strategies.mechanics.keeping import KeptDelta
from paretune.strategies.mechanics.roles import FUSED, ROLES, Rows, match_layer, matrices, own_name


@dataclass(frozen=True)
class IA3(Strategy):
    """Train one scale for each key, value and hidden unit, and for each channel of a convolution.

    Args:
        targets: what is scaled. ``"k"`` and ``"v"``, and ``"q"``, ``"o"``, ``"fc1"`` likewise: outputs of these projections;
            ``"hidden"``: inputs of the second layer of each MLP; ``"channels"``: outputs of the convolutions, those that cut
            the image or a map into patches excepted; glob patterns of full names: outputs of these layers. ``"all"``: keys,
            values, hidden units and channels, as far as there are any. A bias is scaled with the outputs, unless the
            model keeps it apart from the layer (BEiT, EVA-02). Layers that share one weight share its scales.
    """

    _: KW_ONLY
    targets: tuple[str, ...] = ("all",)

    learning_rate: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.targets  # a single name or a list does as well
        object.__setattr__(self, "targets", (given,) if isinstance(given, str) else tuple(given))
        if not self.targets:
            raise ValueError("targets is empty; name layers, or use LinearProbe() to train only the head")

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Parametrize the targeted weights and their biases.

        Raises:
            ValueError: a target matches no layer, or what follows it undoes any scale.
        """
        layers, places = matrices(module, anatomy.head), holders(module)
        scales: dict[int, nn.Parameter] = {}  # by the weight that is scaled
        done: dict[int, list[tuple[nn.Parameter, Rows | None]]] = {}  # by the tensor
        new: list[IA3Delta] = []
        for name, rows in self._matches(module, anatomy).items():
            layer: Any = layers[name].layer
            weight = layers[name].weight
            self._check_scale_matters(name, layer, rows, module)
            size = weight.shape[1] if rows is None else rows.of(weight.shape[0])
            scale = scales.setdefault(id(weight), nn.Parameter(weight.new_ones(size)))
            tensor = layers[name].tensor
            scaled = {tensor: None} if rows is None else scaled_tensors(layer, tensor, rows)
            for tensor, its_rows in scaled.items():
                plain = plain_tensor(layer, tensor)
                shared = f"IA3: {name!r} shares its {tensor}"
                if is_scaled(done.setdefault(id(plain), []), scale, its_rows, shared):
                    continue  # a tied tensor, of another layer
                new.append(IA3Delta(scale, its_rows))
                for holder, attribute in places[id(plain)]:
                    new[-1].install(holder, attribute)
        return parameter_names(module, new)

    def _check_scale_matters(self, name: str, layer: Any, rows: Rows | None, module: nn.Module) -> None:
        """Raise where what follows would undo the scale, so that the parameter would train for nothing."""
        if rows is None:
            return
        parent = type(module.get_submodule(name.rpartition(".")[0])).__name__
        why = ""
        if is_standardised(layer) and not isinstance(getattr(layer, "gain", None), nn.Parameter):
            why = f"{type(layer).__name__} standardises its weight"
        elif "XCA" in parent and len(rows.parts) == 3 and any(rows.parts[:2]):
            why = f"{parent} normalises each channel of the queries and keys"
        elif isinstance(layer, nn.Conv2d) and any(self.follows(module).values()):
            why = "with bn='adapt' the batch norms normalise each channel while training"
        if why:
            raise ValueError(
                f"IA3: a scale of the outputs of {name!r} has no effect, because {why}; name others with targets=, such as "
                "('v', 'hidden'), or use NormTune()"
            )

    def _matches(self, module: nn.Module, anatomy: Anatomy) -> dict[str, Rows | None]:
        """Each targeted layer with the rows to scale, or None where its inputs are scaled."""
        layers = {name: matrix.layer for name, matrix in matrices(module, anatomy.head).items()}
        rows_of: dict[str, Rows | None] = {}
        for target in self.targets:
            hits: dict[str, Rows | None] = {}
            for part in ("k", "v", "hidden", "channels") if target == "all" else (target,):
                for name, rows in _matching(part, layers, module).items():
                    if part == "channels" and name in hits:
                        continue  # "all": a convolution that has its scales already
                    hits[name] = _joined(name, rows, hits[name]) if name in hits else rows
            if not hits:
                raise ValueError(
                    f"IA3: target {target!r} matches no Linear or Conv2d layer outside the head {anatomy.head!r}; use "
                    f"'all', 'hidden', 'channels', a role of {', '.join(ROLES)} or a pattern; {candidates(module)}"
                )
            for name, rows in hits.items():
                rows_of[name] = _joined(name, rows, rows_of[name]) if name in rows_of else rows
        chosen = self.select(module, anatomy)
        kept = {name: rows_of[name] for name in layers if name in rows_of and chosen(name)}
        if not kept:
            raise ValueError(
                f"IA3: none of the layers that targets={self.targets!r} means lies in where={self.where!r}"
            )
        return kept


def _matching(part: str, layers: dict[str, Any], module: nn.Module) -> dict[str, Rows | None]:
    if part == "hidden":
        return {name: None for name, layer in layers.items() if _follows_hidden_units(name, layer, module)}
    if part == "channels":
        return {
            name: Rows()
            for name, layer in layers.items()
            if isinstance(layer, nn.Conv2d) and not _cuts(layer)
        }
    matched = {name: match_layer(part, name, layer, module) for name, layer in layers.items()}
    return {name: rows for name, rows in matched.items() if rows is not None}


def _joined(name: str, rows: Rows | None, other: Rows | None) -> Rows | None:
    if rows is None and other is None:
        return None
    if rows is None or other is None or len(rows.parts) != len(other.parts):
        raise ValueError(f"IA3: the targets name {name!r} in two ways; leave one out")
    return rows | other


def _follows_hidden_units(name: str, layer: Any, module: nn.Module) -> bool:
    """Whether ``layer`` is the second of an MLP; the gates of squeeze-and-excitation have layers of these names too."""
    parent = module.get_submodule(name.rpartition(".")[0])
    gate = re.search(r"SE|Squeeze|Attn", type(parent).__name__)
    return own_name(name, module) in ROLES["fc2"] and not gate and getattr(layer, "groups", 1) == 1


def _cuts(conv: nn.Conv2d) -> bool:
    """Whether the windows do not overlap and the map shrinks: patch embeddings and downsampling."""
    pairs = list(zip(conv.kernel_size, conv.stride, strict=True))
    return all(size <= stride for size, stride in pairs) and any(stride > 1 for _, stride in pairs)


def scaled_tensors(layer: nn.Module, weight: str, rows: Rows) -> dict[str, Rows]:
    """What a scale of rows of ``weight`` multiplies in ``layer``, its bias included, and which rows of it."""
    bias = "bias" if weight == "weight" else "in_proj_bias"
    of_bias = rows
    if weight not in ("weight", "in_proj_weight"):  # of three weights with one bias
        of_bias = Rows(tuple(weight == f"{part}_proj_weight" for part in FUSED["in_proj_weight"]))
    tensors = {"gain" if is_standardised(layer) else weight: rows}
    return tensors if getattr(layer, bias, None) is None else tensors | {bias: of_bias}


def is_scaled(
    before: list[tuple[nn.Parameter, Rows | None]], scale: nn.Parameter, rows: Rows | None, shared: str
) -> bool:
    """Whether ``scale`` has scaled these rows of a tensor already; if not, they are noted ``before`` the next.

    Raises:
        ValueError: another scale has; the message begins with what is ``shared``.
    """
    if any(earlier is scale and of == rows for earlier, of in before):
        return True
    if any(earlier is scale or _overlap(rows, of) for earlier, of in before):
        raise ValueError(
            f"{shared} with another layer, which is scaled in another way; leave one out with where=, or give each its own"
        )
    before.append((scale, rows))
    return False


def _overlap(rows: Rows | None, other: Rows | None) -> bool:
    return rows is None or other is None or any(a and b for a, b in zip(rows.parts, other.parts, strict=True))


def is_standardised(layer: nn.Module) -> bool:
    """Whether ``layer`` standardises its weight, which undoes any scale of it; its gain is then what can be scaled."""
    return re.search(r"Std|Standard", type(layer).__name__) is not None


class IA3Delta(KeptDelta):
    """A weight, bias or gain whose rows are scaled; or with ``rows`` None, a weight whose columns are.

    Shape of ``ia3_l``: (number of scaled rows or columns,). The deltas of a layer's weight and bias share it.
    """

    def __init__(self, scale: nn.Parameter, rows: Rows | None) -> None:
        super().__init__()
        self.ia3_l = scale
        self.rows = rows

    def effective(self, tensor: Tensor) -> Tensor:
        """The scaled tensor, of the same shape and strides."""
        if self.rows is None:
            scale = self.ia3_l.view(1, -1, *[1] * (tensor.ndim - 2))
        else:
            scale = self.rows.spread(self.ia3_l, 1.0).view(-1, *[1] * (tensor.ndim - 1))
        return tensor.clone().mul_(scale)

    def linear(self, layer: Any, inputs: Tensor) -> Tensor:
        """(x ⊙ l) Wᵀ + b, or (x Wᵀ) ⊙ l + b with the bias that the layer has now, which is scaled too."""
        weight = layer.parametrizations["weight"].original
        if self.rows is None:
            return frozen_linear(inputs * self.ia3_l, weight, layer.bias)
        return scaled_linear(inputs, weight, self.rows.spread(self.ia3_l, 1.0), layer.bias)

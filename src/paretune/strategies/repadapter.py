"""RepAdapter: a linear adapter in front of attention and MLP that the weights behind it hold.

Luo et al. 2023 (https://arxiv.org/abs/2302.08106): f(x) = x + s · φ_u(φ_d(x)), with φ_d(x) = A x + a and φ_u(z) = B z + b,
where B maps each group of hidden units to a group of channels. A layer W y + c that reads y = f(x) is the layer
(W + s W B A) x + (c + s W (B a + b)): that is how it is computed here, so that all of it merges.
"""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.backbones.backbone import inside
from paretune.backbones.sites import candidates, first_of
from paretune.strategies.mechanics.base import (
    Anatomy,
    Delta,
    Strategy,
    holders,
    parameter_names,
    plain_tensor,
)
from paretune.strategies.mechanics.frozen import frozen_linear
from paretune.strategies.mechanics.keeping import KeptDelta
from paretune.strategies.mechanics.roles import FUSED, ROLES, Matrix, matrices, own_name
from paretune.strategies.mechanics.trial import show_an_image

# Last names of the layers that read the input of an attention or of an MLP; a gated MLP has two.
_READERS = {
    "attention": {*FUSED, *ROLES["q"], *ROLES["k"], *ROLES["v"], "qkv_proj"},
    "mlp": {*ROLES["fc1"], "fc1_g", "fc1_x", "w12", "weights_in", "gate_proj"},
}


@dataclass(frozen=True)
class RepAdapter(Strategy):
    """Train a linear bottleneck in front of each attention and each MLP, behind the norm; it merges exactly.

    Layers that read the same input (queries, keys and values, fused or not) share one adapter. Where one of them has no bias
    of its own (BEiT, EVA-02), the adapter has no constants: a = b = 0. In front of convolutions, and of what mixes tokens
    without attention, there is none. A is drawn as by Glorot and Bengio (uniform), all else starts at zero, so that the
    start is the base. A dropout of 0.1 of the hidden units while training, which the authors' code also has, is left out.

    Args:
        hidden: number of hidden units; ``groups`` must divide it.
        groups: of ``up``; it must divide the width.
        scale: s, above 0. The authors choose it for each task, from 0.1 to 10.
    """

    _: KW_ONLY
    hidden: int = 8
    groups: int = 2
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden % self.groups:
            raise ValueError(f"groups={self.groups} does not divide hidden={self.hidden}")
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Parametrize the weights and biases of the layers that read the input of a branch.

        Raises:
            ValueError: ``where`` holds no attention or MLP whose first layers are known, or one of which these are not all
                that reads its input, or share a tensor with layers that read another one.
        """
        branches = self._branches(module, anatomy)
        maps = {body: self._map(body, readers) for body, readers in branches.items()}
        with torch.no_grad():  # values by which a difference would show
            for parameter in _fresh(maps.values()):
                parameter.normal_(std=0.3)
        expected = _outputs(module, anatomy, maps, before=True)
        places = holders(module)
        for body, readers in branches.items():
            _install(maps[body], readers, places)
        outputs = _outputs(module, anatomy, maps, before=False)
        for body in expected:
            if not all(map(_close, outputs[body], expected[body])):
                raise ValueError(
                    f"RepAdapter: the first layers of a branch of {type(module).__name__} cannot hold an adapter of its "
                    f"input, with which it does more; {body!r}, of which they are {', '.join(branches[body])}; leave it out "
                    "with where="
                )
        for parameter in _fresh(maps.values()):
            nn.init.zeros_(parameter)
        return parameter_names(module, maps.values())

    def _branches(self, module: nn.Module, anatomy: Anatomy) -> dict[str, dict[str, Matrix]]:
        """For each attention and MLP in ``where``, by name: the layers that read its input, by theirs."""
        chosen, layers = self.select(module, anatomy), matrices(module, anatomy.head)
        branches: dict[str, dict[str, Matrix]] = {}
        for site in anatomy.sites:
            of_body = {
                name: matrix for name, matrix in layers.items() if site.body and inside(name, site.body)
            }
            last = _READERS["attention" if site.branch == "attention" else "mlp"]
            readers = {name: matrix for name, matrix in of_body.items() if own_name(name, module) in last}
            if readers:
                if any(map(chosen, readers)):
                    branches[site.body] = readers
            elif chosen.site(site) and (of_body or (site.branch == "mlp" and not site.body)):
                raise ValueError(
                    f"RepAdapter: which layers read the input of the {site.branch} branch that ends at {site.module!r} is "
                    "not known; leave it out with where="
                )
        if not branches:
            raise ValueError(
                f"RepAdapter: no attention or MLP is known in {type(module).__name__} in where={self.where!r}; "
                f"{candidates(module)}"
            )
        return branches

    def _map(self, body: str, readers: Mapping[str, Matrix]) -> "RepMap":
        widths = {matrix.weight.shape[1] for matrix in readers.values()}
        odd = [name for name, matrix in readers.items() if not _is_pointwise(matrix.layer)]
        if odd or len(widths) > 1:
            what = f"{odd[0]!r} is no 1×1 convolution" if odd else f"they read {sorted(widths)} channels"
            raise ValueError(
                f"RepAdapter: {', '.join(readers)} cannot hold an adapter of the input of {body!r}: {what}; leave it out "
                "with where="
            )
        width = widths.pop()
        if width % self.groups:
            raise ValueError(
                f"RepAdapter: groups={self.groups} does not divide the width {width} of the input of {body!r}"
            )
        first = next(iter(readers.values()))
        axis = 1 if isinstance(first.layer, nn.Conv2d) else -1
        constants = all(isinstance(_bias(matrix)[1], nn.Parameter) for matrix in readers.values())
        return RepMap(self, width, axis, first.weight, constants=constants)


def _is_pointwise(layer: Any) -> bool:
    return not isinstance(layer, nn.Conv2d) or (
        layer.kernel_size == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
    )


def _bias(matrix: Matrix) -> tuple[str, Tensor | None]:
    """Name and plain values of the bias of a layer."""
    name = "in_proj_bias" if matrix.tensor == "in_proj_weight" else "bias"
    return name, plain_tensor(matrix.layer, name)


def _fresh(maps: Iterable["RepMap"]) -> list[nn.Parameter]:
    """What starts at zero."""
    return [parameter for rep in maps for name, parameter in rep.named_parameters() if name != "rep_down"]


def _install(rep: "RepMap", readers: Mapping[str, Matrix], places: Mapping[int, Any]) -> None:
    """Let the layers that read one input hold ``rep``."""
    tensors: dict[int, nn.Parameter] = {}  # the weight by which a tensor has been changed
    layers = {reader.layer for reader in readers.values()}
    for name, matrix in readers.items():
        weight = matrix.weight
        bias_name, bias = _bias(matrix)
        lists: Any = getattr(matrix.layer, "parametrizations", {})
        earlier = list(lists[matrix.tensor]) if matrix.tensor in lists else []
        if tensors.get(id(weight)) is not None:
            earlier = earlier[:-1]  # the last one is of another layer of the same weight
        deltas: list[tuple[str, Any, Delta]] = [(matrix.tensor, weight, RepWeight(rep))]
        if hasattr(rep, "rep_up_bias"):
            deltas.append((bias_name, bias, RepBias(rep, weight, earlier)))
        for tensor, plain, delta in deltas:
            if (
                any(layer not in layers for layer, _ in places[id(plain)])
                or tensors.get(id(plain), weight) is not weight
            ):
                raise ValueError(
                    f"RepAdapter: {name!r} shares its {tensor} with a layer that would need another adapter; give it its "
                    f"own: layer.{tensor} = torch.nn.Parameter(layer.{tensor}.detach().clone())"
                )
            if id(plain) not in tensors:
                tensors[id(plain)] = weight
                for layer, attribute in places[id(plain)]:
                    delta.install(layer, attribute)


def _outputs(
    module: nn.Module, anatomy: Anatomy, maps: Mapping[str, "RepMap"], *, before: bool
) -> dict[str, list[Tensor]]:
    """What each branch makes of one image, in the order in which they run; of its mapped input if ``before``.

    Nothing for a model without values, or whose image size is unknown: there the structure alone counts.

    Raises:
        ValueError: the model does not run.
    """
    outputs: dict[str, list[Tensor]] = {}
    if anatomy.image_size is None or next(module.parameters()).is_meta:
        return outputs
    hooks = []
    for body, rep in maps.items():
        part = module.get_submodule(body)
        hooks.append(
            part.register_forward_hook(
                lambda _module, _args, output, body=body: outputs.setdefault(body, []).append(
                    first_of(output)
                )
            )
        )
        if before:
            hooks.append(part.register_forward_pre_hook(rep.in_front, with_kwargs=True))
    show_an_image(module, anatomy, hooks, "RepAdapter", "by which the merged weights are tried")
    return outputs


def _close(output: Tensor, expected: Tensor) -> bool:
    slack = torch.finfo(expected.dtype).eps ** 0.5
    atol = slack * float(expected.abs().max())
    return torch.allclose(output, expected, rtol=slack, atol=atol, equal_nan=True)


class RepMap(nn.Module):
    """x + s (B (A x + a) + b), over the channel axis of x.

    Shapes, for width w and h hidden units in g groups: ``rep_down`` (h, w), ``rep_up`` (w, h / g), the blocks of B one below
    the other; with constants ``rep_down_bias`` (h,) and ``rep_up_bias`` (w,).
    """

    def __init__(self, strategy: RepAdapter, width: int, axis: int, like: Tensor, *, constants: bool) -> None:
        super().__init__()
        self.axis = axis
        self.groups, self.scale = strategy.groups, strategy.scale
        self.rep_down = nn.Parameter(like.new_empty(strategy.hidden, width))
        nn.init.xavier_uniform_(self.rep_down)
        self.rep_up = nn.Parameter(like.new_zeros(width, strategy.hidden // strategy.groups))
        if constants:
            self.rep_down_bias = nn.Parameter(like.new_zeros(strategy.hidden))
            self.rep_up_bias = nn.Parameter(like.new_zeros(width))

    def in_front(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: the first argument, mapped wherever it is given."""
        given = first_of((*args, *kwargs.values()))
        mapped = self(given)
        args = tuple(mapped if value is given else value for value in args)
        return args, {name: mapped if value is given else value for name, value in kwargs.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        x = x.movedim(self.axis, -1)
        hidden = F.linear(x, self.rep_down, getattr(self, "rep_down_bias", None))
        change = F.linear(hidden, _dense(self.rep_up, self.groups), getattr(self, "rep_up_bias", None))
        return (x + self.scale * change).movedim(-1, self.axis)


def _dense(up: Tensor, groups: int) -> Tensor:
    """B (width, hidden)."""
    dense: Tensor = torch.block_diag(*up.view(groups, -1, up.shape[1]))  # type: ignore[no-untyped-call]
    return dense


class RepWeight(KeptDelta):
    """W + s W B A, of a weight whose fan-in is the width of the adapter."""

    def __init__(self, rep: RepMap) -> None:
        super().__init__()
        self.groups, self.scale = rep.groups, rep.scale
        self.rep_down, self.rep_up = rep.rep_down, rep.rep_up

    def effective(self, weight: Tensor) -> Tensor:
        """Effective weight, of the shape of ``weight``."""
        through = weight.flatten(1) @ _dense(self.rep_up, self.groups)
        if weight.ndim == 2:
            return torch.addmm(weight, through, self.rep_down, alpha=self.scale)
        return weight.clone().add_(
            (through @ self.rep_down).view_as(weight), alpha=self.scale
        )  # keeps the strides

    def linear(self, layer: Any, inputs: Tensor) -> Tensor:
        """(x + s B A x) Wᵀ + the bias that the layer has now."""
        change = F.linear(F.linear(inputs, self.rep_down), _dense(self.rep_up, self.groups))
        mapped = torch.add(inputs, change, alpha=self.scale)
        return frozen_linear(mapped, layer.parametrizations["weight"].original, layer.bias)


class RepBias(Delta):
    """c + s W (B a + b). W is the base's, changed by what changes it before the adapter does."""

    def __init__(self, rep: RepMap, weight: nn.Parameter, earlier: Iterable[nn.Module]) -> None:
        super().__init__()
        self.groups, self.scale = rep.groups, rep.scale
        self.rep_up, self.rep_up_bias, self.rep_down_bias = rep.rep_up, rep.rep_up_bias, rep.rep_down_bias
        self.weight = weight
        self.earlier = nn.ModuleList(earlier)

    def forward(self, bias: Tensor) -> Tensor:
        """Parametrization: the effective bias."""
        weight: Tensor = self.weight
        for delta in self.earlier:
            weight = delta(weight)
        shift = torch.mv(_dense(self.rep_up, self.groups), self.rep_down_bias) + self.rep_up_bias
        return torch.addmv(bias, weight.flatten(1), shift, alpha=self.scale)

"""What a strategy is, and the two ways it may change a model: a delta on a weight, or a module at a site."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from paretune._values import Value, check_choices
from paretune.backbones.backbone import Backbone
from paretune.backbones.modes import batch_norms, modes_kept
from paretune.backbones.sites import Site
from paretune.data.sizes import ImageSize
from paretune.strategies.mechanics.scores import Attacker, Examples
from paretune.strategies.mechanics.selection import EVERYWHERE, Selection, check_where


@dataclass(frozen=True)
class Anatomy:
    """What a strategy is told about the model it adapts.

    Args:
        head: dotted name of the classifier.
        sites: ends of the residual branches.
        image_size: in pixels, the side of a square, or (height, width); None if unknown.
        channels: of an image.
    """

    head: str
    sites: tuple[Site, ...]
    image_size: ImageSize | None = None
    channels: int = 3


@dataclass(frozen=True)
class Strategy(Value, ABC):
    """A way to fine-tune: which parameters train, and what is added to the model.

    Two strategies add up to one that does both: ``LoRA(rank=4) + BitFit()``.

    Args:
        bn: ``"frozen"`` keeps the running statistics of batch norms as pretrained; ``"adapt"`` lets them follow
            training and saves them with the adapter.
        where: the part of the model to act on; one entry or several, of which each adds to it. ``"all"``,
            ``"attention"`` or ``"mlp"`` (parts of the residual branches), ``"last:4"`` or ``"first:2"`` (so many
            residual blocks), or glob patterns of full names such as ``"blocks.10.*"``. ``&`` joins conditions that must
            hold together: ``"last:4 & attention"``. The head trains in any case. A tensor that several layers share changes
            in all of them as soon as one of them is meant.
    """

    _: KW_ONLY
    bn: Literal["frozen", "adapt"] = "frozen"
    where: tuple[str, ...] = EVERYWHERE

    why_not_mergeable: ClassVar[str] = ""
    why_everywhere: ClassVar[str] = ""  # why ``where`` has no meaning; empty where it has one
    why_alone: ClassVar[str] = ""  # why it can be no part of a union
    needs_values: ClassVar[bool] = False  # whether it can only be put on a model whose tensors have values
    learning_rate: ClassVar[float] = 2e-3  # peak rate of AdamW when the user gives none

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(field.name, field.type, getattr(self, field.name))
        check_choices(self)
        object.__setattr__(self, "where", check_where(self.where))
        if self.why_everywhere and self.where != EVERYWHERE:
            raise ValueError(f"{type(self).__name__} takes no where={self.where!r}: {self.why_everywhere}")

    def __add__(self, other: "Strategy") -> "Strategy":
        """Both strategies on one model."""
        return Union((self, other)) if isinstance(other, Strategy) else NotImplemented

    def select(self, module: nn.Module, anatomy: Anatomy) -> Selection:
        """What ``where`` means in ``module``."""
        return Selection(self.where, module, anatomy.sites)

    def try_on(self, module: nn.Module, anatomy: Anatomy) -> None:  # most have nothing to try
        """Raise ValueError if a fresh adapter would not train well on ``module``, which stays as it is.

        Called before a model is adapted, but not for one that is loaded: how that started does not matter.
        """

    def chosen_on(
        self,
        backbone: Backbone,
        data: Examples | None = None,
        *,
        attack: Attacker | None = None,
        seed: int = 0,
    ) -> Self:
        """What is put on ``backbone``: a strategy that chooses by data, once it has; any other, itself."""
        return self

    def stored_in(self, tensors: Mapping[str, Tensor]) -> Self:
        """What has these ``tensors`` in an adapter file: a strategy that has chosen what they show; any other, itself."""
        return self

    def follows(self, module: nn.Module) -> dict[str, bool]:
        """The batch norms of ``module`` by name, and whether the running statistics of each follow training."""
        return dict.fromkeys(batch_norms(module), self.bn == "adapt")

    @abstractmethod
    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Add what the strategy adds and return the names of the parameters to train; the head comes on top."""


@dataclass(frozen=True)
class Union(Strategy):
    """What each of ``strategies`` adds and trains; made by adding strategies up.

    A weight that several of them change is changed by one after the other, in this order.

    Args:
        strategies: two or more. They must agree on ``bn``, which is that of the union.
    """

    strategies: tuple[Strategy, ...]

    why_everywhere = "each strategy of a union has its own"

    def __post_init__(self) -> None:
        flat: list[Strategy] = []
        for part in self.strategies:
            if not isinstance(part, Strategy):
                raise TypeError(f"a union is made of strategies, got {part!r}")
            flat += part.strategies if isinstance(part, Union) else (part,)
        policies = {part.bn for part in flat} | ({self.bn} - {"frozen"})
        if len(flat) < 2:
            raise ValueError(f"a union needs two strategies or more, got {self.strategies!r}")
        if len(policies) > 1:
            raise ValueError(
                f"the strategies of {' + '.join(map(repr, flat))} must agree on bn; give each of them bn='adapt'"
            )
        alone = [part for part in flat if part.why_alone]
        if alone:
            raise ValueError(f"{type(alone[0]).__name__} cannot be part of a union: {alone[0].why_alone}")
        derived: dict[str, Any] = {
            "strategies": tuple(flat),
            "bn": policies.pop(),
            # The most careful of the peak rates, because one optimizer moves them all.
            "learning_rate": min(part.learning_rate for part in flat),
            "why_not_mergeable": "; ".join(
                f"{type(part).__name__}: {part.why_not_mergeable}" for part in flat if part.why_not_mergeable
            ),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.strategies))

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Install each in turn."""
        # By identity, because a later strategy may move a parameter that an earlier one trains to another name.
        chosen: set[nn.Parameter] = set()
        for part in self.strategies:
            names = part.install(module, anatomy)
            parameters = dict(module.named_parameters(remove_duplicate=False))
            chosen |= {parameters[name] for name in names}
        return [name for name, parameter in module.named_parameters() if parameter in chosen]


def _check_number(name: str, kind: Any, value: Any) -> None:
    """Raise unless ``value`` is the number that a field of this ``kind``, ``int`` or ``float``, holds.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or not whole where it must be.
    """
    optional = kind in (int | None, float | None) and value is None
    if kind not in (int, float, int | None, float | None) or optional:
        return
    whole = kind in (int, int | None)
    told = f"{name} must be a {'whole' if whole else 'finite'} number, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(told)
    if not math.isfinite(value) or (whole and value % 1):
        raise ValueError(told)


class Delta(nn.Module):
    """A parametrization: the effective weight (or bias) is a function of the frozen one and of our parameters.

    Any code that reads ``layer.weight`` sees the effective weight, so it holds for layers whose parent never calls
    their ``forward`` (timm's BEiT, EVA-02, Swin-v2) and for weight-standardised convolutions. Several deltas on one
    tensor apply one after the other. A tensor that several layers share has one delta, which all of them carry.
    """

    def install(self, layer: nn.Module, tensor: str = "weight") -> None:
        """Parametrize ``layer.weight``, or another parameter of the layer.

        Raises:
            ValueError: ``layer`` has parametrizations of another kind already, or the tensor is no parameter.
        """
        fresh = not parametrize.is_parametrized(layer)
        foreign = not fresh and next(Delta.carriers(layer), None) is None
        if foreign or isinstance(layer, parametrize.ParametrizationList):
            raise ValueError(
                f"{type(layer).__name__} has parametrizations of its own; remove them before adapting"
            )
        if tensor in layer._buffers or plain_tensor(layer, tensor) is None:
            raise ValueError(
                f"{tensor!r} of a {type(layer).__name__} is no parameter of it; make it one before adapting"
            )
        order = tuple(layer._parameters)
        is_linear = type(layer).forward is nn.Linear.forward
        # unsafe=True skips torch's trial run of the parametrization, which needs no checking here.
        parametrize.register_parametrization(layer, tensor, self, unsafe=True)
        if fresh:
            layer.parametrizations.order = order  # type: ignore[union-attr]  # it takes any attribute
        # Of the class that parametrization has just made, which goes when the delta does. torch's own refuses to be pickled.
        type(layer).__reduce_ex__ = _reduce  # type: ignore[assignment]
        if is_linear:
            type(layer).forward = _forward_of_linear

    def linear(self, layer: Any, inputs: Tensor) -> Tensor | None:
        """What ``layer``, an nn.Linear, makes of ``inputs`` where this delta alone changes its weight, without making that.

        In training the gradient then reaches the delta without one of the whole weight, and no effective weight is kept for
        it. None: there is no shorter way.
        """
        return None

    def change_squared(self, tensor: Tensor) -> Tensor | None:
        """The sum of the squares of what it changes ``tensor`` by, without making that; without dropout, float32 at least.

        None: there is no shorter way.
        """
        return None

    @staticmethod
    def merge(module: nn.Module) -> None:
        """Write the effective tensors of ``module`` into the plain ones, each once; :meth:`remove` must follow.

        Biases come first, because a delta of a bias may read the plain weight (RepAdapter).
        """
        lists: list[Any] = [layer.parametrizations for _, layer in Delta.carriers(module)]
        tensors = {id(part.original): part for layer in lists for part in layer.values()}
        with torch.no_grad():
            for parametrized in sorted(tensors.values(), key=lambda part: part.original.ndim):
                with modes_kept(parametrized):
                    parametrized.eval()  # without dropout
                    parametrized.original.copy_(parametrized())

    @staticmethod
    def remove(layer: nn.Module) -> None:
        """Undo :meth:`install`.

        Not through torch's ``remove_parametrizations``: a deep copy shares its class with the original, and that
        function deletes ``weight`` from the class, which breaks the other one. The parameters also keep their places.
        """
        lists: Any = layer.parametrizations
        originals = {name: parametrized.original for name, parametrized in lists.items()}
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer._modules["parametrizations"]
        layer._parameters = {name: originals.get(name, layer._parameters.get(name)) for name in lists.order}

    @staticmethod
    def originals(module: nn.Module) -> list[Tensor]:
        """The tensors of ``module`` beneath deltas, once for each layer that carries them."""
        lists: list[Any] = [layer.parametrizations for _, layer in Delta.carriers(module)]
        return [parametrized.original for tensors in lists for parametrized in tensors.values()]

    @staticmethod
    def settings(module: nn.Module) -> dict[str, Tensor]:
        """The buffers of the deltas on ``module``, by name: what they need beside what trains, and never changes."""
        deltas = [part for part in module.modules() if isinstance(part, Delta)]
        buffers = {id(buffer) for delta in deltas for buffer in delta.buffers()}
        return {name: buffer for name, buffer in module.named_buffers() if id(buffer) in buffers}

    @staticmethod
    def carriers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Names and layers of ``module`` that carry a delta."""
        for name, layer in list(module.named_modules()):
            if parametrize.is_parametrized(layer):
                lists: Any = layer.parametrizations
                if any(isinstance(lists[tensor][0], Delta) for tensor in lists):
                    yield name, layer


def _forward_of_linear(layer: Any, inputs: Tensor) -> Tensor:
    """``nn.Linear.forward``. In evaluation mode the logits stay those of the merged model to the last bit."""
    lists = layer.parametrizations
    alone = layer.training and "weight" in lists and len(lists["weight"]) == 1
    outputs: Tensor | None = lists["weight"][0].linear(layer, inputs) if alone else None
    return nn.functional.linear(inputs, layer.weight, layer.bias) if outputs is None else outputs


def _reduce(layer: nn.Module, _protocol: Any) -> tuple[Any, ...]:
    """How to pickle a layer that carries deltas: its own class, and what makes the class of parametrization of it again."""
    kind: Any = parametrize.type_before_parametrizations(layer)
    tensors = tuple(layer.parametrizations)  # type: ignore[arg-type]
    return _parametrized, (kind, tensors, vars(type(layer)).get("forward")), kind.__getstate__(layer)


def _parametrized(kind: type[nn.Module], tensors: tuple[str, ...], forward: Any) -> nn.Module:
    """An empty layer of the class that parametrization of ``tensors`` makes of ``kind``; unpickling then fills it."""
    layer = kind.__new__(kind)
    parametrize._inject_new_class(layer)
    for tensor in tensors:
        parametrize._inject_property(layer, tensor)
    type(layer).__reduce_ex__ = _reduce  # type: ignore[assignment]
    if forward is not None:
        type(layer).forward = forward
    return layer


class Inserted(nn.Module):
    """A module that changes a residual branch at a :class:`~paretune.backbones.sites.Site`.

    It is a child of the site's module (of the first layer in it, if that is a sequence of layers) and is called by a forward
    hook bound to itself, so the names of the base model's tensors stay as they are, and a deep copy of the model calls the
    copied module.
    """

    NAME: ClassVar[str] = "adapter"
    _hook: int  # torch's number of the hook that calls self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A process into which self is unpickled counts its hooks on from here, so that none takes the place of this one.
        RemovableHandle.next_id = max(RemovableHandle.next_id, self._hook + 1)

    def attach(self, module: nn.Module, site: Site) -> None:
        """Insert self at ``site`` of ``module``."""
        place = module.get_submodule(site.module)
        holder, name = place, self.NAME
        if _iterates(place):
            # It would run self as one more layer: the first of its layers holds self instead.
            holder = next((part for part in place.modules() if not _iterates(part)), place)
            name = f"{self.NAME}_around"
            if holder is place:
                raise ValueError(f"{site.module!r} is an empty {type(place).__name__}, which holds nothing")
        if hasattr(holder, name):
            raise ValueError(f"{site.module!r} has a {self.NAME} already; give each its own part with where=")
        holder.add_module(name, self)
        if site.edge == "input":
            self._hook = place.register_forward_pre_hook(self.change_input).id
        else:
            self._hook = place.register_forward_hook(self.change_output).id

    def change_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook."""
        return (self(args[0]), *args[1:])

    def change_output(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook. Of several outputs, as of an attention that returns its weights too, the first changes."""
        if not isinstance(output, tuple | list):
            return self.changed(args, output)
        changed = [self.changed(args, output[0]), *output[1:]]
        return output._make(changed) if hasattr(output, "_make") else type(output)(changed)

    def changed(self, _args: tuple[Any, ...], branch: Tensor) -> Tensor:
        """What becomes of ``branch``, the output of a module called with these arguments."""
        result: Tensor = self(branch)
        return result

    @staticmethod
    def detach_all(module: nn.Module, *, hooks_only: bool = False) -> Callable[[], None]:
        """Remove every inserted module and its hooks, or these alone; what is returned puts them back."""
        before: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        for place in list(module.modules()):
            for held in (
                place._forward_hooks,
                place._forward_pre_hooks,
                {} if hooks_only else place._modules,
            ):
                before.append((held, dict(held)))
                for key, value in before[-1][1].items():
                    if isinstance(value, Inserted) or isinstance(getattr(value, "__self__", None), Inserted):
                        del held[key]

        def put_back() -> None:
            for held, items in before:
                held.clear()
                held.update(items)

        return put_back


def _iterates(place: nn.Module) -> bool:
    """Whether ``place`` is made to be gone through, child after child, as nn.Sequential and the lists of torch are."""
    return hasattr(type(place), "__iter__")


def plain_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer ``name`` of ``layer`` itself, beneath the deltas that it may carry."""
    lists: Any = layer.parametrizations if parametrize.is_parametrized(layer) else {}
    if name in lists and isinstance(lists[name][0], Delta):
        original: Tensor = lists[name].original
        return original
    return layer._parameters.get(name, layer._buffers.get(name))


def holders(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """For each tensor in ``module``, by its ``id``: the layers that hold it (several if it is tied) and its names there.

    A layer that carries a delta counts, and not the parametrization in which torch keeps the tensor, nor the delta.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        kept = isinstance(part, parametrize.ParametrizationList) and isinstance(part[0], Delta)
        if kept or isinstance(part, Delta):
            continue
        lists: Any = part.parametrizations if parametrize.is_parametrized(part) else {}
        for name in (*part._parameters, *part._buffers, *lists):
            tensor = plain_tensor(part, name)
            if tensor is not None:
                places.setdefault(id(tensor), []).append((part, name))
    return places


def parameter_names(module: nn.Module, added: Iterable[nn.Module]) -> list[str]:
    """Names in ``module`` of the parameters of the modules ``added`` to it."""
    of_added = {id(parameter) for part in added for parameter in part.parameters()}
    return [name for name, parameter in module.named_parameters() if id(parameter) in of_added]


def base_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the model itself, without what strategies have added; a shared one has several."""
    added: set[nn.Module] = set()
    for name, part in module.named_modules(remove_duplicate=False):
        if part in added or isinstance(part, Inserted | parametrize.ParametrizationList):
            added |= set(part.children())
        else:
            yield name, part


def base_parameters(module: nn.Module) -> dict[str, str]:
    """Names of the parameters of the model itself, each with the name it had before any strategy."""
    names: dict[str, str] = {}
    for name, part in base_layers(module):
        keys = {key: key for key, _ in part.named_parameters(recurse=False)}
        lists: Any = part.parametrizations if parametrize.is_parametrized(part) else {}
        for key, parametrized in lists.items():
            if isinstance(parametrized[0], Delta):
                keys[f"parametrizations.{key}.original"] = key
            else:  # the model's own, such as a weight norm
                inner = [f"parametrizations.{key}.{last}" for last, _ in parametrized.named_parameters()]
                keys |= dict(zip(inner, inner, strict=True))
        names |= {f"{name}.{now}".lstrip("."): f"{name}.{was}".lstrip(".") for now, was in keys.items()}
    return names

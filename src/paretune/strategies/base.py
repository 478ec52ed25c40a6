"""What a strategy is, and the two ways it may change a model: a delta on a weight, or a module at a site."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from paretune._values import Value
from paretune.sites import Site
from paretune.strategies.selection import EVERYWHERE, Selection, check_where


@dataclass(frozen=True)
class Anatomy:
    """What a strategy is told about the model it adapts.

    Args:
        head: dotted name of the classifier.
        sites: ends of the residual branches.
        image_size: height and width in pixels; None if unknown.
        channels: of an image.
    """

    head: str
    sites: tuple[Site, ...]
    image_size: int | None = None
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
            hold together: ``"last:4 & attention"``. The head trains in any case.
    """

    _: KW_ONLY
    bn: Literal["frozen", "adapt"] = "frozen"
    where: tuple[str, ...] = EVERYWHERE

    why_not_mergeable: ClassVar[str] = ""
    why_everywhere: ClassVar[str] = ""  # why ``where`` has no meaning; empty where it has one
    why_alone: ClassVar[str] = ""  # why it can be no part of a union
    learning_rate: ClassVar[float] = 2e-3  # peak rate of AdamW when the user gives none

    def __post_init__(self) -> None:
        if self.bn not in ("frozen", "adapt"):
            raise ValueError(f"bn must be 'frozen' or 'adapt', got {self.bn!r}")
        object.__setattr__(self, "where", check_where(self.where))
        if self.why_everywhere and self.where != EVERYWHERE:
            raise ValueError(f"{type(self).__name__} takes no where={self.where!r}: {self.why_everywhere}")

    def __add__(self, other: "Strategy") -> "Strategy":
        """Both strategies on one model."""
        from paretune.strategies.union import Union

        return Union((self, other)) if isinstance(other, Strategy) else NotImplemented

    @property
    def starts_at_base(self) -> bool:
        """Whether a freshly adapted model has the logits of the model it was made from."""
        return True

    def select(self, module: nn.Module, anatomy: Anatomy) -> Selection:
        """What ``where`` means in ``module``."""
        return Selection(self.where, module, anatomy.sites)

    @abstractmethod
    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Add what the strategy adds and return the names of the parameters to train; the head comes on top."""


class Delta(nn.Module):
    """A parametrization: the effective weight (or bias) is a function of the frozen one and of our parameters.

    Any code that reads ``layer.weight`` sees the effective weight, so it holds for layers whose parent never calls
    their ``forward`` (timm's BEiT, EVA-02, Swin-v2) and for weight-standardised convolutions. Several deltas on one
    tensor apply one after the other.
    """

    _order: tuple[str, ...] = ()

    def install(self, layer: nn.Module, tensor: str = "weight") -> None:
        """Parametrize ``layer.weight``, or another tensor of the layer.

        Raises:
            ValueError: ``layer`` has parametrizations of another kind already.
        """
        if parametrize.is_parametrized(layer) and next(Delta.carriers(layer), None) is None:
            raise ValueError(
                f"{type(layer).__name__} has parametrizations of its own; remove them before adapting"
            )
        self._order = tuple(layer._parameters)
        # unsafe=True skips torch's trial run of the parametrization, which needs no checking here.
        parametrize.register_parametrization(layer, tensor, self, unsafe=True)
        # Of the class that parametrization has just made, which goes when the delta does. torch's own refuses to be pickled.
        type(layer).__reduce_ex__ = _reduce  # type: ignore[assignment]

    @staticmethod
    def remove(layer: nn.Module, *, merge: bool) -> None:
        """Undo :meth:`install`; with ``merge`` the effective tensors become the plain ones.

        Not through torch's ``remove_parametrizations``: a deep copy shares its class with the original, and that
        function deletes ``weight`` from the class, which breaks the other one. The parameters also keep their places.
        """
        lists: Any = layer.parametrizations
        originals = {name: parametrized.original for name, parametrized in lists.items()}
        # The delta that came first saw them all.
        order = max((delta._order for parametrized in lists.values() for delta in parametrized), key=len)
        if merge:
            with torch.no_grad():
                for name, original in originals.items():
                    original.copy_(getattr(layer, name))
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer._modules["parametrizations"]
        layer._parameters = {name: originals.get(name, layer._parameters.get(name)) for name in order}

    @staticmethod
    def carriers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Names and layers of ``module`` that carry a delta."""
        for name, layer in list(module.named_modules()):
            if parametrize.is_parametrized(layer):
                lists: Any = layer.parametrizations
                if any(isinstance(lists[tensor][0], Delta) for tensor in lists):
                    yield name, layer


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
    """A module that changes a residual branch at a :class:`~paretune.sites.Site`.

    It is a child of the site's module and is called by a forward hook bound to itself, so the names of the base
    model's tensors stay as they are, and a deep copy of the model calls the copied module.
    """

    NAME: ClassVar[str] = "adapter"
    _hook: int  # torch's number of the hook that calls self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A process into which self is unpickled counts its hooks on from here, so that none takes the place of this one.
        RemovableHandle.next_id = max(RemovableHandle.next_id, self._hook + 1)

    def attach(self, module: nn.Module, site: Site) -> str:
        """Insert self at ``site`` of ``module`` and return the dotted name it gets."""
        place = module.get_submodule(site.module)
        if hasattr(place, self.NAME):
            raise ValueError(f"{site.module!r} has a {self.NAME} already; give each its own part with where=")
        place.add_module(self.NAME, self)
        if site.edge == "input":
            self._hook = place.register_forward_pre_hook(self.change_input).id
        else:
            self._hook = place.register_forward_hook(self.change_output).id
        return f"{site.module}.{self.NAME}".lstrip(".")

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
        found: Tensor = self(branch)
        return found

    @staticmethod
    def detach_all(module: nn.Module) -> None:
        """Remove every inserted module and its hooks."""
        for place in list(module.modules()):
            for name, child in list(place.named_children()):
                if isinstance(child, Inserted):
                    delattr(place, name)
                    for hooks in (place._forward_hooks, place._forward_pre_hooks):
                        hooks.pop(child._hook, None)


def base_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the model itself, without what strategies have added."""
    added: set[nn.Module] = set()
    for name, part in module.named_modules():
        if part in added or isinstance(part, Inserted | parametrize.ParametrizationList):
            added |= set(part.children())
        else:
            yield name, part


def base_parameters(module: nn.Module) -> dict[str, str]:
    """Names of the parameters of the model itself, each with the name it had before any strategy."""
    found: dict[str, str] = {}
    for name, part in base_layers(module):
        own = {key: key for key, _ in part.named_parameters(recurse=False)}
        lists: Any = part.parametrizations if parametrize.is_parametrized(part) else {}
        for key, parametrized in lists.items():
            if isinstance(parametrized[0], Delta):
                own[f"parametrizations.{key}.original"] = key
            else:  # the model's own, such as a weight norm
                inner = [f"parametrizations.{key}.{own}" for own, _ in parametrized.named_parameters()]
                own |= dict(zip(inner, inner, strict=True))
        found |= {f"{name}.{now}".lstrip("."): f"{name}.{was}".lstrip(".") for now, was in own.items()}
    return found

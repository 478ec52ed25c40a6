"""What a strategy is, and the two ways it may change a model: a delta on a weight, or a module at a site."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paretune._values import Value
from paretune.sites import Site


@dataclass(frozen=True)
class Anatomy:
    """What a strategy is told about the model it adapts: the head's name and the residual sites."""

    head: str
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Strategy(Value, ABC):
    """A way to fine-tune: which parameters train, and what is added to the model.

    Args:
        bn: ``"frozen"`` keeps the running statistics of batch norms as pretrained; ``"adapt"`` lets them follow
            training and saves them with the adapter.
    """

    _: KW_ONLY
    bn: Literal["frozen", "adapt"] = "frozen"

    why_not_mergeable: ClassVar[str] = ""
    learning_rate: ClassVar[float] = 2e-3  # peak rate of AdamW when the user gives none

    def __post_init__(self) -> None:
        if self.bn not in ("frozen", "adapt"):
            raise ValueError(f"bn must be 'frozen' or 'adapt', got {self.bn!r}")

    @abstractmethod
    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Add what the strategy adds and return the names of the parameters to train; the head comes on top."""


class Delta(nn.Module):
    """A parametrization of ``weight``: the effective weight is a function of the frozen one and of our parameters.

    Any code that reads ``layer.weight`` sees the effective weight, so it holds for layers whose parent never calls
    their ``forward`` (timm's BEiT, EVA-02, Swin-v2) and for weight-standardised convolutions.
    """

    _order: tuple[str, ...] = ()

    def install(self, layer: nn.Module) -> None:
        """Parametrize ``layer.weight``.

        Raises:
            ValueError: ``layer`` has parametrizations already.
        """
        if parametrize.is_parametrized(layer):
            raise ValueError(
                f"{type(layer).__name__} has parametrizations of its own; remove them before adapting"
            )
        self._order = tuple(layer._parameters)
        # unsafe=True skips torch's trial run of the parametrization, which needs no checking here.
        parametrize.register_parametrization(layer, "weight", self, unsafe=True)

    @staticmethod
    def remove(layer: nn.Module, *, merge: bool) -> None:
        """Undo :meth:`install`; with ``merge`` the effective weight becomes the plain weight.

        Not through torch's ``remove_parametrizations``: a deep copy shares its class with the original, and that
        function deletes ``weight`` from the class, which breaks the other one. The parameter also keeps its place.
        """
        lists: Any = layer.parametrizations
        original, order = lists["weight"].original, lists["weight"][0]._order
        if merge:
            with torch.no_grad():
                original.copy_(layer.weight)
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer._modules["parametrizations"]
        layer._parameters = {
            name: original if name == "weight" else layer._parameters[name] for name in order
        }

    @staticmethod
    def carriers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Names and layers of ``module`` that carry a delta."""
        for name, layer in list(module.named_modules()):
            if parametrize.is_parametrized(layer, "weight") and isinstance(
                layer.parametrizations["weight"][0], Delta
            ):
                yield name, layer


class Inserted(nn.Module):
    """A module that changes a residual branch at a :class:`~paretune.sites.Site`.

    It is a child of the site's module and is called by a forward hook bound to itself, so the names of the base
    model's tensors stay as they are, and a deep copy of the model calls the copied module.
    """

    NAME: ClassVar[str] = "adapter"

    def attach(self, module: nn.Module, site: Site) -> str:
        """Insert self at ``site`` of ``module`` and return the dotted name it gets."""
        place = module.get_submodule(site.module)
        place.add_module(self.NAME, self)
        if site.edge == "input":
            place.register_forward_pre_hook(self.change_input)
        else:
            place.register_forward_hook(self.change_output)
        return f"{site.module}.{self.NAME}"

    def change_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook."""
        return (self(args[0]), *args[1:])

    def change_output(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook."""
        changed: Tensor = self(output)
        return changed

    @staticmethod
    def detach_all(module: nn.Module) -> None:
        """Remove every inserted module and its hooks."""
        for place in list(module.modules()):
            for name, child in list(place.named_children()):
                if isinstance(child, Inserted):
                    delattr(place, name)
                    for hooks in (place._forward_hooks, place._forward_pre_hooks):
                        for key in [
                            key for key, hook in hooks.items() if getattr(hook, "__self__", None) is child
                        ]:
                            del hooks[key]

"""Views: models that share the tensors of another and each carry an adapter of their own."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import type_before_parametrizations

from paretune.backbones.backbone import Backbone, logits_of, network_of
from paretune.backbones.random import borrowed_randomness
from paretune.strategies.mechanics.adapting import forget_adaptation, install, uninstall
from paretune.strategies.mechanics.base import Anatomy, Delta, Strategy
from paretune.strategies.mechanics.wrapped import wrapped_layers

Tensors = Mapping[str, Tensor]


def shared_copy(model: nn.Module) -> nn.Module:
    """A frozen copy of ``model`` in evaluation mode that has modules of its own and the tensors of the model.

    It is there to be given tensors by functional_call: a change of its own ones would pass by what autograd counts.
    """
    memo: dict[int, Any] = {id(buffer): buffer.data for buffer in model.buffers()}
    memo |= {id(tensor): nn.Parameter(tensor.data, requires_grad=False) for tensor in model.parameters()}
    return copy.deepcopy(model, memo).eval()


class View:
    """A model seen with another adapter than its own; the adapter's values are given at each call.

    Nothing is written to the model, so that many adapters stand on one backbone at once. A view itself makes one call at a
    time, see :class:`Views`.

    Args:
        model: a Backbone or a plain module; what it carries is not seen.
        strategy: of the adapters to be seen.
        anatomy: what the strategy is told about the model; None with ``strategy`` for a view of the base itself.
    """

    def __init__(self, model: nn.Module, strategy: Strategy | None, anatomy: Anatomy | None) -> None:
        self.strategy = strategy
        self.anatomy = anatomy
        self.model = shared_copy(model)
        if forget_adaptation(self.module) is not None:
            uninstall(self.module)
        base_names = {name: name for name in self.module.state_dict()}
        if strategy is not None and anatomy is not None:
            with borrowed_randomness():
                base_names = install(self.module, strategy, anatomy).base_names
            forget_adaptation(self.module)  # and its copies of the base, of which it holds another record
            self.model.eval().requires_grad_(False)
            for _, layer in Delta.carriers(self.module):
                for tensor in layer.parametrizations:  # type: ignore[union-attr]
                    _read_anew(type(layer), tensor)
        # Of tied tensors one name each.
        once = (*self.module.named_parameters(), *self.module.named_buffers())
        self.base_names = {name: base_names[name] for name, _ in once if name in base_names}
        first = {id(tensor): name for name, tensor in once}
        # Each layer once: of a layer that has two names, functional_call would put the tensors back wrongly.
        self._places = {
            f"{place}.{attribute}".lstrip("."): first[id(tensor)]
            for place, part in self.module.named_modules()
            for attribute, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None
        }

    @property
    def module(self) -> nn.Module:
        """The network, without the normalisation of a Backbone."""
        return network_of(self.model)

    def fits(self, strategy: Strategy | None, anatomy: Anatomy | None) -> bool:
        """Whether adapters of this strategy have the structure of this view."""
        return self.strategy == strategy and self.anatomy == anatomy

    def copied(self) -> "View":
        """Another view of the same tensors."""
        view = copy.copy(self)
        view.model = shared_copy(self.model)
        return view

    def __call__(self, images: Tensor, values: Tensors, base: Tensors) -> Tensor:
        """Logits (batch, classes) of ``images`` in evaluation mode.

        Args:
            images: as the model takes them.
            values: the adapter's tensors, under the names they have in the adapted module.
            base: the base's values under its own names, see :func:`base_state`.
        """
        # TinyViT and LeViT keep what they compute from parameters in evaluation mode, until training begins.
        self.model.train()
        self.model.eval()
        # Plain Linear layers compute the same in either mode, but in training by the factors, without effective weights.
        for _, layer in Delta.carriers(self.module):
            layer.training = type_before_parametrizations(layer) is nn.Linear
        prefix = "module." if isinstance(self.model, Backbone) else ""
        tensors = self._tensors(values, base, prefix)
        return logits_of(functional_call(self.model, tensors, (images,), tie_weights=False))

    def effective(self, values: Tensors, base: Tensors) -> dict[str, Tensor]:
        """What the adapter makes of the base's tensors: of those that it changes, under the base's names.

        Raises:
            ValueError: it wraps layers by peft, whose effect on the weights is peft's own.
        """
        if wrapped_layers(self.module):
            raise ValueError(
                f"{self.strategy!r} takes no part in combinations, because peft alone knows its weights; use paretune's own "
                "LoRA or IA3, or peft's add_weighted_adapter"
            )
        tensors = self._tensors(values, base, "module.")
        changed: dict[str, Tensor] = functional_call(_Effective(self.module), tensors, (), tie_weights=False)
        return {
            self.base_names[name]: value
            for name, value in (*values.items(), *changed.items())
            if name in self.base_names  # of a tied tensor one name
        }

    def _tensors(self, values: Tensors, base: Tensors, prefix: str) -> dict[str, Tensor]:
        like = next(self.module.parameters())
        tensors = {name: base[was] for name, was in self.base_names.items()} | {
            name: value.to(like if value.is_floating_point() else like.device)
            for name, value in values.items()
        }
        return {prefix + place: tensors[name] for place, name in self._places.items() if name in tensors}


class Views:
    """The views of one structure, as many as there are calls at once; arguments as for :class:`View`.

    Attributes:
        pattern: makes no calls, so that it can be copied at any time.
    """

    def __init__(self, model: nn.Module, strategy: Strategy | None, anatomy: Anatomy | None) -> None:
        self.pattern = View(model, strategy, anatomy)
        self.fits = self.pattern.fits
        self._idle: list[View] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[View]:
        """A view that nobody else calls meanwhile."""
        try:
            view = self._idle.pop()
        except IndexError:
            view = self.pattern.copied()
        try:
            yield view
        finally:
            self._idle.append(view)


def _read_anew(layer: type[nn.Module], tensor: str) -> None:
    """Pass by the cache of torch's ``parametrize.cached``, which knows the layer but not the tensors given to it."""

    def effective(self: Any) -> Tensor:
        weight: Tensor = self.parametrizations[tensor]()
        return weight

    setattr(layer, tensor, property(effective))


class _Effective(nn.Module):
    """Reads the effective tensors of ``module``, under the names of what they are made of; functional_call gives others."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @torch.no_grad()
    def forward(self) -> dict[str, Tensor]:
        return {
            f"{name}.parametrizations.{tensor}.original".lstrip("."): getattr(layer, tensor)
            for name, layer in Delta.carriers(self.module)
            for tensor in layer.parametrizations  # type: ignore[union-attr]
        }

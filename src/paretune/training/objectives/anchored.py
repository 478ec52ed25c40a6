"""What the anchors of weights share: the tensors that they hold in place, and how they enter a loss."""

import contextlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paretune.attacks import Attack
from paretune.backbones.backbone import Backbone
from paretune.backbones.modes import modes_kept
from paretune.data.images import ImageData
from paretune.strategies.mechanics.adapting import trainable_parameters
from paretune.strategies.mechanics.base import Delta
from paretune.strategies.mechanics.wrapped import wrapped_layers
from paretune.training.objectives.base import Objective, Term, TrainingBatch


class Anchor(Objective):
    """Base of the objectives that hold a model near another, and learn nothing alone."""

    @property
    def attack(self) -> Attack | None:
        """None."""
        return None

    @property
    def learns(self) -> bool:
        """It does not."""
        return False

    @abstractmethod
    def begin(self, model: Backbone, data: ImageData, seed: int) -> Term:
        """The objective at work; see :meth:`~paretune.training.Objective.begin`."""

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """Not of the value, which :meth:`begin` sets to work."""
        raise NotImplementedError("call begin() first")


class Penalty(Term):
    """What ``compute`` returns, whatever the batch; in float32 also in mixed precision."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute

    def loss(self, model: nn.Module, batch: TrainingBatch, attacked: Any) -> tuple[Tensor, Tensor | None]:
        """The same for each part of a batch, of which the loss is the mean."""
        with torch.autocast(batch.images.device.type, enabled=False):
            return self.compute(), None


class Anchored:
    """The tensors of a model outside its head that training changes, and their values at the start of training.

    Where a strategy changes a tensor of the pretrained network by parameters of its own, as LoRA does, the tensor is the one
    that the network computes with, W + s · B A, without dropout. Of what a strategy inserts into the network (bottlenecks,
    prompts) it is the inserted parameters.

    Args:
        model: adapted, as training begins.
        name: of the objective, for the error.

    Raises:
        ValueError: peft has wrapped layers of ``model``, whose effective weights are not to be had.
    """

    def __init__(self, model: Backbone, name: str) -> None:
        check_shown(model, name)
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}  # several where layers share one
        alone: dict[str, tuple[Delta, Tensor]] = {}
        names: dict[int, str] = {}
        beneath: set[int] = set()
        for place, layer in Delta.carriers(model.module):
            lists: Any = layer.parametrizations
            for tensor, deltas in lists.items():
                beneath |= {id(parameter) for parameter in deltas.parameters()}
                name = names.setdefault(id(deltas.original), f"{place}.{tensor}")
                self._places.setdefault(name, []).append((layer, tensor))
                if len(deltas) == 1 and not deltas.original.requires_grad:
                    alone[name] = deltas[0], deltas.original
        for name, parameter in trainable_parameters(model, head=False).items():
            if id(parameter) not in beneath:
                holder, _, tensor = name.rpartition(".")
                self._places[name] = [(model.module.get_submodule(holder), tensor)]
        self.start: dict[str, Tensor] = {}
        self._short: dict[str, tuple[Delta, Tensor]] = {}
        with torch.no_grad():
            for name in self._places:
                value, (delta, original) = self.now(name), alone.get(name, (None, None))
                if delta is not None and original is not None and torch.equal(value, original):
                    self.start[name], self._short[name] = original.detach(), (delta, original)
                else:
                    self.start[name] = value.detach().clone()

    def now(self, name: str) -> Tensor:
        """The tensor as it is now, with what autograd needs to reach what is trained."""
        layer, tensor = self._places[name][0]
        with contextlib.ExitStack() as modes:
            if parametrize.is_parametrized(layer, tensor):
                lists: Any = layer.parametrizations
                modes.enter_context(modes_kept(lists[tensor]))
                lists[tensor].eval()  # without dropout
            value: Tensor = getattr(layer, tensor)
        return value

    def in_use(self) -> dict[str, list[Tensor]]:
        """In evaluation mode within ``parametrize.cached()``: the very tensors that a pass computes with, of each layer."""
        return {name: [getattr(*place) for place in places] for name, places in self._places.items()}

    def distance(self) -> Tensor:
        """The sum of the squares of all changes."""
        total = torch.zeros(())
        for name, start in self.start.items():
            delta, original = self._short.get(name, (None, None))
            short = None if delta is None or original is None else delta.change_squared(original)
            total = total + (square(self.now(name) - start).sum() if short is None else short)
        return total


def check_shown(model: Backbone, name: str) -> None:
    """Raise ValueError, on behalf of the objective ``name``, if weights that ``model`` computes with are not to be had."""
    for wrapped in wrapped_layers(model.module):
        raise ValueError(
            f"{name} is about the weights that the network computes with, and layers that peft has wrapped, such as "
            f"{wrapped!r}, do not show theirs; use a strategy of paretune, such as LoRA()"
        )


def square(values: Tensor) -> Tensor:
    """The squares, in float32 at least."""
    return (values.float() if values.element_size() < 4 else values).square()

"""Weighted means of models in weight space: WiSE-FT and model soups.

WiSE-FT (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, Eq. 1) is (1 - alpha) theta_0 + alpha theta_1 of a start and
what was trained from it; a soup (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482) is the mean of several theta_i.

theta are the *effective* tensors of the network: weights as they are once an adapter is merged, so that the mean is that of
W + B_i A_i and never that of the factors; biases; running statistics of batch norms, of which the mean is taken too, not
measured anew; and the head. What cannot be merged, the modules that Adapter, Compacter and VisualPrompt insert, is averaged
tensor by tensor, which is linear in their parameters and not in what they compute.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, equal, nn

from paretune.backbones.backbone import (
    Backbone,
    Task,
    architecture_of,
    fingerprint,
    network_of,
    note_task,
    task_of,
    tensor_digests,
    written,
)
from paretune.interchange.placing import stored_tensors_full_names
from paretune.strategies import FullFineTune
from paretune.strategies.mechanics.adapting import (
    adaptation_of,
    anatomy_of,
    base_state,
    install,
    remove_adapter,
    restore,
)
from paretune.strategies.mechanics.base import Delta, Strategy, Union
from paretune.strategies.mechanics.wrapped import wrapped_layers

Model = TypeVar("Model", bound=nn.Module)


def interpolate(start: Model, trained: Model, alpha: float) -> Model:
    """WiSE-FT: a new model with (1 - alpha) of the tensors of ``start`` and alpha of those of ``trained``, both effective.

    ``alpha=0`` has the bits of the start, ``alpha=1`` those of the trained model. Merge or save what is returned as any
    adapted model; see :func:`average`.

    Args:
        start: what training began with: a pretrained model with the head that it had then, with or without a fresh adapter.
            One with inserted modules needs theirs.
        trained: adapted, on the same base.
        alpha: in [0, 1].

    Raises:
        ValueError: ``alpha`` is out of range, or as :func:`average`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], from the start to the trained model; got {alpha}")
    return average((start, trained), (1 - alpha, alpha))


def average(models: Iterable[Model], weights: Sequence[float] | None = None) -> Model:
    """A new model whose effective tensors are the weighted means of those of ``models``, computed in float64, rounded once.

    It carries the strategy of the models where all have one and the same, and it changes no weights by factors (LoRA, IA3,
    SSF). Any other average is one of plain weights, carried as :class:`~paretune.FullFineTune` (and the inserted modules).
    So it is attacked, saved by :func:`~paretune.save_adapter` or merged as any adapted model. A tensor that all have in
    common keeps its bits, and so does each tensor of a mean of one model with itself.

    Args:
        models: adapted, or bare, on one base: Backbones, or plain modules. They are gone through once, one at a time.
        weights: one a model, at least 0, relative to their sum; None gives each the same.

    Returns:
        A copy of the first model's base with the average on it, in evaluation mode.

    Raises:
        ValueError: the models differ in their base, head, classes or pixels, or in the modules that they insert; one carries
            layers of peft; or the weights mean nothing.
    """
    mean = _Mean()
    for number, model in enumerate(models):
        if weights is not None and number >= len(weights):
            raise ValueError(f"weights needs one entry a model; got {len(weights)} for more models")
        mean.add(model, 1.0 if weights is None else weights[number])
    if weights is not None and mean.models < len(weights):
        raise ValueError(f"weights needs one entry a model; got {len(weights)} for {mean.models}")
    result: Model = mean.model()
    return result


def effective_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors of the network on the CPU, with every weight as the adapter makes it, by the base's names.

    Modules that an adapter inserts stand under the names they have in the adapted network.

    Raises:
        ValueError: the model carries layers of peft.
    """
    twin = copy.deepcopy(model).eval()
    module = network_of(twin)
    if wrapped_layers(module):
        raise ValueError(
            "layers of peft take no part in averages, because peft alone knows their weights; use strategies of "
            "paretune, or merge_adapter first"
        )
    Delta.merge(module)
    for _, layer in Delta.carriers(module):
        Delta.remove(layer)
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


class _Mean:
    """A running weighted mean: the tensors of the first model, and the sums of those that differ between models."""

    def __init__(self) -> None:
        self.base: Any = None
        self.models = 0
        self.weight = 0.0
        self.state: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.strategies: list[Strategy] = []
        self.of_deltas = False
        self.identity: dict[str, Any] = {}
        self.names: list[str] = []
        self.task = Task()

    def add(self, model: nn.Module, weight: float) -> None:
        """Raise ValueError if the weight is none, or the model is not like those before."""
        if isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weights must be finite numbers of at least 0, got {weight!r}")
        for name, value in _identity(model).items():
            if value is not None and value != self.identity.setdefault(name, value):
                raise ValueError(
                    f"models of different {name} have no average: {self.identity[name]} and {value}"
                )
        if not self.models:
            self.base = _bare(model)
        self.models += 1
        adaptation = adaptation_of(model)
        if adaptation is not None:
            self.strategies.append(adaptation.strategy)
            self.of_deltas |= next(Delta.carriers(network_of(model)), None) is not None
        if task_of(model) != Task():
            self.task = task_of(model)
        state = effective_state(model)
        self.names = self.names or list(state)
        if self.names != list(state) or len({*map(_inserting, self.strategies)}) > 1:
            whose = " and ".join(dict.fromkeys(map(repr, self.strategies))) or "a bare model"
            raise ValueError(
                f"{whose} insert different modules, whose tensors have no average; average runs of one of these strategies, "
                "or of strategies that merge (LoRA, BitFit, full fine-tuning)"
            )
        if not weight:
            return
        if not self.weight:
            self.state = state
        for name, value in state.items():
            if value.is_floating_point() and (name in self.sums or not equal(value, self.state[name])):
                before = self.sums.get(name)
                before = self.state[name].double() * self.weight if before is None else before
                self.sums[name] = before + value.double() * weight
        self.weight += weight

    def model(self) -> Any:
        """The mean, on a copy of the base."""
        if not self.weight:
            raise ValueError(f"an average needs a model of a weight above 0; got {self.models} models")
        state = self.state | {
            name: (total / self.weight).to(self.state[name].dtype) for name, total in self.sums.items()
        }
        strategies = {*self.strategies}
        if len(strategies) == 1 and not self.of_deltas:
            (strategy,) = strategies
        else:
            follows = any(strategy.bn == "adapt" for strategy in strategies)
            strategy = FullFineTune(bn="adapt" if follows else "frozen")
            for part in _inserting(self.strategies[0]) if self.strategies else ():
                strategy = strategy + replace(part, bn=strategy.bn)
        module = network_of(self.base)
        adaptation = install(module, strategy, anatomy_of(self.base))
        stored = stored_tensors_full_names(module, adaptation)
        restore(module, {name: state[name] for name in stored})
        left = [name for name, value in module.state_dict().items() if not equal(value.cpu(), state[name])]
        if left:
            raise ValueError(
                f"{strategy!r} does not hold {', '.join(left[:3])}, which differ between the models; there is no average"
            )
        note_task(module, self.task)
        return self.base.eval()


def _bare(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    return twin if adaptation_of(twin) is None else remove_adapter(twin)


def _inserting(strategy: Strategy) -> tuple[Strategy, ...]:
    """The parts of ``strategy`` that insert modules, whatever they do with batch norms."""
    parts = strategy.strategies if isinstance(strategy, Union) else (strategy,)
    return tuple(replace(part, bn="frozen") for part in parts if part.why_not_mergeable)


def _identity(model: nn.Module) -> dict[str, Any]:
    """What models with an average have in common, by the words for it; None where it is not known."""
    module, anatomy = network_of(model), anatomy_of(model)
    pixels: Any = None
    if isinstance(model, Backbone):
        pixels = written(model.mean), written(model.std), model.channel_order
    architecture = model.architecture if isinstance(model, Backbone) else architecture_of(module)
    head: Any = module.get_submodule(anatomy.head)
    names = task_of(model).classes
    return {
        "architecture": architecture,
        "head": anatomy.head,
        "number of classes": len(head.weight),
        "classes": None if names is None else list(names),
        "base weights": fingerprint(architecture, tensor_digests(base_state(module), anatomy.head)),
        "pixels": pixels,
        "image size": anatomy.image_size,
    }

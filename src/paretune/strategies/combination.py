"""A weighted combination of adapters: W + sum_i w_i (W_i - W), with W_i the weight that adapter i makes of W.

The sum is written into the base's own tensors, so that it costs what the bare model costs. What adapters insert
stands side by side at its place: h + sum_i w_i (f_i(h) - h).
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paretune._values import FrozenDict
from paretune.backbones.backbone import inside
from paretune.backbones.sites import Site
from paretune.strategies.mechanics.base import Anatomy, Inserted, Strategy
from paretune.strategies.mechanics.stream import StreamTap
from paretune.strategies.prompt import PromptEnd, PromptTokens

Edge = Literal["input", "output"]


@dataclass(frozen=True)
class Combination(Strategy):
    """What stands on a model while named adapters are combined; made by :meth:`paretune.interchange.AdapterSet.activate`.

    Args:
        weights: of each adapter by its name.
        parts: models that carry what the adapters insert.
    """

    weights: Mapping[str, float]
    _: KW_ONLY
    parts: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", FrozenDict(self.weights))
        if self.parts:
            reason = "it holds inserted modules, which no weight of the base model can absorb"
            object.__setattr__(self, "why_not_mergeable", reason)

    def to_dict(self) -> dict[str, Any]:
        """Refused: what is saved or trained has one strategy.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{self!r} is no adapter of its own: it can be neither saved as one nor trained; activate one name for that, or "
            "save_merged the model"
        )

    def install(self, module: nn.Module, anatomy: Anatomy) -> list[str]:
        """Insert the blends, with weights of zero; nothing of it trains."""
        places: dict[tuple[str, Edge], dict[int, Inserted]] = {}
        for slot, part in enumerate(self.parts):
            for place, name, inserted in inserted_modules(part):
                host = module.get_submodule(place)
                source = part.get_submodule(place)
                if isinstance(inserted, StreamTap):
                    host.add_module(f"{name}_{slot}", inserted)
                    host.register_forward_pre_hook(inserted.keep)
                else:
                    hooks = source._forward_hooks.values()
                    behind = any(getattr(hook, "__self__", None) is inserted for hook in hooks)
                    edge: Edge = "output" if behind else "input"
                    places.setdefault((place, edge), {})[slot] = inserted
        for (place, edge), together in places.items():
            Blend(together, edge).attach(module, Site(place, edge, "conv", 1, -1))
        return []


class Blend(Inserted):
    """h + sum_i w_i (f_i(h) - h) for inserted modules f_i that share a place.

    Args:
        parts: the modules, each under the number of its adapter.
        edge: where they are hooked.

    Shape of ``weights``: (number of modules,).
    """

    def __init__(self, parts: Mapping[int, Inserted], edge: Edge) -> None:
        super().__init__()
        self.NAME = f"blend_{edge}"  # type: ignore[misc]  # a place may have one at either edge
        self.numbers = tuple(parts)
        self.parts = nn.ModuleList(parts.values())
        like = next(self.parts.parameters())
        self.register_buffer("weights", like.new_zeros(len(parts)))

    def set(self, weights: Sequence[float]) -> None:
        """Change the weights in place, to those of the adapters that have a module here."""
        self.get_buffer("weights").copy_(torch.tensor([weights[number] for number in self.numbers]))

    def change_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook."""
        x: Tensor = args[0]
        parts: Any = self.parts
        return (self._blend(x, [part.change_input(module, args)[0] for part in parts]), *args[1:])

    def change_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook."""
        parts: Any = self.parts
        return self._blend(output, [part.change_output(module, args, output) for part in parts])

    def _blend(self, x: Tensor, changed: list[Tensor]) -> Tensor:
        weights: Any = self.weights
        total = x
        for number, result in enumerate(changed):
            total = total + weights[number].to(x.dtype) * (result - x)
        return total


def inserted_modules(module: nn.Module) -> list[tuple[str, str, Inserted]]:
    """Place, own name and module of everything that is inserted in ``module``, outermost only.

    Raises:
        ValueError: one of them changes the number of tokens, so that what several would add is not defined.
    """
    outermost: list[tuple[str, str, Inserted]] = []
    hooked = {
        id(getattr(hook, "__self__", None)): path
        for path, part in module.named_modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    }
    # A tap has two names, of which the one outside the module that reads it counts.
    for path, part in module.named_modules(remove_duplicate=False):
        place, _, name = path.rpartition(".")
        known = isinstance(part, Inserted) and any(part is other for _, _, other in outermost)
        if isinstance(part, Inserted) and not known and not isinstance(module.get_submodule(place), Inserted):
            if isinstance(part, PromptTokens | PromptEnd):
                raise ValueError(
                    "prompt tokens take no part in combinations: tokens of several adapters have no sum; activate one name, "
                    "or use VisualPrompt(kind='padding')"
                )
            outermost.append((hooked.get(id(part), place), name, part))
    return outermost


def part_of(module: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of what is inserted in ``module``, with tensors of its own, in a bare frame of its places.

    Returns:
        The frame, and the tensors of the copy under their names in ``module``.
    """
    kept = {id(t) for _, _, part in inserted_modules(module) for t in (*part.parameters(), *part.buffers())}
    rest = (*module.parameters(), *module.buffers())
    memo = {id(tensor): tensor.to("meta") for tensor in rest if id(tensor) not in kept}
    frame = copy.deepcopy(module, memo)
    names = {name for name, parameter in module.named_parameters() if id(parameter) in kept}
    return frame, {name: value for name, value in frame.named_parameters() if name in names}


def combined(
    base: Mapping[str, Tensor],
    adapters: Iterable[tuple[str, Mapping[str, Tensor]]],
    weights: Mapping[str, float],
    head: str,
    head_weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The values of the base's tensors under a combination, for every tensor that one of ``adapters`` changes.

    Args:
        base: values of the bare model, by its names.
        adapters: the name of each, and the values it makes of them; one is looked at after the other.
        weights: of each adapter.
        head: dotted name of the classifier, which is the mean of the adapters' heads by ``head_weights`` instead.
        head_weights: of each adapter, of sum 1.

    Raises:
        ValueError: a variance of a batch norm would be negative.
    """
    values: dict[str, Tensor] = {}
    for adapter, changes in adapters:
        for name, value in changes.items():
            original = base[name]
            # Every adapter has a head, and its weights sum to 1: base + sum w (head - base) is the mean of the heads.
            weight = (head_weights if inside(name, head) else weights)[adapter]
            if not original.is_floating_point():
                values[name] = original  # how many batches a batch norm has seen
            elif name not in values and weight == 1:
                values[name] = value.clone()  # without the rounding of base + (value - base)
            else:
                values[name] = values.get(name, original).add(value - original, alpha=weight)
    for name, value in values.items():
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(
                f"weights {dict(weights)!r} would make a variance in {name} negative; for adapters with bn='adapt' use "
                "weights of at least 0 whose sum is at most 1"
            )
    return values


def check_weights(weights: Mapping[str, float], head: str | None) -> dict[str, float]:
    """The weight that each adapter's head has in the mean of them.

    Raises:
        ValueError: a weight is not a finite number, or there is no mean of the heads.
    """
    if not weights:
        raise ValueError(
            "the combination is empty; name at least one adapter, or activate(None) for the base"
        )
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"the weight of {name!r} must be a finite number, got {weight!r}")
    if head is not None:
        if head not in weights:
            raise ValueError(f"head must be one of {', '.join(weights)}, got {head!r}")
        return {name: float(name == head) for name in weights}
    total = sum(weights.values())
    if min(weights.values()) < 0 or total <= 0:
        raise ValueError(
            f"the weights {dict(weights)!r} give no mean of the adapters' heads; say whose head to use: "
            f"head={next(iter(weights))!r}"
        )
    return {name: weight / total for name, weight in weights.items()}

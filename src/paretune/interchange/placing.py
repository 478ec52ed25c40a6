"""Putting a strategy with given tensors on a model: everything is tried on a weightless copy first."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paretune.backbones.backbone import Task, inside, network_of, note_task
from paretune.interchange.checks import check_classes, check_tensors
from paretune.interchange.reading import held
from paretune.interchange.sharing import check_apart
from paretune.strategies.mechanics.adapting import (
    Adaptation,
    install,
    remove_adapter,
    require_bare,
    restore,
)
from paretune.strategies.mechanics.base import Anatomy, Delta, Strategy, base_parameters
from paretune.strategies.mechanics.wrapped import names_in_peft, random_images

LARGEST = 64 * 2**20  # bytes that any tensor may have, in the smallest of models
# A factor of a delta is stored as `blocks.0.attn.qkv.lora_A`, without the path that parametrization gives it.
_PARAMETRIZED = ".parametrizations.weight.0."


def place(
    model: nn.Module,
    strategy: Strategy,
    anatomy: Anatomy,
    tensors: Mapping[str, Tensor],
    origin: str | Path,
    *,
    partial: bool = False,
) -> nn.Module:
    """Put ``strategy`` with ``tensors`` on ``model`` in place; returns the same object, in evaluation mode.

    Args:
        model: a Backbone or a plain module without an adapter.
        strategy: what to put on.
        anatomy: of the module.
        tensors: by the names of :func:`stored_tensors`.
        origin: where they are from, for messages.
        partial: what the model has itself, such as the head, may be missing and stays as it is.

    Raises:
        ValueError: the strategy, a name, a shape or a value does not fit; the model is unchanged.
    """
    module = network_of(model)
    require_bare(module)
    check_classes(module, anatomy.head, tensors, origin)
    strategy = strategy.stored_in(tensors)
    trial, adapted = tried(module, strategy, anatomy, origin)
    expected = stored_tensors(trial, adapted)
    if partial:
        check_apart(trial, adapted, f"{origin} is of a library that")
        present = {stored_name(name) for name in (*base_parameters(trial), *adapted.statistics(trial))}
        expected = {name: value for name, value in expected.items() if name in tensors or name not in present}
    check_tensors(expected, tensors, origin)
    tensors = {name: held(name, value, expected[name].dtype, origin) for name, value in tensors.items()}
    if strategy.needs_values:
        _check_runs(trial, adapted, tensors, origin)
    adaptation = install(module, strategy, anatomy)
    try:
        restore_stored(module, adaptation, tensors)
    except BaseException:
        remove_adapter(module)
        raise
    if any(inside(name, anatomy.head) for name in tensors):
        note_task(module, Task())  # that of another head is no more
    return model.eval()


def tried(
    module: nn.Module, strategy: Strategy, anatomy: Anatomy, origin: str | Path
) -> tuple[nn.Module, Adaptation]:
    """A copy of ``module`` with ``strategy`` on it; without values where the strategy needs none.

    Raises:
        ValueError: the strategy cannot be put on it, or would take far more memory than the model does.
    """
    trial = copy.deepcopy(module) if strategy.needs_values else skeleton(module)
    size = sum(value.nbytes for value in module.state_dict().values())
    bound = _Bounded(LARGEST + 16 * size) if strategy.needs_values else torch.device("meta")
    try:
        with torch.random.fork_rng(), bound:
            return trial, install(trial, strategy, anatomy)
    except (TypeError, AttributeError, KeyError, RuntimeError, OverflowError, IndexError) as error:
        raise ValueError(f"{origin}: {strategy!r} cannot be put on this model: {error}") from error


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Stops who makes a tensor of more than ``largest`` bytes, before anything is written to it."""

    def __init__(self, largest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.largest = largest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.numel() * value.element_size() > self.largest:
                raise ValueError(f"a tensor of shape {tuple(value.shape)} is far larger than the model")
        return result


def _check_runs(
    trial: nn.Module, adaptation: Adaptation, tensors: Mapping[str, Tensor], origin: str | Path
) -> None:
    """Raise ValueError if ``trial`` takes no images once it has ``tensors``."""
    images = random_images(trial, adaptation.anatomy)
    if images is None:
        return
    restore_stored(trial, adaptation, tensors)
    try:
        with torch.no_grad():
            trial.eval()(images.to(next(trial.parameters()).dtype))
    except Exception as error:  # of a foreign library, anything may be raised
        raise ValueError(
            f"{origin}: {adaptation.strategy!r} fails in this {type(trial).__name__}: {error}"
        ) from error


def skeleton(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose tensors have shapes but no values, so that trying something costs no memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            parameter.detach().to("meta"), requires_grad=parameter.requires_grad
        )
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, memo)


def stored_tensors(module: nn.Module, adaptation: Adaptation) -> dict[str, Tensor]:
    """What an adapter file holds, under the names it has there."""
    return {stored_name(name): value for name, value in stored_tensors_full_names(module, adaptation).items()}


def stored_tensors_full_names(module: nn.Module, adaptation: Adaptation) -> dict[str, Tensor]:
    """What an adapter file holds, under the names of the adapted module."""
    parameters = dict(module.named_parameters())
    stored: dict[str, Tensor] = {name: parameters[name] for name in adaptation.trained}
    stored |= adaptation.statistics(module)
    stored |= Delta.settings(module)
    in_peft = names_in_peft(module)
    if in_peft:  # which may save more than is trained
        state = module.state_dict(keep_vars=True)
        stored |= {name: state[name] for name in in_peft.values() if name not in stored}
    return stored


def restore_stored(module: nn.Module, adaptation: Adaptation, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of an adapter file into the adapted ``module``."""
    names = {stored_name(name): name for name in stored_tensors_full_names(module, adaptation)}
    restore(module, {names[name]: value for name, value in tensors.items()})


def stored_name(name: str) -> str:
    """The name that the tensor ``name`` of an adapted module has in an adapter file."""
    return name.replace(_PARAMETRIZED, ".")

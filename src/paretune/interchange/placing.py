"""Putting a strategy with given tensors on a model: everything is tried on a weightless copy first."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones import Backbone, Task, inside, network_of, note_task
from paretune.interchange.checks import check_classes, check_tensors
from paretune.interchange.reading import check_finite
from paretune.strategies.adapting import (
    Adaptation,
    batchnorm_buffers,
    install,
    remove_adapter,
    require_bare,
    restore,
)
from paretune.strategies.base import Anatomy, Strategy, base_parameters

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
    trial = skeleton(module)
    try:
        with torch.device("meta"):
            expected = stored_tensors(trial, install(trial, strategy, anatomy))
    except (TypeError, AttributeError, KeyError, RuntimeError, OverflowError, IndexError) as error:
        raise ValueError(f"{origin}: {strategy!r} cannot be put on this model: {error}") from error
    if partial:
        own = {stored_name(name) for name in (*base_parameters(trial), *batchnorm_buffers(trial))}
        expected = {name: value for name, value in expected.items() if name in tensors or name not in own}
    check_tensors(expected, tensors, origin)
    check_finite(tensors, origin)
    adaptation = install(module, strategy, anatomy)
    try:
        restore_stored(module, adaptation, tensors)
    except BaseException:
        remove_adapter(module)
        raise
    if any(inside(name, anatomy.head) for name in tensors):
        note_task(module, Task())  # that of another head is no more
    if isinstance(model, Backbone):
        model.frozen_batchnorm = strategy.bn == "frozen"
    return model.eval()


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
    if adaptation.strategy.bn == "adapt":
        stored |= batchnorm_buffers(module)
    return stored


def restore_stored(module: nn.Module, adaptation: Adaptation, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of an adapter file into the adapted ``module``."""
    names = {stored_name(name): name for name in stored_tensors_full_names(module, adaptation)}
    restore(module, {names[name]: value for name, value in tensors.items()})


def stored_name(name: str) -> str:
    """The name that the tensor ``name`` of an adapted module has in an adapter file."""
    return name.replace(_PARAMETRIZED, ".")

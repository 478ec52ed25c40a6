"""The features of a classifier: what enters its head."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.backbone import Backbone, logits_of
from paretune.backbones.modes import evaluation_mode


@contextlib.contextmanager
def entering_head(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Around passes through ``backbone``, or a wrapper of it: the features of each, (batch, features), float32 at least."""
    seen: list[Tensor] = []

    def look(_head: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0].flatten(1)
        seen.append(features.float() if features.element_size() < 4 else features)

    handle = backbone.module.get_submodule(backbone.head).register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def without_head(backbone: Backbone) -> Backbone:
    """A network that returns the features of ``backbone`` for what that enters: to be copied, not to be called.

    It shares all tensors, and all modules but the head and those around the head, so an attack copy of it follows training.

    Raises:
        ValueError: the network does more with what its head returns than return it, so that features are not to be had so.
    """
    headless: Any = _replaced(backbone, ["module", *backbone.head.split(".")], nn.Identity())
    for method in ("forward", "_original_forward"):  # of mixed precision, which are the original's
        headless.__dict__.pop(method, None)
    example = torch.rand(backbone._example().shape, generator=torch.Generator().manual_seed(0))
    example = example.to(backbone.mean.device)
    with evaluation_mode(backbone), torch.no_grad(), entering_head(backbone) as seen:
        entered = backbone.enter(example)
        backbone.module(entered)
        try:
            same = torch.equal(logits_of(headless.module(entered)).float(), seen[0].float())
        except Exception:  # whatever a network raises that is not made to be without its head
            same = False
    if not same:
        raise ValueError(
            f"the features of this {type(backbone.module).__name__} are not to be had by taking off its head "
            f"{backbone.head!r}, because the network does more with what the head returns than return it"
        )
    extractor: Backbone = headless
    return extractor


def _replaced(module: nn.Module, path: Sequence[str], leaf: nn.Module) -> nn.Module:
    """``module`` with ``leaf`` at the end of ``path``; all that is not on the path is shared."""
    twin = copy.copy(module)
    name, *rest = path
    inner = module._modules[name]
    assert inner is not None
    twin._modules = {**module._modules, name: _replaced(inner, rest, leaf) if rest else leaf}
    return twin

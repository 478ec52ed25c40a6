"""Gradient checkpointing: activations are computed again in the backward pass instead of kept, for memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

from paretune.backbones.backbone import Backbone


@contextlib.contextmanager
def checkpointed(backbone: Backbone, on: bool) -> Iterator[None]:
    """Meanwhile the model checkpoints, if ``on``, by its own switch: of timm, or of transformers, not reentrant.

    Raises:
        ValueError: the model has neither, or its architecture does not support it.
    """
    if not on:
        yield
        return
    _switch(backbone.module, True)
    try:
        yield
    finally:
        _switch(backbone.module, False)


def _switch(module: Any, on: bool) -> None:
    try:
        if hasattr(module, "set_grad_checkpointing"):  # timm
            module.set_grad_checkpointing(on)
        elif hasattr(module, "activation_checkpointing_enable"):  # transformers from 5.13 on
            if on:
                module.activation_checkpointing_enable(
                    activation_checkpointing_kwargs={"use_reentrant": False}
                )
            else:
                module.activation_checkpointing_disable()
        elif hasattr(module, "gradient_checkpointing_enable"):
            if on:
                module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            else:
                module.gradient_checkpointing_disable()
        else:
            raise ValueError("it has neither the switch of timm nor that of transformers")
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"checkpointing=True: {type(module).__name__} cannot checkpoint its gradients: {error}; leave it at False, and "
            "save memory with accumulate= instead"
        ) from error

"""Training and evaluation mode, module by module; of the batch norms in a model, which stay in the latter."""

import contextlib
import threading
from collections.abc import Iterator

from torch import nn

RECORD = "_paretune_adaptation"  # attribute of a network that holds what the strategy on it has recorded

_LOCK = threading.Lock()
# How often each part is evaluated now, and its mode before.
_evaluating: dict[nn.Module, tuple[int, bool]] = {}


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``module`` that in training mode normalise by the statistics of the batch, by name."""
    kind = nn.modules.batchnorm._BatchNorm
    return {name: part for name, part in module.named_modules() if isinstance(part, kind)}


def frozen_batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms that stay in evaluation mode while ``model`` trains, as the strategy on it, if any, has recorded."""
    return [
        norm
        for part in model.modules()
        if RECORD in part.__dict__
        for name, norm in part.named_modules()
        if not part.__dict__[RECORD].follows.get(name, True)
    ]


@contextlib.contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Let the body change modes; afterwards each part of ``module`` is in the mode it was in.

    Part by part, because ``module.train()`` would also switch on what its user has frozen.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the body; the last of several threads gives each part the mode that it had before the first."""
    parts = list(module.modules())
    with _LOCK:
        for part in parts:
            count, training = _evaluating.get(part, (0, part.training))
            _evaluating[part] = (count + 1, training)
        module.eval()
    try:
        yield
    finally:
        with _LOCK:
            for part in parts:
                count, training = _evaluating.pop(part)
                if count > 1:
                    _evaluating[part] = (count - 1, training)
                else:
                    part.training = training

"""Training and evaluation mode, module by module."""

import contextlib
from collections.abc import Iterator

from torch import nn


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

"""When checks look at values: at once, or several together, because for each look Python waits for an accelerator."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Whether all is well (a boolean without axes), and the error to raise if not.
Check = tuple[Tensor, Callable[[], Exception]]


@dataclass(frozen=True, eq=False)
class _Deferred:
    """See :func:`deferring`."""

    classes: Tensor
    extent: tuple[int, int]
    checks: list[Check] = field(default_factory=list)


_DEFERRED: ContextVar[_Deferred | None] = ContextVar("deferred", default=None)


def runs_ahead(device: torch.device) -> bool:
    """Whether Python goes on while ``device`` computes, so that a look at a value waits for all that was sent to it."""
    return device.type != "cpu"


def require(ok: Tensor, error: Callable[[], Exception]) -> None:
    """Raise ``error()`` unless ``ok``: at once, or where :func:`deferring` is on, when its checks are looked at.

    Args:
        ok: a boolean without axes, which nothing changes later.
        error: what to raise; called only then.
    """
    deferred = _DEFERRED.get()
    if deferred is not None:
        deferred.checks.append((ok, error))
    elif not ok:
        raise error()


def extent(classes: Tensor) -> tuple[int, int]:
    """The lowest and the highest of ``classes`` (batch,), 0 and 0 of none; looked at unless :func:`deferring` was told."""
    deferred = _DEFERRED.get()
    if deferred is not None and classes is deferred.classes:
        return deferred.extent
    if not len(classes):
        return 0, 0
    low, high = torch.aminmax(classes)
    return int(low), int(high)


@contextlib.contextmanager
def deferring(classes: Tensor, extent: tuple[int, int]) -> Iterator[list[Check]]:
    """Keep the checks of the body, in this thread, in the list that is returned; whoever asked for it looks at them.

    Args:
        classes: (batch,) which the body need not look at.
        extent: the lowest and the highest of them.
    """
    deferred = _Deferred(classes, extent)
    token = _DEFERRED.set(deferred)
    try:
        yield deferred.checks
    finally:
        _DEFERRED.reset(token)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Inside :func:`deferring`, look at the checks of the body at once: where an answer is a choice, not an error."""
    token = _DEFERRED.set(None)
    try:
        yield
    finally:
        _DEFERRED.reset(token)

"""The random state of the process: torch's global generators, of which there is one for all threads."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GENERATORS = threading.RLock()
"""Held by whoever borrows them; taken before any other lock of a model."""


@contextlib.contextmanager
def borrowed_randomness(devices: Sequence[torch.device] | None = None) -> Iterator[None]:
    """Let the body seed and draw from the global generators, which are as before afterwards; one thread at a time.

    Args:
        devices: accelerators whose generators count; all of them when None.
    """
    with GENERATORS, torch.random.fork_rng(devices):
        yield


def draws(forward: Callable[[], object], devices: Sequence[torch.device]) -> bool:
    """Whether ``forward`` draws from the global generators, which are as before afterwards.

    Found by its operations, not by the state of the generators, because other threads may draw meanwhile.
    """
    with GENERATORS:
        state, states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
        watch = _Watch()
        with watch:
            forward()
        if watch.drawn:
            torch.set_rng_state(state)
            for device, its in zip(devices, states, strict=True):
                torch.cuda.set_rng_state(its, device)
    return watch.drawn


class _Watch(TorchDispatchMode):
    """Notes whether an operation draws random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.drawn = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            names = (argument.name for argument in func._schema.arguments)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            # Attention has the tag whether or not it drops; so has a leaky ReLU that is random in training only.
            idle = given.get("dropout_p", 1) == 0 or given.get("training", True) is False
            self.drawn = self.drawn or (given.get("generator") is None and not idle)
        return func(*args, **kwargs)

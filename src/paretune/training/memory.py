"""A batch that memory does not suffice for is learnt in more parts."""

import gc
import logging
import os
from collections.abc import Callable
from typing import TypeVar

import torch

from paretune.backbones.backbone import Backbone
from paretune.backbones.modes import batch_norms, frozen_batch_norms

T = TypeVar("T")
log = logging.getLogger(__name__)

EVALUATED = 128  # images that are measured at once where memory suffices
_SAID = ("out of memory", "can't allocate memory", "not enough memory")  # by CUDA, and by torch on a CPU


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory has ended."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAID)


def fitting(run: Callable[[int], T], most: int) -> T:
    """What ``run`` returns; where memory ends, it is called again with twice the number, 2 first.

    Several processes of one run raise what they meet, as the others would wait for the one that begins again.

    Args:
        run: takes how many times each batch is divided further.
        most: that it can be divided.

    Raises:
        Exception: what ``run`` raised when it cannot be divided further, or for another reason.
    """
    divide = 1
    while True:
        try:
            return run(divide)
        except (RuntimeError, MemoryError) as error:
            alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
            if not is_out_of_memory(error) or divide >= most or not alone:
                raise
            said = (str(error) or type(error).__name__).partition("\n")[0]
        # Here the frames that hold tensors are gone.
        divide *= 2
        log.warning("memory ended (%s): each batch is divided by %d, and the run goes on", said, divide)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def shortage(model: Backbone, accumulate: int, parts: int, divide: int, step: int) -> str | None:
    """What is to be known of a run whose batches are divided further; None if they are not.

    Args:
        model: that learns.
        accumulate: parts of a batch that were asked for.
        parts: that there are.
        divide: how many times more that is wanted.
        step: after which that is so.
    """
    if divide == 1:
        return None
    adapting = len(batch_norms(model)) > len(frozen_batch_norms(model))
    effect = (
        f"batch norms adapt to each part, so the run is one with accumulate={parts}: compare it with such"
        if adapting
        else "the gradient is that of the whole batch up to rounding"
    )
    return (
        f"out of memory: after step {step} each batch is learnt in {parts} parts instead of {accumulate}, and "
        f"{evaluated(divide)} images are measured at once; {effect}"
    )


def evaluated(divide: int) -> int:
    """How many images are measured at once; what they are measured with makes each one's result its own."""
    return max(1, EVALUATED // divide)

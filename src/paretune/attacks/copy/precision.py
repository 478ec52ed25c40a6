"""Whether an attack may differentiate a bfloat16 twin: only where its gradients point where float32's do, and sooner.

bfloat16 halves the work of a vision transformer on hardware with units for it. On a ConvNet with batch norms its
input gradient may point elsewhere than the true one, and on hardware without such units it is slower. Both differ from model
to model and from machine to machine, so both are measured, once, on the first batch.
"""

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

#: Of the gradients of an attack.
Precision = Literal["fp32", "bf16"]

MEDIAN_COSINE = 0.98  # at least, over the examples of the first batch
LOWEST_COSINE = 0.90  # at least, for each example
TIME_RATIO = 0.90  # at most: a gradient that is not a tenth cheaper is not worth its rounding
LEAST_SECONDS = 0.02  # of processor time for a float32 gradient on a CPU: below that there is nothing to gain
EXAMPLES = 16  # of the first batch that are measured on a CPU; an accelerator needs all of them to be busy
REPEATS = 3  # timed gradients of each precision


class Victim(Protocol):
    """What is probed."""

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 logits (batch, classes) of ``images``."""
        ...


V = TypeVar("V", bound=Victim)


@dataclass(frozen=True)
class Decision:
    """The precision in which an attack copy computes gradients, and why.

    Args:
        precision: ``"fp32"`` or ``"bf16"``.
        reason: one sentence.
        median_cosine: over the measured examples, of the bfloat16 input gradient with the float32 one; None where it was
            not measured.
        lowest_cosine: of the worst example.
        time_ratio: time of a bfloat16 gradient over that of a float32 one; None where it was not measured.
    """

    precision: Precision
    reason: str
    median_cosine: float | None = None
    lowest_cosine: float | None = None
    time_ratio: float | None = None


def decide(exact: V, make_half: Callable[[], V], images: Tensor) -> tuple[Decision, V | None]:
    """Measure the two twins on ``images`` and choose.

    The rule: bfloat16 if the cosine of its input gradient with float32's is at least 0.98 for the median example and 0.90
    for each, and if it takes at most 0.9 of the time. The gradient is that of the difference between the two largest
    logits, which no confident model can saturate. A model so small that its float32 gradient takes less than 0.02 s of a
    CPU stays in float32.

    Args:
        exact: the float32 twin.
        make_half: makes the bfloat16 twin; called only where it may be chosen.
        images: the first batch, float32 in [0, 1].

    Returns:
        The decision, and the bfloat16 twin if it was chosen.
    """
    decision, half = _measure(exact, make_half, images)
    logger.info("attack copy: %s; %s", decision.precision, decision.reason)
    return decision, half if decision.precision == "bf16" else None


def _measure(exact: V, make_half: Callable[[], V], images: Tensor) -> tuple[Decision, V | None]:
    device = images.device
    if not has_bfloat16_units(device):
        return Decision("fp32", f"{device.type} has no bfloat16 units that are known to help"), None
    images = images[: EXAMPLES if device.type == "cpu" else None].detach().clone()
    try:
        if device.type == "cpu" and (seconds := gradient_seconds(exact, images)) < LEAST_SECONDS:
            reason = f"a gradient takes {1000 * seconds:.1f} ms, so there is little to gain"
            return Decision("fp32", reason), None
        half = make_half()
        cosines = gradient_cosines(exact, half, images)
    except Exception as error:  # whatever it raises, float32 works or tells better what is wrong
        problem = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        return Decision("fp32", f"bfloat16 could not be tried ({problem})"), None
    return _choose(exact, half, images, cosines), half


def _choose(exact: Victim, half: Victim, images: Tensor, cosines: Tensor) -> Decision:
    middle, lowest = float(cosines.median()), float(cosines.min())
    agreement = (
        f"the cosine of its gradient with float32's is {middle:.3f} at the median and {lowest:.3f} at least"
    )
    if not (middle >= MEDIAN_COSINE and lowest >= LOWEST_COSINE):  # NaN is a no
        return Decision("fp32", f"bfloat16 is not faithful: {agreement}", middle, lowest)
    ratio = time_ratio(exact, half, images)
    precision: Precision = "bf16" if ratio <= TIME_RATIO else "fp32"
    reason = f"a bfloat16 gradient takes {ratio:.2f} of the time of a float32 one; {agreement}"
    return Decision(precision, reason, middle, lowest, ratio)


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices natively, as far as torch tells.

    Elsewhere (ARM, MPS, other accelerators) nothing says so, and float32 is the safe answer.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def gradient_cosines(exact: Victim, half: Victim, images: Tensor) -> Tensor:
    """Cosine (batch,) of the input gradients of the two; 1 where both are zero."""
    with torch.no_grad():
        top = exact(images).topk(2, dim=1).indices  # the same two classes for both
    one, other = input_gradient(exact, images, top).flatten(1), input_gradient(half, images, top).flatten(1)
    both_zero = ~(one.any(dim=1) | other.any(dim=1))
    # Scaled by the largest entry first, because the square of 1e-30 is 0 in float32.
    return torch.where(both_zero, 1.0, F.cosine_similarity(_scaled(one), _scaled(other), dim=1))


def input_gradient(victim: Victim, images: Tensor, top: Tensor) -> Tensor:
    """Gradient of the difference of the two logits ``top`` (batch, 2) with respect to ``images``."""
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        first, second = victim(leaf).gather(1, top).unbind(dim=1)
        (gradient,) = torch.autograd.grad((first - second).sum(), leaf)
    return gradient


def time_ratio(exact: Victim, half: Victim, images: Tensor) -> float:
    """Time of a gradient of ``half`` over that of ``exact``: medians of a few, taken in turns."""
    seconds: dict[Victim, list[float]] = {exact: [], half: []}
    for victim, taken in [*seconds.items()] * REPEATS:
        taken.append(_seconds(victim, images))
    return median(seconds[half]) / max(median(seconds[exact]), 1e-9)


def gradient_seconds(victim: Victim, images: Tensor) -> float:
    """Time of a gradient: that of the second, because the first prepares the victim."""
    return [_seconds(victim, images) for _ in range(2)][1]


def _seconds(victim: Victim, images: Tensor) -> float:
    """On an accelerator by its own events; on the CPU the processor time, which other programs disturb least."""
    top = torch.arange(2, device=images.device).expand(len(images), 2)  # which classes is all the same here
    if images.device.type == "cuda":
        with torch.cuda.device(images.device):
            # torch has no types for its events.
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            input_gradient(victim, images, top)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000
    began = time.process_time()
    input_gradient(victim, images, top)
    return time.process_time() - began


def _scaled(vectors: Tensor) -> Tensor:
    largest = vectors.abs().amax(dim=1, keepdim=True)
    return vectors / torch.where(largest > 0, largest, 1)

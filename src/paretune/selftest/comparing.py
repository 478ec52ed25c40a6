"""Compare any implementation of the step with plain PyTorch; the self-test and the tests share these checks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paretune.kernels import Norm, Step, reference

NORMS: tuple[Norm, ...] = ("Linf", "L2")
SHAPES = ((3, 3, 32, 32), (2, 3, 15, 13), (1, 3, 74, 75), (5, 1, 1, 1), (2, 4, 7, 9))
# Types of the gradient and of the model input, which None leaves out together with mean and std.
DTYPES: tuple[tuple[torch.dtype, torch.dtype | None], ...] = (
    (torch.float32, None),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
)
_LAYOUTS = (torch.contiguous_format, torch.channels_last)

Take = Callable[[Step], tuple[Tensor, Tensor]]  # an implementation
Outcome = tuple[bool | None, str]


@dataclass(frozen=True)
class Check:
    """One line of the report; ``passed`` is None for what was measured or left out, not judged."""

    name: str
    passed: bool | None
    detail: str = ""


def run_check(name: str, body: Callable[..., Outcome], *arguments: Any) -> Check:
    """The outcome of ``body(*arguments)``; an exception is a failure, with its message."""
    try:
        passed, detail = body(*arguments)
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return Check(name, passed, detail)


def step_checks(take: Take, device: torch.device) -> Iterator[Check]:
    """``take`` against plain PyTorch on ``device``: L-inf bit for bit, L2 by :func:`within_rule`."""
    for norm in NORMS:
        for shape in SHAPES:
            yield run_check(f"{norm} step {shape}", compare_all, take, device, norm, shape)
        yield run_check(f"{norm} step, empty batch", _empty, take, device, norm)
        yield run_check(f"{norm} step, NaN and infinite gradients", _not_finite, take, device, norm)
        yield run_check(f"{norm} step, twice", _repeatable, take, device, norm)


def cases(norm: Norm, shape: tuple[int, ...]) -> Iterator[tuple[str, Step]]:
    """Steps with a name: types, layouts, forms of the amounts, alignments, and gradients of any size."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator)
    noise, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    gradient[..., ::3] = 0
    radius = 0.03 if norm == "Linf" else 0.03 * math.sqrt(images[0].numel())
    plain = Step(gradient, images, (images + 0.02 * noise).clamp(0, 1), norm, radius / 3, radius)
    mean, std = torch.linspace(0.4, 0.5, shape[1]), torch.linspace(0.2, 0.3, shape[1])
    for layout in _LAYOUTS:
        for gradient_dtype, out_dtype in DTYPES:
            step = replace(plain, gradient=gradient.to(gradient_dtype))
            step = _each(step, lambda tensor, layout=layout: tensor.contiguous(memory_format=layout))  # type: ignore[misc]
            extra: Any = {} if out_dtype is None else {"mean": mean, "std": std, "out_dtype": out_dtype}
            yield f"{layout}, {gradient_dtype}", replace(step, **extra)
    yield "cast only", replace(plain, out_dtype=torch.bfloat16)
    yield "downhill", replace(plain, step_size=-radius)
    for scale in (1e-42, 1e-30, 0.0, 1e30):
        yield f"gradient times {scale:g}", replace(plain, gradient=gradient * scale)
    amount = torch.tensor(radius)
    yield "amounts in tensors", replace(plain, step_size=amount, epsilon=amount)
    yield (
        "unaligned",
        _each(plain, lambda tensor: torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(shape)),
    )
    yield "not contiguous", _each(plain, lambda tensor: tensor.repeat_interleave(2, dim=-1)[..., ::2])
    yield (
        "mixed layouts",
        replace(plain, images_adv=plain.images_adv.contiguous(memory_format=torch.channels_last)),
    )


def compare_all(take: Take, device: torch.device, norm: Norm, shape: tuple[int, ...]) -> Outcome:
    """All :func:`cases`; stops at the first that differs."""
    number = 0
    for name, step in cases(norm, shape):
        number += 1
        passed, detail = compare(take, _on(step, device))
        if not passed:
            return False, f"{name}: {detail}"
    return True, f"{number} cases, {'bit for bit' if norm == 'Linf' else 'within the rule'}"


def compare(take: Take, step: Step) -> Outcome:
    """One step against plain PyTorch: both results, their memory layout, and that the arguments stay as they are."""
    before = {name: value.clone() for name, value in vars(step).items() if isinstance(value, Tensor)}
    moved, model_input = take(step)
    plain, plain_input = reference.pgd_step(step)
    for name, value in before.items():
        if not torch.equal(value, getattr(step, name)):
            return False, f"{name} has changed"
    if moved.stride() != plain.stride() or model_input.stride() != plain_input.stride():
        return False, f"strides {moved.stride()} and {model_input.stride()} instead of {plain.stride()}"
    if step.norm == "Linf":
        difference = (moved - plain).abs().max().item()
        passed, detail = torch.equal(moved, plain), f"differs by {difference:.1e}"
    else:
        wide = _each(step, Tensor.double)
        step_size, epsilon = (
            amount.double() if isinstance(amount, Tensor) else amount
            for amount in (step.step_size, step.epsilon)
        )
        _, std = reference.normalisation(step)
        std = None if std is None else std.double()
        truth = reference.l2_step(wide.gradient, wide.images, wide.images_adv, step_size, epsilon, std)
        passed, detail = within_rule(moved, plain, truth)
    if passed and step.out_dtype is not None:
        mean, std = reference.normalisation(step)
        if not torch.equal(model_input, reference.model_input(moved, mean, std, step.out_dtype)):
            return False, "the model input is not that of the new point"
    return passed, detail


def within_rule(result: Tensor, plain: Tensor, truth: Tensor) -> tuple[bool, str]:
    """Whether ``result`` is at most twice as far from the float64 ``truth`` as plain PyTorch in float32 is.

    The rule of flash-attention's tests. Two roundings at 1, 2⁻²³, are always allowed: plain PyTorch may happen to
    hit a small case exactly.
    """
    error = (result.double() - truth).abs().max().item()
    allowed = max(2 * (plain.double() - truth).abs().max().item(), 2.0**-23)
    return error <= allowed, f"error {error:.1e}, allowed {allowed:.1e}"


def _empty(take: Take, device: torch.device, norm: Norm) -> Outcome:
    images = torch.zeros(0, 3, 8, 8, device=device)
    moved, _ = take(Step(images, images, images, norm, 0.1, 0.1))
    return moved.shape == images.shape, ""


def _not_finite(take: Take, device: torch.device, norm: Norm) -> Outcome:
    images = torch.full((3, 1, 4, 4), 0.5)
    gradient = torch.ones_like(images)
    gradient[0, 0, 0, 0], gradient[1, 0, 1, 1] = math.nan, math.inf
    step = _on(Step(gradient, images, images, norm, 0.1, 0.2), device)
    moved, plain = take(step)[0], reference.pgd_step(step)[0]
    return torch.allclose(moved, plain, rtol=0, atol=2.0**-23, equal_nan=True), "as in plain PyTorch"


def _repeatable(take: Take, device: torch.device, norm: Norm) -> Outcome:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 74, 75, generator=generator)
    gradient = torch.randn(2, 3, 74, 75, generator=generator)
    step = _on(Step(gradient, images, images, norm, 0.5, 0.3), device)
    first, second = (take(step)[0] for _ in range(2))
    return torch.equal(first, second), "same bits"


def _each(step: Step, change: Callable[[Tensor], Tensor]) -> Step:
    """``step`` with its three batches changed."""
    changed: Any = {name: change(getattr(step, name)) for name in ("gradient", "images", "images_adv")}
    return replace(step, **changed)


def _on(step: Step, device: torch.device) -> Step:
    tensors: Any = {name: value.to(device) for name, value in vars(step).items() if isinstance(value, Tensor)}
    return replace(step, **tensors)

"""Compare any implementation of the step with plain PyTorch; the self-test and the tests share these checks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paretune.kernels import pgd_step, random_start, reference
from paretune.kernels.reference import Norm

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

Step = Callable[..., tuple[Tensor, Tensor]]
Start = Callable[..., Tensor]
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


def step_checks(step: Step, device: torch.device) -> Iterator[Check]:
    """``step`` against plain PyTorch on ``device``: L-inf bit for bit, L2 by :func:`within_rule`."""
    for norm in NORMS:
        for shape in SHAPES:
            yield run_check(f"{norm} step {shape}", compare_all, step, device, norm, shape)
        yield run_check(f"{norm} step, empty batch", _empty, step, device, norm)
        yield run_check(f"{norm} step, NaN and infinite gradients", _not_finite, step, device, norm)
        yield run_check(f"{norm} step, twice", _repeatable, step, device, norm)


def start_checks(start: Start, device: torch.device) -> Iterator[Check]:
    """``start`` on ``device`` against plain PyTorch on the CPU: L-inf bit for bit, L2 by :func:`within_rule`."""
    for norm in NORMS:
        for shape in SHAPES:
            yield run_check(f"{norm} start {shape}", _compare_starts, start, device, norm, shape)


def cases(norm: Norm, shape: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps with a name, as keywords: types, layouts, amounts an image, alignments, and gradients of any size."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator)
    noise, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    gradient[..., ::3] = 0
    radius = 0.03 if norm == "Linf" else 0.03 * math.sqrt(images[0].numel())
    tensors = {"gradient": gradient, "images": images, "images_adv": (images + 0.02 * noise).clamp(0, 1)}
    common: dict[str, Any] = {"norm": norm, "step_size": radius / 3, "epsilon": radius}
    normalised = {"mean": torch.linspace(0.4, 0.5, shape[1]), "std": torch.linspace(0.2, 0.3, shape[1])}
    for layout in _LAYOUTS:
        for gradient_dtype, out_dtype in DTYPES:
            chosen = tensors | {"gradient": gradient.to(gradient_dtype)}
            chosen = {name: each.contiguous(memory_format=layout) for name, each in chosen.items()}
            extra = {} if out_dtype is None else normalised | {"out_dtype": out_dtype}
            yield f"{layout}, {gradient_dtype}", chosen | extra | common
    yield "cast only", tensors | common | {"out_dtype": torch.bfloat16}
    yield "downhill", tensors | common | {"step_size": -radius}
    for scale in (1e-42, 1e-30, 0.0, 1e30):
        yield f"gradient times {scale:g}", tensors | common | {"gradient": gradient * scale}
    amounts = torch.linspace(0.5, 1.5, len(images)) * radius
    yield "amounts an image", tensors | common | {"step_size": amounts / 3, "epsilon": amounts}
    one = torch.tensor([radius])[0]
    yield "amounts in one number each", tensors | common | {"step_size": one, "epsilon": one}
    unaligned = {
        name: torch.cat([each.flatten()[:1], each.flatten()])[1:].view(shape)
        for name, each in tensors.items()
    }
    yield "unaligned", unaligned | common
    apart = {name: each.repeat_interleave(2, dim=-1)[..., ::2] for name, each in tensors.items()}
    yield "not contiguous", apart | common
    mixed = tensors | {"images_adv": tensors["images_adv"].contiguous(memory_format=torch.channels_last)}
    yield "mixed layouts", mixed | common


def compare_all(step: Step, device: torch.device, norm: Norm, shape: tuple[int, ...]) -> Outcome:
    """All :func:`cases`; stops at the first that differs."""
    number = 0
    for name, arguments in cases(norm, shape):
        number += 1
        there = {
            key: value.to(device) if isinstance(value, Tensor) and device.type != "cpu" else value
            for key, value in arguments.items()
        }
        passed, detail = compare(step, there)
        if not passed:
            return False, f"{name}: {detail}"
    return True, f"{number} cases, {'bit for bit' if norm == 'Linf' else 'within the rule'}"


def compare(step: Step, arguments: dict[str, Any]) -> Outcome:
    """One step against plain PyTorch: both results, their memory layout, and that the arguments stay as they are."""
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, Tensor)}
    moved, model_input = step(**arguments)
    plain, plain_input = pgd_step(**arguments, fused="torch")
    for key, value in before.items():
        if not torch.equal(value, arguments[key]):
            return False, f"{key} has changed"
    if moved.stride() != plain.stride() or model_input.stride() != plain_input.stride():
        return False, f"strides {moved.stride()} and {model_input.stride()} instead of {plain.stride()}"
    mean, std = (_per_channel(arguments.get(name), moved) for name in ("mean", "std"))
    if arguments["norm"] == "Linf":
        difference = (moved - plain).abs().max().item()
        passed, detail = torch.equal(moved, plain), f"differs by {difference:.1e}"
    else:
        wide = [
            value.double() if isinstance(value, Tensor) else value
            for value in (
                arguments[name] for name in ("gradient", "images", "images_adv", "step_size", "epsilon")
            )
        ]
        truth = reference.l2_step(
            wide[0], wide[1], wide[2], wide[3], wide[4], None if std is None else std.double()
        )
        passed, detail = within_rule(moved, plain, truth)
    if passed and not torch.equal(
        model_input, reference.model_input(moved, mean, std, arguments.get("out_dtype") or torch.float32)
    ):
        return False, "the model input is not that of the new point"
    return passed, detail


def within_rule(found: Tensor, plain: Tensor, truth: Tensor) -> tuple[bool, str]:
    """Whether ``found`` is at most twice as far from the float64 ``truth`` as plain PyTorch in float32 is.

    The rule of flash-attention's tests. Two roundings at 1, 2⁻²³, are always allowed: plain PyTorch may happen to
    hit a small case exactly.
    """
    error = (found.double() - truth).abs().max().item()
    allowed = max(2 * (plain.double() - truth).abs().max().item(), 2.0**-23)
    return error <= allowed, f"error {error:.1e}, allowed {allowed:.1e}"


def _compare_starts(start: Start, device: torch.device, norm: Norm, shape: tuple[int, ...]) -> Outcome:
    seed = torch.tensor(-(2**40) - 3)
    for layout in _LAYOUTS:
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1)).contiguous(
            memory_format=layout
        )
        found = start(images.to(device), 0.1, seed.to(device), norm=norm).cpu()
        plain = random_start(images, 0.1, seed, norm=norm, fused="torch")
        if found.stride() != plain.stride():
            return False, f"strides {found.stride()} instead of {plain.stride()}"
        if norm == "Linf":
            passed, detail = torch.equal(found, plain), f"differs by {(found - plain).abs().max().item():.1e}"
        else:
            passed, detail = within_rule(found, plain, reference.l2_start(images.double(), 0.1, seed))
        if not passed:
            return False, f"{layout}: {detail}"
    return True, "same bits as on the CPU" if norm == "Linf" else "within the rule"


def _empty(step: Step, device: torch.device, norm: Norm) -> Outcome:
    images = torch.zeros(0, 3, 8, 8, device=device)
    moved, _ = step(gradient=images, images=images, images_adv=images, norm=norm, step_size=0.1, epsilon=0.1)
    return moved.shape == images.shape, ""


def _not_finite(step: Step, device: torch.device, norm: Norm) -> Outcome:
    images = torch.full((3, 1, 4, 4), 0.5)
    gradient = torch.ones_like(images)
    gradient[0, 0, 0, 0], gradient[1, 0, 1, 1] = math.nan, math.inf
    tensors: dict[str, Any] = {
        "gradient": gradient.to(device),
        "images": images.to(device),
        "images_adv": images.to(device),
    }
    moved, _ = step(**tensors, norm=norm, step_size=0.1, epsilon=0.2)
    plain, _ = pgd_step(**tensors, norm=norm, step_size=0.1, epsilon=0.2, fused="torch")
    return torch.allclose(moved, plain, rtol=0, atol=2.0**-23, equal_nan=True), "as in plain PyTorch"


def _repeatable(step: Step, device: torch.device, norm: Norm) -> Outcome:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 74, 75, generator=generator).to(device)
    gradient = torch.randn(2, 3, 74, 75, generator=generator).to(device)
    tensors: dict[str, Any] = {"gradient": gradient, "images": images, "images_adv": images}
    first, second = (step(**tensors, norm=norm, step_size=0.5, epsilon=0.3)[0] for _ in range(2))
    return torch.equal(first, second), "same bits"


def _per_channel(values: Tensor | None, images: Tensor) -> Tensor | None:
    return None if values is None else values.view(1, -1, *[1] * (images.ndim - 2))

"""Parts of ``gpu.py`` about the device and the kernels: its peaks, the self-test, one step, ten steps of a small network."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import paretune as pt
from _gpu import BYTES, DTYPES, OPERATIONS, Bench, loss_at, network, of_copy
from _others import STEP_SIZE, THREAT, image_loop
from _record import Work
from paretune.attacks import attack_copy
from paretune.attacks.copy.options import ENGINES
from paretune.kernels import Step, obstacle, pgd_step, reference
from paretune.selftest.checks import selftest
from paretune.selftest.comparing import NORMS, Take, compare

KERNEL = "paretune kernel"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def peaks(bench: Bench) -> None:
    """What the memory and the matrix units of this device do at best, by a large copy and by square products."""
    _copy(bench, 2**18 if bench.small else 2**28)
    bench.forget()
    side = 256 if bench.small else 8192
    for precision in bench.in_each_precision(work := f"product of two matrices of side {side}"):
        _product(bench, work, precision, side)


def _copy(bench: Bench, numbers: int) -> None:
    source = torch.rand(numbers, device=bench.device)
    target = torch.empty_like(source)
    amount = 2 * source.nbytes  # read and written
    _peak(bench, "bytes", f"copy of {source.nbytes} bytes", lambda: target.copy_(source), amount, BYTES)


def _product(bench: Bench, work: str, precision: str, side: int) -> None:
    left, right = (torch.randn(side, side, device=bench.device).to(DTYPES[precision]) for _ in range(2))
    _peak(bench, precision, work, lambda: left @ right, 2 * side**3, OPERATIONS)


def _peak(bench: Bench, name: str, work: str, run: Work, amount: float, unit: str) -> None:
    """The fastest of some rounds is the peak, the median of others its row."""
    precision = "" if name == "bytes" else name
    with bench.guarded(work, "torch", precision=precision):
        bench.peaks[name] = amount / min(bench.seconds_of(run, 3) for _ in range(2 if bench.small else 10))
        columns: dict[str, Any] = {"precision": precision, "unit": unit, "peak": name}
        bench.timed(work, {"torch": run}, against="", calls=3, amount=amount, **columns)


def self_test(bench: Bench) -> None:
    """Every line of ``paretune selftest``, with ``--gpu`` where there is one."""
    status = {True: "passed", False: "failed", None: "measured"}
    for line in selftest(gpu=bench.on_gpu):
        bench.row("paretune selftest", line.name, status[line.passed], note=line.detail)


# ---- one step -----------------------------------------------------------------------------------------------------


def step(bench: Bench) -> None:
    """The tail of a step, from the gradient to the network's next input: one kernel, eager PyTorch, and Inductor.

    Small images are those of which launches, not memory, take the time.
    """
    large, little = ((2, 3, 32, 32),) * 2 if bench.small else ((256, 3, 224, 224), (128, 3, 32, 32))
    for norm in NORMS:
        for precision in ("fp32", "bf16"):
            for layout in LAYOUTS:
                _step(bench, norm, precision, layout, large)
        if little != large:
            _step(bench, norm, "bf16", "NCHW", little)


def _step(bench: Bench, norm: Any, precision: str, layout: str, shape: tuple[int, ...]) -> None:
    step = _random_step(bench.device, norm, DTYPES[precision], LAYOUTS[layout], shape)
    work = f"{norm} step {'x'.join(map(str, shape))}"
    columns: dict[str, Any] = {"precision": precision, "layout": layout}
    others: dict[str, Take] = {KERNEL if bench.on_gpu else "paretune, plain PyTorch on a CPU": pgd_step}
    if bench.on_gpu or (norm, precision, layout) == (
        "Linf",
        "fp32",
        "NCHW",
    ):  # one compilation will do on a CPU
        others["Inductor"] = _compiled(step)
    takes: dict[str, Take] = {"eager PyTorch": reference.pgd_step}
    takes |= {
        name: take for name, take in others.items() if _is_right(bench, work, name, take, step, columns)
    }
    moved = 3 * 4 + step.gradient.element_size() + DTYPES[precision].itemsize
    bench.timed(
        work,
        {name: lambda take=take: take(step) for name, take in takes.items()},  # type: ignore[misc]
        against="eager PyTorch",
        calls=2 if bench.small else 20,
        seconds=2.0,
        images=shape[0],
        amount=moved * step.images.numel(),
        unit=BYTES,
        peak="bytes",
        note=f"rate: of the {moved} bytes a number that one pass must move",
        **columns,
    )
    bench.forget()


def _is_right(bench: Bench, work: str, name: str, take: Take, step: Step, columns: dict[str, Any]) -> bool:
    """Whether ``take`` may be timed: ours as the tests' rule has it, and by the kernel; a compiler's rounding is noted."""
    with bench.guarded(work, name, **columns):
        passed, detail = compare(take, step)
        rule = "bit for bit" if step.norm == "Linf" else "by the rule of the tests"
        if name == "Inductor" and not passed:
            bench.row(work, name, "measured", note=f"not as eager PyTorch {rule}: {detail}", **columns)
            return True
        reason = obstacle(step) if name == KERNEL else None
        detail = f"as eager PyTorch {rule}: {detail}" if reason is None else f"not by the kernel: {reason}"
        return bench.check(work, name, bool(passed) and reason is None, detail, **columns)
    return False


def _random_step(
    device: torch.device, norm: Any, dtype: torch.dtype, layout: torch.memory_format, shape: tuple[int, ...]
) -> Step:
    """As attacks take it: the gradient at the network's input in its precision, whose next input is wanted."""
    draw = torch.Generator(device).manual_seed(0)
    images, noise = (torch.rand(shape, generator=draw, device=device) for _ in range(2))
    gradient = torch.randn(shape, generator=draw, device=device)
    images, noise, gradient = (
        tensor.contiguous(memory_format=layout) for tensor in (images, noise, gradient)
    )
    radius = 0.03 if norm == "Linf" else 0.03 * images[0].numel() ** 0.5
    images_adv = (images + 0.04 * (noise - 0.5)).clamp_(0, 1)
    mean, std = torch.linspace(0.4, 0.5, 3, device=device), torch.linspace(0.2, 0.3, 3, device=device)
    amounts = (torch.tensor(number, device=device) for number in (radius / 4, radius))
    return Step(gradient.to(dtype), images, images_adv, norm, *amounts, mean, std, dtype)


def _compiled(step: Step) -> Take:
    def plain(gradient: Tensor, images: Tensor, images_adv: Tensor) -> tuple[Tensor, Tensor]:
        return reference.pgd_step(replace(step, gradient=gradient, images=images, images_adv=images_adv))

    torch.compiler.reset()  # as many graphs as there are steps are more than one function may have
    compiled = torch.compile(plain, fullgraph=True, dynamic=False)
    return lambda step: compiled(step.gradient, step.images, step.images_adv)


# ---- ten steps ----------------------------------------------------------------------------------------------------


def loop(bench: Bench) -> None:
    """Ten steps on networks that are over before Python has sent the next kernel, by each engine."""
    if bench.small:
        _loop(bench, "test_vit", 32, 4, "fp32")
        return
    _loop(bench, "resnet18", 32, 128, "tf32")
    _loop(bench, "vit_small_patch16_224", 224, 16, "bf16")


def _loop(bench: Bench, name: str, size: int, count: int, precision: str) -> None:
    bench.arithmetic(precision)
    model = network(name, size).to(bench.device)
    draw = torch.Generator(bench.device).manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=draw, device=bench.device)
    labels = model(images).argmax(dim=1)
    work = f"PGD-10, {name}, {size} px"
    columns: dict[str, Any] = {"precision": precision, "images": count}
    # From the image itself: a random start, an image at a time, would be timed too.
    attack = pt.PGD(THREAT, steps=10, step_size=STEP_SIZE, keep="last", random_start=False)
    plain = copy.deepcopy(model).to(DTYPES[precision])
    works: dict[str, Any] = {"autograd.grad loop, plain model": lambda: image_loop(plain, images, labels, 10)}
    victims = {engine: attack_copy(model, precision=of_copy(precision), engine=engine) for engine in ENGINES}
    wanted = attack(victims["eager"], images, labels)
    least = loss_at(model, wanted, labels)
    for engine, victim in victims.items():
        ours = f"paretune {engine}"
        if not bench.on_gpu and engine in ("compiled", "graph"):
            bench.row(work, ours, "left out", note="not on a CPU", **columns)
            continue
        with bench.guarded(work, ours, **columns):
            moved = attack(victim, images, labels)
            same, rise = torch.equal(moved, wanted), loss_at(model, moved, labels)
            right = engine in ("auto", victim.engine) and (same or abs(rise - least) <= 0.02 * abs(least))
            note = f"steps taken {victim.engine}; {'the bits of eager steps' if same else 'other bits'}; loss {rise:.4g}"
            if bench.check(work, ours, right, f"{note} of {least:.4g}", **columns):
                works[ours] = lambda victim=victim: attack(victim, images, labels)
    first = next(iter(works))
    bench.timed(work, works, against=first, rounds=25, seconds=4.0, **columns)
    bench.forget()

"""Checks and timing that need a CUDA device: large batches, CUDA graphs, torch.compile, and how long it all takes."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from paretune.attacks import APGD, L2, PGD, AttackCopy, Linf, attack_copy
from paretune.kernels import Norm, Step, pgd_step, reference
from paretune.selftest.comparing import NORMS, Check, Outcome, Take, run_check

_ROUNDING = 2.0**-22  # L2 is not bit for bit: four roundings at 1


def gpu_checks(device: torch.device) -> Iterator[Check]:
    """What :mod:`~paretune.selftest.comparing` leaves out."""
    properties = torch.cuda.get_device_properties(device)
    yield Check(
        "GPU",
        None,
        f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} processors, "
        f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}",
    )
    for norm in NORMS:
        yield run_check(f"{norm} step, more than 2^31 numbers", _large, device, norm)
        torch.cuda.empty_cache()
        yield run_check(f"{norm} CUDA graph of 10 steps", _graph, device, norm)
        yield run_check(f"{norm} under torch.compile", _compiled, device, norm)
        yield run_check(f"{norm} attack as training makes it", _attack, device, norm)
    yield run_check("CUDA graphs of the looks of a search", _looks, device)
    for shape in ((128, 3, 32, 32), (64, 3, 224, 224), (256, 3, 224, 224)):
        for norm in NORMS:
            yield run_check(f"{norm} time {shape}", _time, device, norm, shape)


def _large(device: torch.device, norm: Norm) -> Outcome:
    """The last image of the batch is where 32-bit offsets would have wrapped around."""
    shape = (17, 2**27 + 3)
    needed = 4 * 6 * math.prod(shape)
    free, _ = torch.cuda.mem_get_info(device)
    if free < needed:
        return None, f"left out: needs {needed / 2**30:.0f} GiB of free memory, has {free / 2**30:.0f}"
    images = torch.full(shape, 0.5, device=device)
    gradient = torch.linspace(-1, 1, len(images), device=device).view(-1, 1).expand(shape).contiguous()
    moved, _ = pgd_step(Step(gradient, images, images, norm, 0.25, 0.125))
    del gradient
    last = Step(torch.ones(1, shape[1], device=device), images[-1:], images[-1:], norm, 0.25, 0.125)
    wanted, _ = reference.pgd_step(last)
    return (moved[-1:] - wanted).abs().max().item() <= _ROUNDING, "the last image is right"


def _graph(device: torch.device, norm: Norm) -> Outcome:
    """Recorded steps of an attack against the same steps without a graph, over all that may change between replays.

    Bit for bit: the amounts are the same numbers in float32 and in float64.
    """
    threat = Linf(2.0**-5) if norm == "Linf" else L2(0.5)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(6)).to(device)
    goals = torch.arange(4, device=device)
    linear = nn.Linear(3 * 8 * 8, 10).to(device)
    network = nn.Sequential(nn.Flatten(), linear)
    plain, graph = (attack_copy(network, engine=engine) for engine in ("eager", "graph"))

    def climb(victim: AttackCopy, batch: Tensor, factor: float) -> Tensor:
        now = threat.with_epsilon(factor * threat.epsilon)
        return victim.ascend(now, batch, batch, goals, step_size=now.epsilon / 4, steps=10)

    def same(batch: Tensor, factor: float = 1.0) -> bool:
        return torch.equal(climb(graph, batch, factor), climb(plain, batch, factor))

    kept = climb(graph, images, 1.0)
    copy = kept.clone()
    outcomes = {
        "same as without": same(images),
        "another batch": same(1 - images),
        "another epsilon": same(images, 0.5),
        "earlier result kept": torch.equal(kept, copy),
    }
    with torch.no_grad():
        linear.weight.neg_()
    for victim in (plain, graph):
        victim.refresh()
    outcomes["other weights"] = same(images)
    outcomes["by a graph"] = graph.engine == "graph"
    wrong = [name for name, good in outcomes.items() if not good]
    return not wrong, ", ".join(wrong or outcomes)


def _compiled(device: torch.device, norm: Norm) -> Outcome:
    threat = Linf(2.0**-5) if norm == "Linf" else L2(0.5)
    images, goals = torch.rand(4, 3, 8, 8, device=device), torch.arange(4, device=device)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).to(device)
    victims = [attack_copy(network, engine=engine) for engine in ("eager", "compiled")]
    plain, compiled = (
        victim.ascend(threat, images, images, goals, step_size=threat.epsilon / 4, steps=4)
        for victim in victims
    )
    error = (compiled - plain).abs().max().item()
    engine = victims[1].engine
    return error <= _ROUNDING and engine == "compiled", f"{engine}, differs by {error:.1e}"


def _attack(device: torch.device, norm: Norm) -> Outcome:
    """The default engine against eager steps, on a network whose steps Python sends in many launches."""
    threat = Linf(2.0**-5) if norm == "Linf" else L2(0.5)
    layers = [part for _ in range(8) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.GELU())]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).to(device)
    images, goals = torch.rand(4, 3, 8, 8, device=device), torch.arange(4, device=device)
    victim = attack_copy(network)
    captured, wanted = (
        PGD(threat, steps=10, keep="last")(attacked, images, goals)
        for attacked in (victim, attack_copy(network, engine="eager"))
    )
    return torch.equal(captured, wanted), f"same as eager steps, by {victim.engine}"


def _looks(device: torch.device) -> Outcome:
    """A search whose looks are replayed against the same without graphs, and passes that cross."""
    layers = [part for _ in range(4) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.GELU())]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).to(device)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(6)).to(device)
    plain, graph = (attack_copy(network, engine=engine) for engine in ("eager", "graph"))
    search = APGD(Linf(2.0**-12), steps=40)  # within which hardly an image is solved

    def same() -> bool:
        labels = plain(images).argmax(dim=1)
        return torch.equal(search(graph, images, labels), search(plain, images, labels))

    def crossed(victim: AttackCopy) -> Tensor:
        leaves = [batch.clone().requires_grad_() for batch in (images, 1 - images)]
        logits = [victim.look(leaf) for leaf in leaves]
        pairs = [
            (scores[:, label].sum(), leaf)
            for label in range(2)
            for scores, leaf in zip(logits, leaves, strict=True)
        ]
        return torch.cat([torch.autograd.grad(*pair, retain_graph=True)[0] for pair in pairs])

    outcomes = {
        "same as eager looks": same(),
        "several gradients": torch.equal(crossed(graph), crossed(plain)),
    }
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.neg_()
    for victim in (plain, graph):
        victim.refresh()
    outcomes["other weights"] = same()
    outcomes["by a graph"] = graph.engine == "graph"
    wrong = [name for name, good in outcomes.items() if not good]
    return not wrong, ", ".join(wrong or outcomes)


def _time(device: torch.device, norm: Norm, shape: tuple[int, ...]) -> Outcome:
    """The whole tail of a step, bfloat16 gradient to bfloat16 input, against eager and compiled PyTorch."""
    images = torch.rand(shape, device=device)
    gradient = torch.randn(shape, device=device).bfloat16()
    mean, std = torch.full((3,), 0.5, device=device), torch.full((3,), 0.25, device=device)
    amount = torch.tensor(0.5, device=device)
    step = Step(gradient, images, images, norm, amount, amount, mean, std, torch.bfloat16)

    def plain(gradient: Tensor, images: Tensor, images_adv: Tensor) -> tuple[Tensor, Tensor]:
        return reference.pgd_step(replace(step, gradient=gradient, images=images, images_adv=images_adv))

    compiled = torch.compile(plain, fullgraph=True, dynamic=False)
    contenders: dict[str, Take] = {
        "kernel": pgd_step,
        "eager": reference.pgd_step,
        "compiled": lambda step: compiled(step.gradient, step.images, step.images_adv),
    }
    seconds = _interleaved(contenders, step)
    # What one pass must move: 2 bytes of gradient and 4 + 4 of images in, 4 + 2 out.
    rate = 16 * images.numel() / seconds["kernel"] / 1e9
    times = ", ".join(f"{name} {1e6 * spent:.1f} µs" for name, spent in seconds.items())
    return None, f"{times}; {rate:.0f} GB/s of the 16 bytes a number that one pass moves"


def _interleaved(contenders: dict[str, Take], step: Step, rounds: int = 20) -> dict[str, float]:
    """Median seconds a call; the contenders take turns, so that clocks and heat are shared."""
    calls, warm_up = 10, 3
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + warm_up):
        for name, take in contenders.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(calls):
                take(step)
            end.record()
            torch.cuda.synchronize()
            if turn >= warm_up:
                times[name].append(begin.elapsed_time(end) / 1000 / calls)
    return {name: statistics.median(spent) for name, spent in times.items()}

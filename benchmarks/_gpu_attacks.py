"""Parts of ``gpu.py`` about attacks on whole networks, beside other libraries."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import paretune as pt
from _gpu import DTYPES, OPERATIONS, Bench, batch, flops_of, loss_at, network, of_copy
from _others import STEP_SIZE, THREAT, image_loop, reference_autoattack
from _record import Work
from paretune.attacks import AttackCopy, AutoAttack, Linf, attack_copy

PLAIN = "autograd.grad loop"
SLACK = 2.0**-22  # x + ε rounds


class Autocast(nn.Module):
    """The usual way into bfloat16: float32 weights, cast at each product."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Float32 logits."""
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.model(images)
        return logits.float()


# ---- PGD ------------------------------------------------------------------------------------------------------------


def pgd_vit(bench: Bench) -> None:
    """PGD-10 on a vision transformer, in each precision."""
    name, size, count = ("test_vit", 32, 4) if bench.small else ("vit_base_patch16_224", 224, 64)
    _pgd(bench, name, size, count, ("NCHW",))


def pgd_convnet(bench: Bench) -> None:
    """PGD-10 on a ConvNet, in each precision; the other libraries in both memory layouts, ours chooses its own."""
    name, size, count = ("test_convnext", 32, 4) if bench.small else ("convnext_tiny", 224, 64)
    _pgd(bench, name, size, count, ("NCHW", "channels_last"))


def _pgd(bench: Bench, name: str, size: int, count: int, layouts: tuple[str, ...]) -> None:
    model = network(name, size).to(bench.device)
    images, labels = batch(bench, model, count, size)
    flops = flops_of(model, images)
    for precision in bench.in_each_precision(work := f"PGD-10, {name}, {size} px"):
        works: dict[str, Work] = {}
        for layout in layouts:
            for form, victim in _forms(model, precision, layout).items():
                given = images.contiguous(memory_format=torch.channels_last) if layout != "NCHW" else images
                works |= _loops(victim, given, labels, f"{form}, {layout}" if len(layouts) > 1 else form)
        ours = attack_copy(model, precision=of_copy(precision))
        _race(bench, work, Victims(model, images, labels, works, ours), precision, 10 * count * flops)
        del works, ours
        bench.forget()


def _forms(model: nn.Module, precision: str, layout: str) -> dict[str, nn.Module]:
    """The victims that a user of other libraries makes of ``model``."""
    plain = copy.deepcopy(model)
    if layout == "channels_last":
        plain = plain.to(memory_format=torch.channels_last)
    if precision != "bf16":
        return {"plain model": plain}
    return {"bfloat16 weights": copy.deepcopy(plain).to(torch.bfloat16), "autocast": Autocast(plain).eval()}


def _loops(victim: nn.Module, images: Tensor, labels: Tensor, form: str) -> dict[str, Work]:
    """PGD-10 of other libraries, which are imported when they are called first."""

    def of_torchattacks() -> Tensor:
        import torchattacks

        attack = torchattacks.PGD(victim, eps=THREAT.epsilon, alpha=STEP_SIZE, steps=10)
        moved: Tensor = attack(images, labels)
        return moved

    def of_foolbox() -> Tensor:
        import foolbox

        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=10, random_start=True)
        wrapped = foolbox.PyTorchModel(victim, bounds=(0, 1), device=images.device)
        moved: Tensor = attack(wrapped, images, labels, epsilons=THREAT.epsilon)[0]
        return moved

    return {
        f"{PLAIN}, {form}": lambda: image_loop(victim, images, labels, 10),
        f"torchattacks, {form}": of_torchattacks,
        f"foolbox, {form}": of_foolbox,
    }


@dataclass(frozen=True, eq=False)
class Victims:
    """A model, what attacks are given, the attacks of others on it, and our copy of it."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    others: dict[str, Work]
    ours: AttackCopy


def _race(bench: Bench, work: str, victims: Victims, precision: str, flops: float) -> None:
    """Check that each attack stays in the ball and that ours climbs as far as the first, then time those that do."""
    model, images, labels, ours = victims.model, victims.images, victims.labels, victims.ours
    columns: dict[str, Any] = {"precision": precision, "images": len(images)}
    attack = pt.PGD(THREAT, steps=10, step_size=STEP_SIZE, keep="last")
    works = victims.others | {"paretune": lambda: attack(ours, images, labels)}
    before, losses = loss_at(model, images, labels), dict[str, float]()
    low, high = (images - THREAT.epsilon).clamp(0, 1), (images + THREAT.epsilon).clamp(0, 1)
    for name, run in works.items():
        with bench.guarded(work, name, **columns):
            moved: Any = run()
            inside = bool(((moved >= low - SLACK) & (moved <= high + SLACK)).all())
            loss = loss_at(model, moved, labels)
            climbed = (
                name != "paretune"
                or not losses
                or loss - before >= 0.9 * (next(iter(losses.values())) - before)
            )
            note = (
                f"{'inside' if inside else 'outside'} the ball, float32 loss from {before:.5g} to {loss:.5g}"
            )
            if bench.check(work, name, inside and climbed, note, **columns):
                losses[name] = loss
    bench.timed(
        work,
        {name: works[name] for name in losses},
        against=next(iter(losses), ""),
        warm_up=1,  # after the check
        amount=flops,
        unit=OPERATIONS,
        peak=precision,
        extra=lambda name: {"note": f"steps taken {ours.engine}"} if name == "paretune" else {},
        **columns,
    )


def compiled(bench: Bench) -> None:
    """PGD-10 on a vision transformer when both sides compile: the plain model, and the step. A CPU compiles neither."""
    name, size, count = ("test_vit", 32, 4) if bench.small else ("vit_base_patch16_224", 224, 64)
    precision = "fp32" if bench.small else "bf16"
    bench.arithmetic(precision)
    model = network(name, size).to(bench.device)
    images, labels = batch(bench, model, count, size)
    theirs = torch.compile(copy.deepcopy(model).to(DTYPES[precision]), disable=bench.small)
    others: dict[str, Work] = {f"{PLAIN}, torch.compile": lambda: image_loop(theirs, images, labels, 10)}
    ours = attack_copy(model, precision=of_copy(precision), engine="eager" if bench.small else "compiled")
    flops = 10 * count * flops_of(model, images)
    work = f"compiled PGD-10, {name}, {size} px"
    _race(bench, work, Victims(model, images, labels, others, ours), precision, flops)


# ---- AutoAttack -------------------------------------------------------------------------------------------------------


def autoattack(bench: Bench) -> None:
    """AutoAttack at a reduced budget, at a radius that breaks about half of the images, beside the reference."""
    name, size, count = ("test_vit", 32, 8) if bench.small else ("vit_base_patch16_224", 224, 512)
    precision = "fp32" if bench.small else "bf16"
    steps, targets, queries = (3, 2, 5) if bench.small else (20, 3, 200)
    bench.arithmetic(precision)
    model = network(name, size, classes=10).to(bench.device)
    images, labels = batch(bench, model, count, size)
    victim = attack_copy(model, precision=of_copy(precision))
    epsilon = _half_broken(model, victim, images[:64], labels[:64])
    plain = copy.deepcopy(model).to(DTYPES[precision])
    ours = AutoAttack(Linf(epsilon), steps=steps, targets=targets, queries=queries)
    robust: dict[str, float] = {}

    def score(side: str, images_adv: Tensor) -> None:
        robust[side] = float((_classes(model, images_adv) == labels).float().mean())

    def reference() -> None:
        whole = reference_autoattack(
            plain, epsilon, steps=steps, targets=targets, queries=queries, device=str(bench.device)
        )
        images_adv: Any = whole.run_standard_evaluation(images.clone(), labels.clone(), batch_size=128)
        score("pyautoattack", images_adv[0] if isinstance(images_adv, tuple) else images_adv)

    bench.timed(
        f"AutoAttack, {steps} steps, {targets} targets, {queries} queries, {name}, {size} px",
        {"pyautoattack": reference, "paretune": lambda: score("paretune", ours(victim, images, labels))},
        against="pyautoattack",
        rounds=3,
        least=1,
        warm_up=0,
        images=count,
        precision=precision,
        extra=lambda side: {"note": f"epsilon {epsilon:.4g}, robust in float32 {robust[side]:.4f}"},
    )
    if "pyautoattack" in robust and "paretune" in robust:
        note = f"robust {robust['paretune']:.4f}, the reference {robust['pyautoattack']:.4f}; 0.02 more would be too many"
        right = robust["paretune"] <= robust["pyautoattack"] + 0.02
        bench.check("AutoAttack", "paretune", right, note, precision=precision, images=count)


def _half_broken(model: nn.Module, victim: AttackCopy, images: Tensor, labels: Tensor) -> float:
    """The radius at which PGD-5 leaves half of the images, by bisection of its logarithm."""
    low, high = 1e-6, 0.5
    for _ in range(8):
        middle = (low * high) ** 0.5
        moved = pt.PGD(Linf(middle), steps=5)(victim, images, labels)
        broken = float((_classes(model, moved) != labels).float().mean())
        low, high = (low, middle) if broken > 0.5 else (middle, high)
    return (low * high) ** 0.5


def _classes(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(dim=1) for part in images.split(64)])

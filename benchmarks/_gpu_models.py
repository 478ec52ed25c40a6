"""Parts of ``gpu.py`` about attacks on whole networks, beside other libraries, and a step of adversarial training."""

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from _gpu import DTYPES, OPERATIONS, Bench, flops_of, loss_at, network
from _others import STEP_SIZE, THREAT, backward_loop, image_loop, reference_autoattack
from _record import Work
from paretune.attacks import AttackCopy, AutoAttack, Linf, attack_copy
from paretune.attacks.copy.options import Engine
from paretune.strategies import trainable_parameters

PLAIN = "autograd.grad loop"
SLACK = 2.0**-22  # x + ε rounds
TARGETS = ("qkv", "proj", "fc1", "fc2")  # every Linear of a block of a ViT


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


def batch(bench: Bench, model: nn.Module, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth patterns of many contrasts with some noise, and the classes that ``model`` sees in them."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=draw) * torch.rand(count, 1, 1, 1, generator=draw)
    fine = F.interpolate(coarse, size=(size, size), mode="bilinear")
    images = (0.9 * fine + 0.1 * torch.rand(count, 3, size, size, generator=draw)).to(bench.device)
    with torch.no_grad():
        return images, torch.cat([model(part).argmax(dim=1) for part in images.split(64)])


# ---- PGD ------------------------------------------------------------------------------------------------------------


def pgd_vit(bench: Bench) -> None:
    """PGD-10 on a vision transformer, in each precision."""
    name, size, count = ("test_vit", 32, 4) if bench.small else ("vit_base_patch16_224", 224, 128)
    _pgd(bench, name, size, count, ("NCHW",))


def pgd_convnet(bench: Bench) -> None:
    """PGD-10 on a ConvNet, in each precision; the other libraries in both memory layouts, ours chooses its own."""
    name, size, count = ("test_convnext", 32, 4) if bench.small else ("convnext_tiny", 224, 128)
    _pgd(bench, name, size, count, ("NCHW", "channels_last"))


def _pgd(bench: Bench, name: str, size: int, count: int, layouts: tuple[str, ...]) -> None:
    model = network(name, size).to(bench.device)
    images, labels = batch(bench, model, count, size)
    flops = flops_of(model, images)
    for precision in bench.precisions:
        bench.arithmetic(precision)
        works: dict[str, Work] = {}
        for layout in layouts:
            for form, victim in _forms(model, precision, layout).items():
                given = images.contiguous(memory_format=torch.channels_last) if layout != "NCHW" else images
                works |= _loops(victim, given, labels, f"{form}, {layout}" if len(layouts) > 1 else form)
        works["paretune"] = _ours(model, images, labels, precision)
        work = f"PGD-10, {name}, {size} px"
        _race(bench, work, model, images, labels, works, precision, 10 * count * flops)
        del works
        bench.forget()


def _ours(model: nn.Module, images: Tensor, labels: Tensor, precision: str, engine: Engine = "auto") -> Work:
    victim = attack_copy(model, precision="bf16" if precision == "bf16" else "fp32", engine=engine)
    attack = pt.PGD(THREAT, steps=10, step_size=STEP_SIZE, keep="last")
    return lambda: attack(victim, images, labels)


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


def _race(
    bench: Bench,
    work: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    works: dict[str, Work],
    precision: str,
    flops: float,
) -> None:
    """Check that each stays in the ball and that ours climbs as far as the others, then time those that do."""
    columns: dict[str, Any] = {"precision": precision, "images": len(images)}
    before, losses = loss_at(model, images, labels), dict[str, float]()
    low, high = (images - THREAT.epsilon).clamp(0, 1), (images + THREAT.epsilon).clamp(0, 1)
    for name, run in works.items():
        with bench.guarded(work, name, **columns):
            moved = run()
            inside = bool(((moved >= low - SLACK) & (moved <= high + SLACK)).all())
            losses[name] = loss_at(model, moved, labels)
            climbed = name != "paretune" or losses[name] - before >= 0.9 * (
                next(iter(losses.values())) - before
            )
            where = "inside the ball" if inside else "outside the ball"
            note = f"{where}, float32 loss from {before:.5g} to {losses[name]:.5g}"
            if not bench.check(work, name, inside and climbed, note, **columns):
                del losses[name]
    first = next(iter(losses), "")
    runs = {name: works[name] for name in losses}
    bench.timed(work, runs, against=first, amount=flops, unit=OPERATIONS, peak=precision, **columns)


def compiled(bench: Bench) -> None:
    """PGD-10 on a vision transformer when both sides compile: the plain model, and the step. A CPU compiles neither."""
    name, size, count = ("test_vit", 32, 4) if bench.small else ("vit_base_patch16_224", 224, 128)
    precision = "fp32" if bench.small else "bf16"
    bench.arithmetic(precision)
    model = network(name, size).to(bench.device)
    images, labels = batch(bench, model, count, size)
    theirs = torch.compile(copy.deepcopy(model).to(DTYPES[precision]), disable=bench.small)
    works: dict[str, Work] = {
        f"{PLAIN}, torch.compile": lambda: image_loop(theirs, images, labels, 10),
        "paretune": _ours(model, images, labels, precision, "eager" if bench.small else "compiled"),
    }
    flops = 10 * count * flops_of(model, images)
    _race(bench, f"compiled PGD-10, {name}, {size} px", model, images, labels, works, precision, flops)


# ---- a step of adversarial training -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Side:
    """One way to train a LoRA under attack: a model, its optimizer, and the attacked copy or none."""

    model: pt.Backbone
    half: bool
    victim: AttackCopy | None
    steps: int

    def __post_init__(self) -> None:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)
        self.attack = pt.PGD(THREAT, steps=self.steps, step_size=STEP_SIZE, keep="last")

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Attack the batch, and train on what comes out."""
        self.model.train()
        cast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.half)
        if self.victim is None:
            with cast:
                images_adv = backward_loop(self.model, images, labels, self.steps)
        else:
            self.victim.refresh()
            images_adv = self.attack(self.victim, images, labels)
        with cast:
            loss = F.cross_entropy(self.model(images_adv).float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def lora(bench: Bench) -> None:
    """PGD-7, forward, backward and AdamW on a LoRA of every Linear of a ViT, beside peft with ``.backward()``."""
    name, size, count, steps = ("test_vit", 32, 4, 2) if bench.small else ("vit_base_patch16_224", 224, 64, 7)
    base = network(name, size)
    work = f"PGD-{steps} and a LoRA step, {name}, {size} px"
    images, labels = batch(bench, copy.deepcopy(base).to(bench.device), count, size)
    beside = _same_as_peft(bench, work, base, images[:8], labels[:8])
    for precision in bench.precisions:
        bench.arithmetic(precision)
        columns: dict[str, Any] = {"precision": precision, "images": count}
        memory: dict[str, dict[str, int]] = {}
        sides: dict[str, Side] = {}
        for side in ("peft, .backward() loop", "paretune") if beside else ("paretune",):
            with bench.guarded(work, side, **columns):
                before = bench.allocated()
                trained = _side(copy.deepcopy(base).to(bench.device), side, precision, steps)
                for _ in range(2):
                    trained.step(images, labels)
                static = bench.allocated() - before
                extra = bench.extra_bytes(lambda trained=trained: trained.step(images, labels))  # type: ignore[misc]
                if bench.on_gpu:
                    memory[side] = {"static_memory_bytes": static, "extra_memory_bytes": extra}
                sides[side] = trained
        bench.timed(
            work,
            {side: lambda trained=trained: trained.step(images, labels) for side, trained in sides.items()},  # type: ignore[misc]
            against=next(iter(sides), ""),
            extra=lambda side, memory=memory: memory.get(side, {}),  # type: ignore[misc]
            **columns,
        )
        del sides
        bench.forget()


def _side(model: pt.Backbone, side: str, precision: str, steps: int) -> Side:
    half = precision == "bf16"
    if side != "paretune":
        return Side(_with_peft(model), half, None, steps)
    pt.adapt(model, pt.LoRA(rank=8, targets=("linear",)))
    return Side(model, half, attack_copy(model, precision="bf16" if half else "fp32"), steps)


def _with_peft(model: pt.Backbone) -> pt.Backbone:
    import peft

    pattern = rf".*blocks\..*\.({'|'.join(TARGETS)})"
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=pattern, modules_to_save=[model.head])
    model.module = peft.get_peft_model(model.module, config)  # type: ignore[assignment]
    return model


def _same_as_peft(bench: Bench, work: str, base: pt.Backbone, images: Tensor, labels: Tensor) -> bool:
    """Whether both give the same logits and gradients, with the same factors: else there is nothing to compare."""
    bench.arithmetic("fp32")
    ours = pt.adapt(copy.deepcopy(base), pt.LoRA(rank=8, targets=("linear",))).to(bench.device)
    with bench.guarded(work, "peft, .backward() loop"):
        theirs = _with_peft(copy.deepcopy(base)).to(bench.device)
        inside = dict(theirs.named_parameters())
        pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for name, factor in trainable_parameters(ours, head=False).items():
            layer, letter = re.fullmatch(r"(.*)\.parametrizations\.weight\.0\.lora_(A|B)", name).groups()  # type: ignore[union-attr]
            (other,) = (
                value
                for key, value in inside.items()
                if key.endswith(f".{layer}.lora_{letter}.default.weight")
            )
            nn.init.normal_(factor, std=0.02)
            other.data.copy_(factor.data)
            pairs.append((factor, other))
        answers = [
            _answer(model.eval(), images, labels, [pair[side] for pair in pairs])
            for side, model in enumerate((ours, theirs))
        ]
        errors = {
            what: float((one - other).norm() / other.norm())
            for what, one, other in zip(
                ("logits", "gradient of the images", "gradient of the factors"), *answers, strict=True
            )
        }
        same = max(errors.values()) < 1e-3
        detail = ", ".join(f"{what} {error:.1e}" for what, error in errors.items())
        return bench.check(
            work,
            "paretune",
            same,
            f"relative difference from peft: {detail}",
            precision="fp32",
            images=len(images),
        )
    return False


def _answer(
    model: nn.Module, images: Tensor, labels: Tensor, factors: list[nn.Parameter]
) -> tuple[Tensor, ...]:
    """Logits, gradient of the images, gradients of the factors in one vector."""
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    gradient, *others = torch.autograd.grad(F.cross_entropy(logits, labels), [leaf, *factors])
    return logits.detach(), gradient, torch.cat([other.flatten() for other in others])


# ---- AutoAttack -------------------------------------------------------------------------------------------------------


def autoattack(bench: Bench) -> None:
    """AutoAttack at a reduced budget, at a radius that breaks about half of the images, beside the reference."""
    name, size, count = ("test_vit", 32, 8) if bench.small else ("vit_base_patch16_224", 224, 512)
    precision = "fp32" if bench.small else "bf16"
    steps, targets, queries = (3, 2, 5) if bench.small else (20, 3, 200)
    bench.arithmetic(precision)
    model = network(name, size, classes=10).to(bench.device)
    images, labels = batch(bench, model, count, size)
    victim = attack_copy(model, precision="bf16" if precision == "bf16" else "fp32")
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

"""Time attacks beside other libraries, and say where the time of a step goes.

    python benchmarks/attacks.py                          # all sections, appends to benchmarks/attacks.csv
    python benchmarks/attacks.py --only pgd-vit floor     # some of them
    python benchmarks/attacks.py --quick --out /tmp/x.csv # smaller batches, fewer rounds: does it run?

Seconds are CPU time of one thread. What is compared is measured in turns in one process, and the medians are compared;
memory is measured in processes of its own.

=================  ==================================================================================================
section            work
=================  ==================================================================================================
pgd-vit            PGD-10 on ViT-S/14 (DINOv2 weights, 98 px)
pgd-convnet        PGD-10 on EfficientNet-Lite0 (ImageNet weights, 112 px)
lora-step          one step of adversarial training of a LoRA (PGD-7, forward, backward, AdamW) on the same ViT
autoattack-vit     AutoAttack at a reduced budget on the same ViT at 28 px, 128 images
autoattack-convnet the same on EfficientNet-Lite0 at 64 px
overhead           share of a step of PGD that is spent outside the network
floor              matrix products of a step timed alone, and the fraction of the step that they are
profile            operators of a step (printed only)
=================  ==================================================================================================
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import paretune as pt
from _others import STEP_SIZE, THREAT, backward_loop, reference_autoattack
from _record import Recorder, Work, in_turns
from paretune.attacks import AutoAttack, Linf, attack_copy
from paretune.attacks.copy import steps
from paretune.attacks.copy.options import CopyOptions
from paretune.attacks.copy.twin import Twin

HERE = Path(__file__).parent
# Radii at which a probe on features of a model that is not robust keeps some of its images.
AUTOATTACK = {
    "autoattack-vit": ("dinov2-small", 28, 1.5 / 255),
    "autoattack-convnet": ("efficientnet-lite0", 64, 0.1 / 255),
}


def network(name: str, size: int) -> pt.Backbone:
    """Published weights and a fresh head of 10 classes, frozen, in evaluation mode."""
    return pt.load_backbone(name, num_classes=10, img_size=size).eval().requires_grad_(False)


def batch(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Random images and labels: time does not depend on what is seen."""
    draw = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, size, size, generator=draw), torch.arange(count) % 10


class Rows(Recorder):
    """The rows of this benchmark."""

    def __init__(self, path: Path) -> None:
        columns = "images rounds cpu_seconds lowest highest images_per_second against ratio required aim note"
        super().__init__(path, columns.split(), "torchattacks", "foolbox", "peft", "pyautoattack")

    def timed(
        self,
        section: str,
        work: str,
        seconds: dict[str, list[float]],
        images: int,
        against: dict[str, tuple[str, float, float]],
        notes: dict[str, str],
    ) -> None:
        """A row for each implementation; ``against`` names its peer, the ratio required and the one aimed at."""
        for name, taken in seconds.items():
            middle = statistics.median(taken)
            found: dict[str, Any] = {
                "images": images,
                "rounds": len(taken),
                "cpu_seconds": middle,
                "lowest": min(taken),
                "highest": max(taken),
                "images_per_second": images / middle,
                "note": notes.get(name, ""),
            }
            for key, (peer, required, aim) in against.items():
                ours, _, _ = key.partition("/")
                if ours == name:
                    ratio = statistics.median(seconds[peer]) / middle
                    self.row(
                        section, work, name, **found, against=peer, ratio=ratio, required=required, aim=aim
                    )
            if all(key.partition("/")[0] != name for key in against):
                self.row(section, work, name, **found)


# ---- PGD --------------------------------------------------------------------------------------------------------


def pgd(record: Rows, section: str, quick: bool, compile: bool) -> None:
    """PGD-10 beside torchattacks on a frozen model, and foolbox, whose backward pass reaches the weights."""
    import foolbox
    import torchattacks

    name, size = ("dinov2-small", 98) if section == "pgd-vit" else ("efficientnet-lite0", 112)
    images, labels = batch(8 if quick else 32, size)
    count = 2 if quick else 10
    frozen, trainable = network(name, size), network(name, size).requires_grad_(True)
    theirs = torchattacks.PGD(frozen, eps=THREAT.epsilon, alpha=STEP_SIZE, steps=count)
    fool = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=count, random_start=True)
    wrapped = foolbox.PyTorchModel(trainable, bounds=(0, 1))
    attack = pt.PGD(THREAT, steps=count, step_size=STEP_SIZE, keep="last")
    works: dict[str, Work] = {
        "torchattacks.PGD, frozen model": lambda: theirs(images, labels),
        "foolbox LinfPGD, .backward() loop": lambda: fool(wrapped, images, labels, epsilons=THREAT.epsilon),
    }
    victims = {
        "paretune fp32": attack_copy(frozen, precision="fp32"),
        "paretune auto": attack_copy(frozen, precision="auto"),
    }
    if compile:
        for precision in ("fp32", "bf16"):
            victims[f"paretune {precision} compiled"] = attack_copy(
                frozen,
                precision=precision,  # type: ignore[arg-type]
                engine="compiled",
            )
    for ours, victim in victims.items():
        works[ours] = lambda victim=victim: attack(victim, images, labels)  # type: ignore[misc]
    seconds = in_turns(works, 3 if quick else 5)
    frozen_loop, backward_loop = list(works)[:2]
    if section == "pgd-vit":
        against = {
            "paretune auto/1": (frozen_loop, 3.0, 4.0),
            "paretune auto/2": (backward_loop, 4.4, 6.0),
            "paretune fp32/1": (frozen_loop, 1.0, 1.1),
        }
    else:
        against = {"paretune fp32/1": (frozen_loop, 1.6, 2.0), "paretune auto/1": (frozen_loop, 1.6, 2.0)}
    against |= {f"{ours}/1": (frozen_loop, 1.0, 1.0) for ours in victims if "compiled" in ours}
    notes = {
        ours: f"{v.decision.precision}: {v.decision.reason}" for ours, v in victims.items() if v.decision
    }
    record.timed(section, f"PGD-{count}, {name}, {size} px", seconds, len(images), against, notes)


# ---- a step of adversarial training -----------------------------------------------------------------------------


def lora_step(record: Rows, quick: bool) -> None:
    """Each side in processes of its own, in turns, because a peak of memory is a process's."""
    images, rounds = (4, 1) if quick else (16, 3)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, results in found.items():
            command = [sys.executable, __file__, "--side", side, "--images", str(images)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    theirs, ours = "peft LoRA, .backward() loop", SIDES[1:]
    names = {"peft": theirs} | {side: side for side in ours}
    work = "PGD-7 and LoRA step, dinov2-small, 98 px"
    seconds = {names[side]: [each["seconds"] for each in results] for side, results in found.items()}
    notes = {side: str(found[side][0]["reason"]) for side in ours}
    record.timed(
        "lora-step", work, seconds, images, {f"{side}/1": (theirs, 3.0, 4.5) for side in ours}, notes
    )
    peaks = {
        side: statistics.median(one["extra_bytes"] for one in results) for side, results in found.items()
    }
    for side, peak in peaks.items():
        shares = (
            {} if side == "peft" else {"against": theirs, "ratio": peak / peaks["peft"], "required": 0.45}
        )
        copy = f" and its attack copy of {found[side][0]['copy_bytes']:.0f}" if shares else ""
        note = f"{peak:.0f} bytes beyond the model{copy}"
        record.row("lora-memory", work, names[side], images=images, note=note, **shares)


def one_side(side: str, count: int) -> None:
    """Three steps of adversarial training on one side; prints seconds of a step and the peak of memory as JSON.

    The baseline of the memory is taken with the adapted model, and on our side its attack copy, in place; what making the
    copy took at its peak is forgotten, what stays of it is printed too. Linux only.
    """
    images, labels = batch(count, 98)
    backbone = network("dinov2-small", 98)
    result: dict[str, Any] = {"copy_bytes": 0, "reason": ""}
    if side == "peft":
        import peft

        config = peft.LoraConfig(
            r=8, target_modules=r".*blocks\..*\.(qkv|proj|fc1|fc2)", modules_to_save=["head"]
        )
        backbone.module = peft.get_peft_model(backbone.module, config)
    else:
        pt.adapt(backbone, pt.LoRA(rank=8, targets=("linear",)))
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    attack = pt.PGD(THREAT, steps=7, step_size=STEP_SIZE, keep="last")
    victim = None
    if side != "peft":
        before = memory_bytes("VmRSS")
        victim = attack_copy(backbone, precision=side.removeprefix("paretune "))  # type: ignore[arg-type]
        leaf = images[:2].clone().requires_grad_()
        victim(leaf)
        del leaf
        result["copy_bytes"] = max(0, memory_bytes("VmRSS") - before)
        assert victim.decision is not None
        result["reason"] = f"{victim.decision.precision}: {victim.decision.reason}"
    forget_peak()
    baseline = memory_bytes("VmRSS")
    taken = []
    for _ in range(3):
        began = time.process_time()
        if victim is None:
            images_adv = backward_loop(backbone.train(), images, labels, 7)
        else:
            victim.refresh()
            images_adv = attack(victim, images, labels)
        backbone.train()
        half = victim is not None and victim.precision == "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = F.cross_entropy(backbone(images_adv).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken.append(time.process_time() - began)
    result |= {"seconds": statistics.median(taken[1:]), "extra_bytes": memory_bytes("VmHWM") - baseline}
    print(json.dumps(result))


def memory_bytes(field: str) -> int:
    """Memory of this process: now (``VmRSS``) or the most since :func:`forget_peak` (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def forget_peak() -> None:
    """Let the peak start from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


# ---- AutoAttack -------------------------------------------------------------------------------------------------


def autoattack(record: Rows, section: str, quick: bool) -> None:
    """The reference and ours on a probe on features of real images; both answers are scored in float32."""
    backbone, size, epsilon = AUTOATTACK[section]
    count = 16 if quick else 128
    aa_steps, targets, queries = (5, 2, 20) if quick else (10, 3, 100)
    model = network(backbone, size)
    data = pt.load_data("digits", img_size=size)
    fit_head(model, *data.train[: len(data.train)])
    images, labels = data.report[:count]
    whole = reference_autoattack(
        model, epsilon, steps=aa_steps, targets=targets, queries=queries, device="cpu"
    )
    ours = AutoAttack(Linf(epsilon), steps=aa_steps, targets=targets, queries=queries)
    robust: dict[str, float] = {}

    def score(name: str, images_adv: Any) -> None:
        if isinstance(images_adv, tuple):  # the reference returns labels too
            images_adv = images_adv[0]
        with torch.no_grad():
            right = (model(images_adv).argmax(1) == labels) & (model(images).argmax(1) == labels)
        robust[name] = float(right.float().mean())

    victim = attack_copy(model, precision="auto")
    works: dict[str, Work] = {
        "pyautoattack": lambda: score(
            "pyautoattack", whole.run_standard_evaluation(images.clone(), labels.clone(), batch_size=count)
        ),
        "paretune auto": lambda: score("paretune auto", ours(victim, images, labels)),
    }
    seconds = in_turns(works, 1 if quick else 3)
    notes = {name: f"robust accuracy {value:.4f}" for name, value in robust.items()}
    budget = f"AutoAttack, {aa_steps} steps, {targets} targets, {queries} queries, {backbone}, {size} px"
    against = {"paretune auto/1": ("pyautoattack", 2.3, 4.0)}
    record.timed(section, budget, seconds, count, against, notes)


def fit_head(model: pt.Backbone, images: Tensor, labels: Tensor) -> None:
    """Logistic regression on the features, in place."""
    from sklearn.linear_model import LogisticRegression

    head: Any = model.module.get_submodule(model.head)
    entering: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _m, args: entering.append(args[0]))
    with torch.no_grad():
        for part in images.split(128):
            model(part)
    hook.remove()
    fitted = LogisticRegression(max_iter=2000).fit(torch.cat(entering).numpy(), labels.numpy())
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.coef_))
        head.bias.copy_(torch.from_numpy(fitted.intercept_))


# ---- where the time goes ----------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Notes the arguments of every matrix product and convolution that runs."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and keep its arguments."""
        if func._overloadpacket.__name__ in self.NAMES:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def floor(record: Rows, quick: bool) -> None:
    """Each product of a gradient step alone, with its own arguments and strides, against the whole step."""
    images, labels = batch(8 if quick else 32, 98)
    frozen = network("dinov2-small", 98)
    for precision in ("fp32", "bf16"):
        victim = attack_copy(frozen, precision=precision)  # type: ignore[arg-type]

        def step(victim: Any = victim) -> Tensor:
            found: Tensor = victim.ascend(THREAT, images, images, labels, step_size=STEP_SIZE)
            return found

        step()
        with Products() as products:
            step()

        def alone(calls: Any = products.calls) -> None:
            with torch.no_grad():
                for func, args, kwargs in calls:
                    func(*args, **kwargs)

        seconds = in_turns({"step": step, "products": alone}, 3 if quick else 7)
        whole, part = (statistics.median(seconds[name]) for name in ("step", "products"))
        record.row(
            "floor",
            "one step of PGD, dinov2-small, 98 px",
            f"paretune {precision}",
            images=len(images),
            rounds=len(seconds["step"]),
            cpu_seconds=whole,
            lowest=min(seconds["step"]),
            highest=max(seconds["step"]),
            images_per_second=len(images) / whole,
            against=f"its {len(products.calls)} matrix products alone, {part:.4g} s",
            ratio=part / whole,
            required=0.33,
            aim=0.6,
        )


def overhead(record: Rows, quick: bool) -> None:
    """What a step does outside the network, alone, against the whole step."""
    images, labels = batch(8 if quick else 32, 98)
    twin = Twin(network("dinov2-small", 98), torch.float32, CopyOptions())
    victim = attack_copy(network("dinov2-small", 98), precision="fp32")
    ascent = steps.Ascent(THREAT, images, labels, STEP_SIZE, THREAT.epsilon, False, int(labels.max()))
    gradient = torch.randn(images.shape)
    bounds = ascent.bounds()

    def outside() -> None:
        with torch.no_grad():
            twin.enter(steps.tail(twin, images, gradient, images, bounds, STEP_SIZE))
            steps.is_finite(gradient, gradient.sum())

    works: dict[str, Work] = {
        "step": lambda: victim.ascend(THREAT, images, images, labels, step_size=STEP_SIZE, steps=2),
        "outside": lambda: [outside() for _ in range(20)],
    }
    seconds = in_turns(works, 3 if quick else 7)
    whole, part = statistics.median(seconds["step"]) / 2, statistics.median(seconds["outside"]) / 20
    record.row(
        "overhead",
        "one step of PGD, dinov2-small, 98 px",
        "paretune fp32",
        images=len(images),
        rounds=len(seconds["step"]),
        cpu_seconds=whole,
        against=f"step, projection, normalisation and checks alone, {part:.4g} s",
        ratio=part / whole,
        required=0.03,
        aim=0.01,
    )


def profile(quick: bool) -> None:
    """Print the operators of one step of PGD by their own time, plain and in the attack copy."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    images, labels = batch(8 if quick else 32, 98)
    frozen = network("dinov2-small", 98)

    def plain() -> None:
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(frozen(leaf), labels, reduction="sum"), leaf)

    works: dict[str, Work] = {"plain model": plain}
    for precision in ("fp32", "bf16"):
        victim = attack_copy(frozen, precision=precision)  # type: ignore[arg-type]
        works[precision] = lambda victim=victim: victim.ascend(  # type: ignore[misc]
            THREAT, images, images, labels, step_size=STEP_SIZE
        )
    for name, work in works.items():
        work()
        with profiler(activities=[ProfilerActivity.CPU]) as seen:
            work()
        print(name, seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=15), sep="\n")


SIDES = ("peft", "paretune auto", "paretune bf16")
SECTIONS = (
    "pgd-vit",
    "pgd-convnet",
    "lora-step",
    "autoattack-vit",
    "autoattack-convnet",
    "overhead",
    "floor",
    "profile",
)


def main() -> None:
    """Run the sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="smaller batches and fewer rounds")
    parser.add_argument("--compile", action="store_true", help="also time compiled steps; takes minutes more")
    parser.add_argument("--out", type=Path, default=HERE / "attacks.csv")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.side:
        one_side(options.side, options.images)
        return
    record = Rows(options.out)
    for section in options.only:
        print(f"== {section}", file=sys.stderr)
        if section.startswith("pgd"):
            pgd(record, section, options.quick, options.compile)
        elif section == "lora-step":
            lora_step(record, options.quick)
        elif section.startswith("autoattack"):
            autoattack(record, section, options.quick)
        elif section == "overhead":
            overhead(record, options.quick)
        elif section == "floor":
            floor(record, options.quick)
        else:
            profile(options.quick)


if __name__ == "__main__":
    main()

"""The part of ``gpu.py`` about training: a step of adversarial training of a LoRA, beside peft."""

import copy
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretune as pt
from _gpu import Bench, batch, network, of_copy
from _others import STEP_SIZE, THREAT, backward_loop
from paretune.attacks import AttackCopy, attack_copy
from paretune.strategies import trainable_parameters

PEFT = "peft, .backward() loop"
TARGETS = ("qkv", "proj", "fc1", "fc2")  # every Linear of a block of a ViT


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
    names = (PEFT, "paretune") if _same_as_peft(bench, work, base, images[:8], labels[:8]) else ("paretune",)
    for precision in bench.in_each_precision(work):
        columns: dict[str, Any] = {"precision": precision, "images": count}
        sides: dict[str, Side] = {}
        notes: dict[str, dict[str, Any]] = {}
        for side in names:
            with bench.guarded(work, side, **columns):
                sides[side], notes[side] = _at_work(bench, base, side, precision, steps, images, labels)
        bench.timed(
            work,
            {side: partial(trained.step, images, labels) for side, trained in sides.items()},
            against=names[0],
            warm_up=1,  # after those of the memory
            extra=notes.__getitem__,
            **columns,
        )
        del sides
        bench.forget()


def _at_work(
    bench: Bench, base: pt.Backbone, side: str, precision: str, steps: int, images: Tensor, labels: Tensor
) -> tuple[Side, dict[str, Any]]:
    """A side after its first steps, and the bytes that it holds between steps and needs beyond that in one."""
    before = bench.allocated()
    trained = _side(copy.deepcopy(base).to(bench.device), side, precision, steps)
    for _ in range(2):
        trained.step(images, labels)
    notes: dict[str, Any] = {}
    if bench.on_gpu:
        notes["static_memory_bytes"] = bench.allocated() - before
        notes["extra_memory_bytes"] = bench.extra_bytes(partial(trained.step, images, labels))
    if trained.victim is not None:
        notes["note"] = f"steps taken {trained.victim.engine}"
    return trained, notes


def _side(model: pt.Backbone, side: str, precision: str, steps: int) -> Side:
    half = precision == "bf16"
    if side != "paretune":
        return Side(_with_peft(model), half, None, steps)
    pt.adapt(model, pt.LoRA(rank=8, targets=("linear",)))
    return Side(model, half, attack_copy(model, precision=of_copy(precision)), steps)


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
    with bench.guarded(work, PEFT):
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

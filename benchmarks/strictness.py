"""Compare the robust accuracy that paretune's attacks find with that of other libraries, at one budget.

    python benchmarks/strictness.py                      # appends to benchmarks/strictness.csv
    python benchmarks/strictness.py --models DIR         # keeps the two models there, or uses them
    python benchmarks/strictness.py --only APGD --norm L2 --seeds 0 1 2   # some of the rows, with several starts

Two adversarially fine-tuned models, one ViT and one ConvNet, on real images. Every library attacks the same images of the
report split with the same threat, steps, step size, targets and queries; every answer is scored by the same float32 model.
PGD and APGD attack 500 images, AutoAttack the first 128 of them. Seconds are CPU time of one thread.
"""

import argparse
import importlib.util
import itertools
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paretune as pt
from _record import append, machine
from paretune.attacks import APGD, AutoAttack, Threat, attack_copy

HERE = Path(__file__).parent
Search = Callable[[Tensor, Tensor], Tensor]
BATCH = 125
EPSILON = 2 / 255
PGD_STEPS, APGD_STEPS = 20, 50
AA_STEPS, AA_TARGETS, AA_QUERIES, AA_IMAGES = 25, 3, 500, 128
TASKS = {"dinov2-small": pt.LoRA(), "efficientnet-lite0": pt.FullFineTune()}


def trained(name: str, directory: Path) -> tuple[pt.Backbone, Tensor, Tensor]:
    """The adversarially fine-tuned model, and 500 images and labels it has not seen."""
    data = pt.load_data("fashion-mnist", img_size=28, limit=2000)
    backbone = pt.load_backbone(name, num_classes=10, img_size=28)
    if (directory / name / "DONE").exists():
        pt.load_adapter(backbone, directory / name / "adapter")
    else:
        pt.adapt(backbone, TASKS[name])
        objective = pt.AdversarialTraining(pt.PGD(pt.Linf(EPSILON), steps=7))
        pt.train(backbone, data, objective, epochs=5, eval_every=10_000, out=directory / name)
    images, labels = data.report[:500]
    return backbone.eval().requires_grad_(False), images, labels


def searches(model: pt.Backbone, threat: Threat, seed: int) -> Iterator[tuple[str, str, str, Search]]:
    """(attack, budget, library, search) of all that are compared under one threat."""
    import foolbox
    import pyautoattack
    import torchattacks
    from pyautoattack.autopgd_base import APGDAttack

    norm, epsilon = type(threat).__name__, threat.epsilon
    step = 2.5 * epsilon / PGD_STEPS

    # bfloat16 where precision="auto" takes it, at the threat that the models were trained for.
    faithful = norm == "Linf" and "dinov2" in model.architecture
    for precision in ("fp32", "bf16") if faithful else ("fp32",):
        victim = attack_copy(model, precision=precision)
        pgd, apgd = pt.PGD(threat, steps=PGD_STEPS), APGD(threat, steps=APGD_STEPS)
        aa = AutoAttack(threat, steps=AA_STEPS, targets=AA_TARGETS, queries=AA_QUERIES)
        name = f"paretune {precision}"
        yield "PGD", f"{PGD_STEPS} steps", name, lambda x, y, a=pgd, v=victim: a(v, x, y, seed=seed)
        yield "APGD-CE", f"{APGD_STEPS} steps", name, lambda x, y, a=apgd, v=victim: a(v, x, y, seed=seed)
        if norm == "Linf":
            yield "AutoAttack", AA_BUDGET, name, lambda x, y, a=aa, v=victim: a(v, x, y, seed=seed)

    peer = (torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2)(
        model, eps=epsilon, alpha=step, steps=PGD_STEPS
    )
    yield "PGD", f"{PGD_STEPS} steps", "torchattacks", peer
    peer = torchattacks.APGD(model, norm=norm, eps=epsilon, steps=APGD_STEPS, seed=seed)
    yield "APGD-CE", f"{APGD_STEPS} steps", "torchattacks", peer

    kind = foolbox.attacks.LinfPGD if norm == "Linf" else foolbox.attacks.L2PGD
    fool = kind(abs_stepsize=step, steps=PGD_STEPS, random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    yield "PGD", f"{PGD_STEPS} steps", "foolbox", lambda x, y: fool(wrapped, x, y, epsilons=epsilon)[1]

    reference = APGDAttack(
        model, n_iter=APGD_STEPS, norm=norm, n_restarts=1, eps=epsilon, seed=seed, device="cpu"
    )
    reference.logger = None
    yield "APGD-CE", f"{APGD_STEPS} steps", "pyautoattack", lambda x, y: reference.perturb(x, y)

    if importlib.util.find_spec("adv_lib"):
        # It imports visdom, which does not install everywhere and is not used here.
        sys.modules.setdefault("visdom", types.SimpleNamespace(Visdom=object))  # type: ignore[arg-type]
        from adv_lib.attacks import apgd as their_apgd
        from adv_lib.attacks import pgd_linf

        if norm == "Linf":
            yield (
                "PGD",
                f"{PGD_STEPS} steps",
                "adv-lib",
                lambda x, y: pgd_linf(model, x, y, epsilon, steps=PGD_STEPS, absolute_step_size=step),
            )
        order = float("inf") if norm == "Linf" else 2
        yield (
            "APGD-CE",
            f"{APGD_STEPS} steps",
            "adv-lib",
            lambda x, y: their_apgd(model, x, y, epsilon, order, n_iter=APGD_STEPS, loss_function="ce"),
        )

    if norm == "Linf":
        whole = pyautoattack.AutoAttack(model, norm=norm, eps=epsilon, seed=seed, device="cpu")
        whole.verbose = False
        whole.apgd.n_iter = whole.apgd_targeted.n_iter = whole.fab.n_iter = AA_STEPS
        whole.apgd.n_restarts = whole.apgd_targeted.n_restarts = whole.fab.n_restarts = 1
        whole.apgd_targeted.n_target_classes = whole.fab.n_target_classes = AA_TARGETS
        whole.square.n_queries = AA_QUERIES
        yield (
            "AutoAttack",
            AA_BUDGET,
            "pyautoattack",
            lambda x, y: whole.run_standard_evaluation(x, y, batch_size=BATCH),
        )


AA_BUDGET = f"{AA_STEPS} steps, {AA_TARGETS} targets, {AA_QUERIES} queries, 1 restart"


def measured(
    model: nn.Module, search: Search, images: Tensor, labels: Tensor, threat: Threat, seed: int
) -> dict[str, Any]:
    """Robust accuracy in float32, and what was spent on it."""
    survived, seconds, farthest = 0, 0.0, 0.0
    for start in range(0, len(images), BATCH):
        x, y = images[start : start + BATCH], labels[start : start + BATCH]
        torch.manual_seed(start + len(images) * seed)  # for those that take no seed
        before = time.process_time()
        found = search(x.clone(), y.clone())
        found = (found[0] if isinstance(found, tuple) else found).detach()
        seconds += time.process_time() - before
        farthest = max(farthest, float(threat.distance(found, x).max()))
        with torch.no_grad():
            survived += int(((model(found).argmax(1) == y) & (model(x).argmax(1) == y)).sum())
    return {
        "robust": survived / len(images),
        "images": len(images),
        "cpu_seconds": round(seconds, 2),
        "farthest": f"{farthest:.6g}",
    }


def main() -> None:
    """Train or load, attack, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, help="directory of the two trained runs")
    parser.add_argument("--model", choices=TASKS, help="one of the two")
    parser.add_argument("--only", default="", help="part of the name of an attack, such as PGD or AutoAttack")
    parser.add_argument("--library", default="", help="part of the name of a library")
    parser.add_argument("--norm", choices=("Linf", "L2"), nargs="+", default=("Linf", "L2"))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="of the starts")
    parser.add_argument("--out", type=Path, default=HERE / "strictness.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = machine("torchattacks", "foolbox", "pyautoattack")
    with tempfile.TemporaryDirectory() as scratch:
        for name in [options.model] if options.model else TASKS:
            model, images, labels = trained(name, options.models or Path(scratch))
            with torch.no_grad():
                clean = float((model(images).argmax(1) == labels).float().mean())
            threats = {"Linf": pt.Linf(EPSILON), "L2": pt.L2(0.25)}
            for norm, seed in itertools.product(options.norm, options.seeds):
                threat = threats[norm]
                for attack, budget, library, search in searches(model, threat, seed):
                    if options.only not in attack or options.library not in library:
                        continue
                    many = AA_IMAGES if attack == "AutoAttack" else len(images)
                    row = shared | {
                        "model": f"{name} {TASKS[name]!r}",
                        "clean": clean,
                        "threat": repr(threat),
                    }
                    row |= {"attack": attack, "budget": budget, "library": library}
                    row |= measured(model, search, images[:many], labels[:many], threat, seed) | {
                        "seed": seed
                    }
                    append(options.out, row)
                    print(name, threat, seed, attack, library, row["robust"], row["cpu_seconds"], flush=True)


if __name__ == "__main__":
    main()

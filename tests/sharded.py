"""Runs whose trained weights two processes hold in shards, or one whole.

Usage: [torchrun …] tests/sharded.py DIRECTORY strategies|objectives|half|rest|refused.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch.distributed.tensor import DTensor

import paretune as pt
from paretune.strategies import STRATEGIES
from paretune.training import EWC, Natural, loop
from tests import tiny, together
from tests.objectives_together import OBJECTIVES
from tests.processes import note_threads_at_exit
from tests.sharing import stop_in_sixth_step
from tests.unit.training.objectives.batches import without_dropout

RANK = os.environ.get("RANK", "0")


def trained(model: pt.Backbone) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def save(path: Path, values: dict[str, torch.Tensor]) -> None:
    if RANK == "0":
        torch.save(values, path)


def strategies(directory: Path) -> None:
    """What each changes on a small ViT in three steps."""
    data = pt.load_data("digits", img_size=16, limit=100)
    attacks = [pt.PGD(pt.Linf(4 / 255), steps=1)]
    for name, kind in STRATEGIES.items():
        if name in ("Union", "Peft"):  # which are made of others, and of what peft has
            continue
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = timm.create_model("test_vit", num_classes=10, img_size=16)
        strategy = kind(size=2) if name == "VisualPrompt" else kind()
        model = pt.adapt(pt.Backbone(network, image_size=16), strategy, data=data.train)
        start = trained(model)
        pt.train(
            model,
            data,
            Natural(),
            out=directory / name,
            steps=3,
            batch_size=8,
            attacks=attacks,
            progress=False,
        )
        save(directory / f"{name}.pt", {part: end - start[part] for part, end in trained(model).items()})


def objectives(directory: Path) -> None:
    """Those that can be sharded, of all weights; each process notes how many of these it holds."""
    learners = []
    take = loop.take

    def noting(model: pt.Backbone, learner: pt.Backbone) -> None:
        learners.append(learner)
        take(model, learner)

    loop.take = noting
    for name, changes in OBJECTIVES.items():
        if not changes["objective"].shardable:
            continue
        model = without_dropout(pt.FullFineTune())
        tiny.run(directory / name, model=model, **({"steps": 4, "batch_size": 16} | changes))
        save(directory / f"{name}.pt", trained(model))
    held = [p.to_local() if isinstance(p, DTensor) else p for p in learners[-1].parameters()]
    (directory / f"held-{RANK}").write_text(
        f"{sum(p.numel() for p in held)} {sum(p.numel() for p in model.parameters())}"
    )


def learn(directory: Path, *, half: bool) -> None:
    """All that a run can keep and be sharded, to its end or, if ``half``, into the sixth step."""
    if half:
        stop_in_sixth_step()
    model = without_dropout(pt.FullFineTune())
    options = {"ema": 0.9, "awp": 0.01, "accumulate": 2, "keep": "clean"}
    with contextlib.suppress(InterruptedError):
        tiny.run(directory / "run", model=model, steps=8, batch_size=16, eval_every=4, **options)
        save(directory / "run.pt", trained(model))


def refused(directory: Path) -> None:
    """What cannot be sharded; each process writes why."""
    trials: dict[str, Any] = {
        "anchored": lambda out: tiny.run(out, objective=Natural() + 0.1 * EWC(examples=4)),
        "tasks": lambda out: together.run(out),
        "auto": lambda out: tiny.run(out, precision="auto"),
    }
    for name, train in trials.items():
        try:
            train(directory / name)
        except ValueError as error:
            assert not (directory / name).exists()
            (directory / f"{name}-{RANK}").write_text(str(error))
    os.environ["FSDP_VERSION"] = "1"
    try:
        tiny.run(directory / "first")
    except ValueError as error:
        (directory / f"first-{RANK}").write_text(str(error))


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2]
    note_threads_at_exit(where)
    if what in ("half", "rest"):
        learn(where, half=what == "half")
    else:
        {"strategies": strategies, "objectives": objectives, "refused": refused}[what](where)

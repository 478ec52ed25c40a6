"""What processes send each other, and runs that another number of them goes on with.

Usage: [torchrun …] tests/sharing.py DIRECTORY sent|half|rest.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import paretune as pt
from paretune.training import ATTA, MART, AdversarialTraining, measuring
from tests import tiny
from tests.unit.training.objectives.batches import without_dropout

ATTACK = pt.PGD(pt.Linf(4 / 255), steps=2)
MAIN = os.environ.get("RANK", "0") == "0"


class Idle(nn.Module):
    """A layer with a weight that nothing uses, and one that each process skips by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.sometimes = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.sometimes if torch.rand(()) < 0.5 or not self.training else x


def sent(directory: Path) -> None:
    """Note how many numbers each sum over the processes has, by the run."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def noting(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if tensor.is_floating_point():
            sizes.append(tensor.numel())
        return all_reduce(tensor, *arguments, **options)

    dist.all_reduce = noting  # type: ignore[assignment]
    noted = {}
    for name, changes in {
        "plain": {},
        "parts": {"accumulate": 4, "objective": MART(ATTACK)},
        "perturbed": {"accumulate": 2, "awp": 0.01},
    }.items():
        model = without_dropout(pt.BitFit())
        sizes.clear()
        tiny.run(directory / name, model=model, **({"steps": 3, "batch_size": 16, "keep": "last"} | changes))
        trained = [p for p in model.parameters() if p.requires_grad]
        noted[name] = {
            "sizes": list(sizes),
            "numbers": sum(p.numel() for p in trained),
            "tensors": len(trained),
        }
    network = tiny.network()
    network.insert(0, Idle())
    model = pt.adapt(pt.Backbone(network.eval(), image_size=8), pt.FullFineTune(bn="adapt"))
    tiny.run(directory / "idle", model=model, steps=4, batch_size=16)
    values = {name: value.detach() for name, value in model.named_parameters()}
    torch.save(values, directory / f"idle-{os.environ.get('RANK', '0')}.pt")
    if MAIN:
        (directory / "sent.json").write_text(json.dumps(noted))


COURSES: dict[str, dict[str, Any]] = {
    "natural": {"objective": pt.training.Natural()},
    "memory": {
        "objective": ATTA(ATTACK),
        "batch_size": 64,
        "augmentation": "flip+crop",
        "epsilon": pt.EpsilonSchedule.fixed(),
    },
    "all": {
        "objective": AdversarialTraining(ATTACK) + 0.1 * pt.training.L2SP(),
        "accumulate": 2,
        "awp": 0.01,
        "ema": 0.9,
        "keep": "clean",
        "freezing": pt.training.LPFT(0.4),
        "balance": "sampling",
    },
}


def stop_in_sixth_step() -> None:
    """Interrupt every run of this process there, in all processes alike."""
    guard = measuring.check_divergence

    def stop(values: Any, step: int, lr: float, **options: Any) -> None:
        if step == 6:
            raise InterruptedError
        guard(values, step, lr, **options)

    measuring.check_divergence = stop


def learn(directory: Path, *, half: bool) -> None:
    """Each course without dropout, to its end or, if ``half``, into the sixth step, with a checkpoint of the fourth."""
    if half:
        stop_in_sixth_step()
    for name, changes in COURSES.items():
        model = without_dropout(pt.LoRA(rank=2))
        options = {"steps": 8, "batch_size": 16, "eval_every": 4} | changes
        with contextlib.suppress(InterruptedError):
            tiny.run(directory / name, model=model, **options)
        if MAIN and not half:
            values = {key: value.detach() for key, value in model.named_parameters() if value.requires_grad}
            torch.save(values, directory / f"{name}.pt")


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2]
    if what == "sent":
        sent(where)
    else:
        learn(where, half=what == "half")

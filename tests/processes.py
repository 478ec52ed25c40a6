"""What several processes do together, started by torchrun. Usage: torchrun … tests/processes.py DIRECTORY."""

import atexit
import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import paretune as pt
from paretune.training import LPFT, EpsilonSchedule, measuring
from tests import tiny


def note_threads_at_exit(directory: Path) -> None:
    """Write which threads this process has when all that training registers for its exit is done.

    To be called before training, as what is registered first is called last.
    """

    @atexit.register
    def _() -> None:
        names = [(thread / "comm").read_text() for thread in Path("/proc/self/task").iterdir()]
        (directory / f"threads-{os.environ.get('RANK', '0')}").write_text("".join(names))


def stop_at_6(values: Any, step: int, lr: float, **_: Any) -> None:
    if step == 6:
        raise LookupError


def damage(run: Path, name: str) -> None:
    """A copy of ``run`` that lacks a part."""
    copied = run.with_name(f"{run.name}-{name}")
    shutil.copytree(run, copied)
    if name == "log.jsonl":
        lines = (copied / name).read_text().splitlines(keepends=True)
        (copied / name).write_text("".join(lines[:2] + lines[3:]))
    else:
        shutil.rmtree(copied / name)


if __name__ == "__main__":
    directory, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
    note_threads_at_exit(directory)
    standing = {"optimizer": pt.training.AdamW(1e-12), "objective": pt.training.Natural()}
    for name, changes in (("learning", {}), ("standing", standing)):
        model = tiny.backbone(pt.FullFineTune(bn="adapt"))
        tiny.run(directory / name, model=model, **changes)
        torch.save(model.module.state_dict(), directory / f"{name}-{rank}.pt")
    phases = {"steps": 30, "batch_size": 50, "freezing": LPFT(0.3), "epsilon": EpsilonSchedule.auto(1, 0.5)}
    beyond = {"objective": pt.AdversarialTraining(pt.PGD(pt.Linf(0.9), steps=2)), "stop_on_failure": True}
    beyond |= {"steps": 40, "epsilon": EpsilonSchedule.fixed()}
    for name, changes in (("phases", phases), ("ending", beyond)):
        model = tiny.backbone(pt.FullFineTune(bn="adapt"))
        tiny.run(directory / name, model=model, **{"eval_every": 20} | changes)
        torch.save(model.module.state_dict(), directory / f"{name}-{rank}.pt")
    reusing: dict[str, Any] = {
        "reuse": True,
        "attacks": [pt.PGD(pt.Linf(2 / 255), steps=3), pt.PGD(pt.L2(0.3), steps=3)],
    }
    tiny.run(directory / "reusing", **reusing)
    strict = pt.attacks.AutoAttack(pt.Linf(4 / 255), steps=4, queries=8, targets=2)
    tiny.run(directory / "confirming", steps=24, confirm=strict)
    guard = measuring.check_divergence
    measuring.check_divergence = stop_at_6  # on all processes alike
    for name, changes in (("stopped", {}), ("reusing-stopped", reusing)):
        with contextlib.suppress(LookupError):
            tiny.run(directory / name, **changes)
        assert not (directory / name / "DONE").exists()
    measuring.check_divergence = guard
    tiny.run(directory / "reusing-stopped", **reusing)
    if rank == "0":  # the others read it no sooner than this one has opened it
        for name in ("bits", "log.jsonl"):
            damage(directory / "stopped", name)
    tiny.run(directory / "stopped")
    if rank == "0":
        for name in ("adapter", "log.jsonl"):
            damage(directory / "learning", name)
    for name in ("stopped-bits", "stopped-log.jsonl", "learning-adapter", "learning-log.jsonl"):
        model = tiny.backbone(pt.FullFineTune(bn="adapt"))
        try:
            tiny.run(directory / name, model=model)
        except (ValueError, OSError) as error:
            (directory / f"refused-{name}-{rank}").write_text(str(error))
    for number, changes in enumerate(({"batch_size": 16}, {"resume": True})):
        try:
            tiny.run(directory / "learning", **changes)
        except ValueError as error:
            (directory / f"refused-{number}-{rank}").write_text(str(error))

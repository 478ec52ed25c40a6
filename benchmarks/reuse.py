"""What an evaluation saves that knows what is known: gradient evaluations, and what becomes of the accuracies.

python benchmarks/reuse.py                # 10 points of a ViT and of a ConvNet on the demo; appends to benchmarks/reuse.csv

Each backbone is fine-tuned twice, from scratch at every point and with ``reuse``; both runs learn the same weights, which is
checked. Then the adapter is measured at three radii, one by one and in one pass. Counted are gradients of one image in
evaluations alone. Seconds are of the process, and only fair on a machine that does nothing else.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

import paretune as pt
from _record import append, machine
from paretune.attacks.base import Oracle
from paretune.runs.store import Run
from paretune.strategies import FullFineTune
from paretune.sweeps.config import RunConfig
from paretune.training.processes import Processes

FILE = Path(__file__).with_suffix(".csv")
RADII = (1 / 255, 2 / 255, 4 / 255)


class Bill:
    """Gradients of one image, and seconds of the process, in what is run inside :meth:`paid`."""

    def __init__(self) -> None:
        self.gradients, self.seconds, self._open = 0, 0.0, False

    @contextlib.contextmanager
    def paid(self) -> Iterator[None]:
        """Count."""
        self._open, began = True, time.process_time()
        yield
        self._open = False
        self.seconds += time.process_time() - began

    @contextlib.contextmanager
    def of_evaluations(self) -> Iterator["Bill"]:
        """Count in every evaluation of a run."""
        gradient, evaluate = Oracle.gradient, Processes.evaluate

        def counted(oracle: Oracle, losses: Tensor, images: Tensor, **options: Any) -> Tensor:
            self.gradients += len(images) * self._open
            return gradient(oracle, losses, images, **options)

        def paying(*arguments: Any, **options: Any) -> Any:
            with self.paid():
                return evaluate(*arguments, **options)

        Oracle.gradient, Processes.evaluate = counted, paying  # type: ignore[method-assign, assignment]
        try:
            yield self
        finally:
            Oracle.gradient, Processes.evaluate = gradient, evaluate  # type: ignore[method-assign]


def trained(config: RunConfig, out: Path) -> tuple[Run, Bill]:
    """A run, and what its evaluations took."""
    with Bill().of_evaluations() as bill:
        (run,) = config.run(out, progress=False)
    return run, bill


def measured(config: RunConfig, run: Run, *, together: bool) -> tuple[list[float], Bill]:
    """Robust accuracy of the adapter at each radius, and what that took."""
    data: Any = config.load_data()
    model = config.load_backbone(len(data.classes), config.seed)
    pt.load_adapter(model, run.path / "adapter")
    accuracies = []
    with Bill().of_evaluations() as bill, bill.paid():
        for radii in [RADII] if together else [[radius] for radius in RADII]:
            scores = pt.evaluate(model, data.report, [config.attack], epsilons=radii)
            accuracies += [scores.robust_accuracy(attack) for attack in scores.robust]
    return accuracies, bill


def row(way: str, bill: Bill, robust: Any, scratch: Any) -> dict[str, Any]:
    """What is told of one way to evaluate, beside that from scratch."""
    higher = np.asarray(robust) - np.asarray(scratch)
    return {
        "way": way,
        "gradient_evaluations": bill.gradients,
        "cpu_seconds": round(bill.seconds, 1),
        "robust_mean": round(float(np.mean(robust)), 4),
        "highest_above_scratch": round(float(higher.max()), 4),
        "lowest_below_scratch": round(float(higher.min()), 4),
    }


def main() -> None:
    """Train and measure each backbone both ways, and append a row each."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--limit", type=int, default=1000)
    options.add_argument("--epochs", type=float, default=5.0)
    options.add_argument("--points", type=int, default=10)
    options.add_argument("--eval-steps", type=int, default=20)
    options.add_argument("--backbones", nargs="+", default=["dinov2-small", "efficientnet-lite0"])
    chosen = options.parse_args()
    torch.set_num_threads(1)
    about = machine()
    for backbone in chosen.backbones:
        config = RunConfig(
            backbone=backbone,
            strategy=FullFineTune(),
            limit=chosen.limit,
            epochs=chosen.epochs,
            points=chosen.points,
            eval_steps=chosen.eval_steps,
        )
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory)
            scratch, scratch_bill = trained(config, out / "scratch")
            reusing, reusing_bill = trained(replace(config, reuse=True), out / "reuse")
            weights = [
                load_file(run.path / "adapter/adapter_model.safetensors") for run in (scratch, reusing)
            ]
            assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
            robust = [run.points[["robust", "robust_select"]].to_numpy() for run in (scratch, reusing)]
            alone, alone_bill = measured(config, scratch, together=False)
            together, together_bill = measured(config, scratch, together=True)
        common = {
            "backbone": backbone,
            "examples": int(scratch.points["examples"].iloc[0]),
            "points": len(scratch.points),
            "attack": scratch.points["attack"].iloc[0],
        }
        for told in (
            row("every point from scratch", scratch_bill, robust[0], robust[0]),
            row("reuse", reusing_bill, robust[1], robust[0]),
            row("three radii one by one", alone_bill, alone, alone),
            row("three radii in one pass", together_bill, together, alone),
        ):
            append(FILE, common | told | about)
            print(common | told)


if __name__ == "__main__":
    main()

"""Run with a pretended libcuda.so.1 on the library path: each kernel through the launcher's real driver calls, and a
training run with its evaluations on top of them."""

import tempfile
from pathlib import Path

import torch

from paretune.kernels import launch
from paretune.selftest.comparing import step_checks
from tests import tiny
from tests.kernels.pretending import pretend_cuda, pretend_torch_cuda
from tests.kernels.simulator import simulated_step


def main() -> None:
    pretend_torch_cuda(setattr)
    for check in step_checks(simulated_step(launch.driver()), torch.device("cpu")):
        print(check.passed, check.name, check.detail)
    with tempfile.TemporaryDirectory() as directory:
        plain = tiny.run(Path(directory) / "plain", steps=2, eval_every=2)
        launched: list[str] = []
        run = launch.Driver.run

        def counting(self: launch.Driver, launches: list[launch.Launch], device: torch.device) -> None:
            launched.extend(each.kernel for each in launches)
            run(self, launches, device)

        launch.Driver.run = counting  # type: ignore[method-assign]
        pretend_cuda(setattr)
        through = tiny.run(Path(directory) / "through", steps=2, eval_every=2)
        same = through.points.robust.equals(plain.points.robust)
    print(same and len(launched) > 0, f"a training run, {len(launched)} launches")


if __name__ == "__main__":
    main()

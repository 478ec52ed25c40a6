"""Run with a pretended libcuda.so.1 on the library path: each kernel through the launcher's real driver calls."""

from types import SimpleNamespace

import torch

from paretune.kernels import launch
from paretune.selftest.comparing import start_checks, step_checks
from tests.kernels.simulator import simulated_start, simulated_step

torch.cuda.init = lambda: None
torch.cuda.current_device = lambda: 0
torch.cuda.current_stream = lambda device: SimpleNamespace(cuda_stream=77)
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.get_device_capability = lambda device: (9, 0)
torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=2)


def main() -> None:
    driver, cpu = launch.driver(), torch.device("cpu")
    checks = [*step_checks(simulated_step(driver), cpu), *start_checks(simulated_start(driver), cpu)]
    for check in checks:
        print(check.passed, check.name, check.detail)


if __name__ == "__main__":
    main()

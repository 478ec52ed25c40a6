"""Run with a pretended libcuda.so.1 on the library path: each kernel through the launcher's real driver calls."""

from types import SimpleNamespace

import torch

from paretune.kernels import launch
from paretune.selftest.comparing import step_checks
from tests.kernels.simulator import simulated_step

torch.cuda.init = lambda: None
torch.cuda.current_device = lambda: 0
torch.cuda.current_stream = lambda device: SimpleNamespace(cuda_stream=77)
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.get_device_capability = lambda device: (9, 0)
torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=2)


def main() -> None:
    for check in step_checks(simulated_step(launch.driver()), torch.device("cpu")):
        print(check.passed, check.name, check.detail)


if __name__ == "__main__":
    main()

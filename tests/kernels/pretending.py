"""A CUDA device as far as paretune looks: tensors that say they are on one, and the answers of torch.cuda."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from paretune.attacks.copy.options import CopyOptions


def pretend_cuda(put: Callable[[Any, str, Any], None]) -> None:
    """Through ``put``: setattr, or that of monkeypatch. Tensors stay on the CPU, where the kernels are simulated."""
    choose = CopyOptions.choose_engine
    put(torch.Tensor, "is_cuda", property(lambda self: True))
    put(
        CopyOptions,
        "choose_engine",
        lambda self, device, draws: choose(self, torch.device("cuda", 0), draws=draws),
    )
    pretend_torch_cuda(put)


def pretend_torch_cuda(put: Callable[[Any, str, Any], None]) -> None:
    """What the driver asks torch."""
    put(torch.cuda, "init", lambda: None)
    put(torch.cuda, "current_device", lambda: 0)
    put(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=77))
    put(torch.cuda, "is_current_stream_capturing", lambda: False)
    put(torch.cuda, "get_device_capability", lambda device: (9, 0))
    put(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=2))

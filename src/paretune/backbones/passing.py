"""One image through a network, to see what it does: nothing of it stays."""

from typing import Any

import torch
from torch import Tensor, nn

from paretune.backbones.modes import modes_kept
from paretune.backbones.random import borrowed_randomness
from paretune.data.sizes import ImageSize, pair


def blank_image(module: nn.Module, channels: int, size: ImageSize) -> Tensor:
    """One image of zeros (1, channels, height, width) on the device and of the type of ``module``."""
    some = next(parameter for parameter in module.parameters() if parameter.is_floating_point())
    return torch.zeros(1, channels, *pair(size), device=some.device, dtype=some.dtype)


def ramp_image(module: nn.Module, channels: int, size: ImageSize) -> Tensor:
    """One image (1, channels, height, width) like a blank one, whose pixels rise from 0 to 1."""
    blank = blank_image(module, channels, size)
    return torch.linspace(0, 1, blank.numel(), device=blank.device).to(blank.dtype).view_as(blank)


def one_pass(module: nn.Module, images: Tensor) -> Any:
    """What ``module`` makes of ``images`` in evaluation mode, without gradients.

    Afterwards its parts are in the modes they were in, and the random state is as it was.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with borrowed_randomness(devices), modes_kept(module), torch.no_grad():
        try:
            return module.eval()(images)
        finally:
            module.train()  # TinyViT and LeViT keep what they compute from parameters until training begins

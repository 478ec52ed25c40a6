"""Mixed precision of the passes that train."""

from collections.abc import Mapping

import torch
from torch import Tensor

_HALF = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """What losses are computed in, and the scale of float16 gradients.

    It is torch's own, because a process has one mixed precision of accelerate, for all that it ever trains.

    Args:
        device: that trains.
        name: ``"no"``, ``"bf16"`` or ``"fp16"``.
    """

    def __init__(self, device: torch.device, name: str = "no") -> None:
        self.device, self.half = device, _HALF[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Around losses: what is computed in mixed precision."""
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def tensors(self) -> dict[str, Tensor]:
        """The state of the scale, if there is one, for checkpoints."""
        return {name: torch.tensor(value) for name, value in self.scaler.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` has given."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict({name: value.item() for name, value in tensors.items()})

"""The options of an attacked copy."""

from dataclasses import dataclass
from typing import Literal

import torch

from paretune.attacks.copy.precision import Precision

#: What takes the steps of an attack; see :func:`~paretune.attacks.attack_copy`.
Engine = Literal["auto", "eager", "compiled", "graph"]
ENGINES: tuple[Engine, ...] = ("auto", "eager", "compiled", "graph")


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """The form of an attacked copy; :func:`~paretune.attacks.attack_copy` says what each option means.

    Raises:
        ValueError: an option is not one of its values.
    """

    precision: Literal["auto"] | Precision = "fp32"
    engine: Engine = "auto"
    fold_batchnorm: bool = True
    channels_last: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', got {self.precision!r}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {self.engine!r}")
        if self.channels_last not in (True, False, "auto"):
            raise ValueError(f"channels_last must be True, False or 'auto', got {self.channels_last!r}")

    def choose_engine(self, device: torch.device, *, draws: bool) -> tuple[Engine, str]:
        """What is to take the steps, and why.

        Args:
            device: of the model.
            draws: whether the model draws random numbers, which are others in a step that is recorded or compiled.
        """
        if self.engine == "eager":
            return "eager", "asked for"
        if self.engine == "auto" and device.type != "cuda":
            return "eager", f"there are no launches to save on a {device.type}"
        if draws:
            return "eager", "the model draws random numbers, which a recorded step does not draw as it does"
        if self.engine == "graph" and device.type != "cuda":
            return "eager", f"a CUDA graph needs a CUDA device, and the model is on {device}"
        if self.engine == "auto":
            return "graph", f"the model is on {device}, and a graph gives what single steps give"
        return self.engine, "asked for"

"""The arguments of one step, and what the kernels accept of them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: Of the ball that a step stays in.
Norm = Literal["Linf", "L2"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_NUMBERS = 2**31 - 1  # in one image: its index has 32 bits; the batch may hold more


@dataclass(frozen=True, eq=False)
class Step:
    """One step of PGD, inside the ball and [0, 1], and the network's next input.

    Args:
        gradient: of the loss that is climbed, shape of ``images``; float32, bfloat16 or float16. With respect to the
            normalised input if ``mean`` and ``std`` are given, else to the images.
        images: clean images (batch, channels, height, width) in [0, 1], float32.
        images_adv: the present point, likewise.
        norm: ``"Linf"`` or ``"L2"``.
        step_size: length of the step in pixel units: a number, or a float32 tensor with one value. Negative walks
            downhill. A CUDA tensor is read by the kernel, so a replayed graph sees what is in it then.
        epsilon: radius in pixel units, in the same forms.
        mean: float32, one value a channel: the network's normalisation.
        std: likewise, above 0.
        out_dtype: type of the model input; None where none is wanted.
    """

    gradient: Tensor
    images: Tensor
    images_adv: Tensor
    norm: Norm
    step_size: float | Tensor
    epsilon: float | Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    out_dtype: torch.dtype | None = None

    def check(self) -> None:
        """Raise on what a step cannot take. Only shapes, types and devices are looked at: nothing waits for the GPU.

        Raises:
            TypeError: a tensor has the wrong type.
            ValueError: shapes, devices or names do not fit.
        """
        images = self.images
        if self.norm not in ("Linf", "L2"):
            raise ValueError(f"norm must be 'Linf' or 'L2', got {self.norm!r}")
        if images.ndim < 2:
            raise ValueError(
                f"images must have the batch first and pixels after, got shape {tuple(images.shape)}"
            )
        for name in ("images_adv", "gradient"):
            tensor = getattr(self, name)
            if tensor.shape != images.shape:
                raise ValueError(
                    f"{name} must have the shape of images, {tuple(images.shape)}, got {tuple(tensor.shape)}"
                )
            if tensor.device != images.device:
                raise ValueError(f"{name} must be on {images.device} like images, got {tensor.device}")
        for name in ("images", "images_adv"):
            if getattr(self, name).dtype != torch.float32:
                raise TypeError(
                    f"{name} must be float32, got {getattr(self, name).dtype}; convert with .float()"
                )
        if self.gradient.dtype not in DTYPES:
            raise TypeError(f"gradient must be float32, bfloat16 or float16, got {self.gradient.dtype}")
        self._check_amount("step_size", self.step_size)
        self._check_amount("epsilon", self.epsilon)
        self._check_normalisation()

    def _check_amount(self, name: str, amount: float | Tensor) -> None:
        if not isinstance(amount, Tensor):
            return
        if amount.dtype != torch.float32:
            raise TypeError(f"{name} must be a number or a float32 tensor, got {amount.dtype}")
        if amount.ndim:
            raise ValueError(f"{name} must have one value, got shape {tuple(amount.shape)}")
        if amount.device != self.images.device and amount.device.type != "cpu":
            raise ValueError(f"{name} must be on {self.images.device} like images, got {amount.device}")

    def _check_normalisation(self) -> None:
        if (self.mean is None) != (self.std is None):
            given, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"{given} needs {other}: they are the normalisation of the model's input")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if values.numel() != self.images.shape[1]:
                raise ValueError(
                    f"{name} must have one value a channel ({self.images.shape[1]}), got {tuple(values.shape)}"
                )
            if values.dtype != torch.float32 or values.device != self.images.device:
                raise TypeError(
                    f"{name} must be float32 on {self.images.device}, got {values.dtype} on {values.device}"
                )
        if self.mean is not None and self.out_dtype is None:
            raise ValueError("mean and std need out_dtype, the type of the model's input")
        if self.out_dtype is not None and self.out_dtype not in DTYPES:
            raise TypeError(f"out_dtype must be float32, bfloat16 or float16, got {self.out_dtype}")

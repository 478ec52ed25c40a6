"""The fused step of projected gradient descent, in one CUDA launch, with plain PyTorch as its truth and fallback.

A step turns the gradient of the loss into the next point of the attack and the next input of the network: sign or
direction, projection, normalisation, cast. In eager PyTorch that is eight kernels and more; here it is one (L-inf, and
L2 of small images) or two (L2 of large images). It helps most with small models and images, whose time goes into
launches, and with L2, whose norms need several passes; a large model spends so little of its time here that it hardly
matters what computes the step.

The kernels are compiled for every supported architecture and run under a simulator of CUDA threads in the tests. They
have not yet been run on hardware: ``paretune selftest --gpu`` runs all checks on yours and prints a report.
"""

import functools
import logging

import torch
from torch import Tensor

from paretune.kernels import launch, nvrtc, reference
from paretune.kernels.step import MOST_NUMBERS, Norm, Step

__all__ = ["Norm", "Step", "obstacle", "pgd_step"]

_log = logging.getLogger(__name__)


def pgd_step(step: Step) -> tuple[Tensor, Tensor]:
    """The next point, and the network's next input: on a CUDA device by the kernel, elsewhere in plain PyTorch.

    Results are detached and have the memory layout of ``step.images`` (channels last or contiguous); other arguments in
    another layout are copied first. Arguments are not changed. A NaN in the gradient leaves its pixel where it is
    with L-inf, as ``torch.sign`` does, and makes its whole image NaN with L2.

    Example:
        >>> import torch
        >>> images = torch.full((1, 3, 2, 2), 0.5)
        >>> images_adv, _ = pgd_step(Step(-torch.ones_like(images), images, images, "Linf", step_size=0.1, epsilon=0.3))
        >>> round(images_adv.max().item(), 6)
        0.4

    Returns:
        The new point, float32, and ``((point - mean) / std).to(out_dtype)``, which is the point itself where
        ``out_dtype`` is None.

    Raises:
        TypeError: a tensor has the wrong type.
        ValueError: shapes, devices or names do not fit.
    """
    step.check()
    with torch.no_grad():
        if obstacle(step) is None:
            return launch.launch_step(step, launch.driver())
        return reference.pgd_step(step)


def obstacle(step: Step) -> str | None:
    """Why plain PyTorch computes ``step``, or None where the kernel does."""
    if not step.images.is_cuda:
        return f"the kernel needs images on a CUDA device, got {step.images.device}"
    if step.images.numel() > MOST_NUMBERS * len(step.images):
        return f"the kernel takes images of at most {MOST_NUMBERS} numbers, got {tuple(step.images.shape)}"
    return _not_loaded(launch.program_of(step), step.images.device)


@functools.cache
def _not_loaded(program: tuple[str, ...], device: torch.device) -> str | None:
    """Why ``program`` is not loaded on ``device``, or None if it is; tried once."""
    reason = nvrtc.missing()
    if reason is None:
        try:
            launch.driver().load(program, device)
        except RuntimeError as error:
            if torch.cuda.is_current_stream_capturing():  # it can be loaded afterwards
                raise
            reason = str(error)
    if reason is not None:
        _log.warning("attack steps on %s run in plain PyTorch: %s", device, reason)
    return reason

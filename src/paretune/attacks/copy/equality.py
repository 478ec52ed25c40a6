"""Whether a change of a model leaves its function as it is."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Tensor]


def difference(
    module: nn.Module, change: Callable[[nn.Module], object], image: Tensor, forward: Forward
) -> str:
    """Why ``module`` is not the same function after ``change``, or "" if it is; ``module`` itself is not changed.

    Compared in float64 on the CPU on random images, with random batch-norm statistics and no parameter that is zero
    throughout, so that neither rounding nor a layer that happens to be the identity can hide a mistake. A change that is
    exact algebra keeps half of the digits: the largest difference of the logits must not exceed sqrt(2^-52) of the
    largest logit.

    Args:
        module: a model in evaluation mode.
        change: changes a copy of it in place.
        image: one input (1, channels, height, width) that the model accepts; only its shape matters.
        forward: runs a model on a batch and returns its logits.
    """
    draw = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(module).to("cpu", torch.float64)
    # In channels_last a depthwise convolution of float64 lets its threads meet so often that it crawls on a busy machine,
    # where one of them is always waited for.
    trial.to(memory_format=torch.contiguous_format)
    for part in trial.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for name, low in (("running_mean", -0.5), ("running_var", 0.5), ("weight", 0.5), ("bias", -0.5)):
                tensor = getattr(part, name)
                if tensor is not None:
                    tensor.data = low + torch.rand(tensor.shape, generator=draw, dtype=torch.float64)
    for parameter in trial.parameters():
        if not parameter.any():  # a fresh head of zeros would make all logits equal
            parameter.data = torch.rand(parameter.shape, generator=draw, dtype=torch.float64)
    probe = torch.rand((2, *image.shape[1:]), generator=draw, dtype=torch.float64)
    try:
        with torch.no_grad():
            expected = forward(trial, probe)
            change(trial)
            logits = forward(trial, probe)
    except Exception as error:  # whatever foreign code raises here, it means that we cannot check
        return f"the check in float64 failed with {type(error).__name__}: {error}"
    if logits.shape != expected.shape:
        return f"its logits have shape {tuple(logits.shape)} instead of {tuple(expected.shape)}"
    largest, scale = float((logits - expected).abs().max()), float(expected.abs().max())
    if not largest <= torch.finfo(torch.float64).eps ** 0.5 * scale:
        return f"its logits differ by {largest:.3g} where the largest is {scale:.3g}"
    return ""

"""Adversarial weight perturbation: the step is taken with the gradient at the worst weights near by."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from paretune.backbones.backbone import Backbone
from paretune.strategies.mechanics.adapting import require_adaptation, trainable_parameters


@contextlib.contextmanager
def worst_weights(
    model: Backbone,
    gamma: float | None,
    descend: Callable[[], object],
    drop: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Have the weights w + v meanwhile, with v = gamma · ‖w‖ · g / ‖g‖ for each tensor of two or more axes.

    g is the gradient that ``descend`` accumulates, at w. Wu et al. 2020 (https://arxiv.org/abs/2004.05884, equations 8 to
    10, with one step as in their section 4 and their code, which perturbs what has more than one axis and leaves biases and
    norms alone); they take gamma = 0.005, and find the attacked images at w.

    Args:
        model: adapted. A trained tensor of zeros, as the factors that adapters begin with, stays where it is. Statistics of
            batch norms do not follow what ``descend`` shows them.
        gamma: size of v in units of w; None perturbs nothing.
        descend: makes the gradients of what is trained.
        drop: takes away those of what is frozen in this step, and therefore not perturbed.
    """
    if gamma is None:
        yield
        return
    parameters = list(trainable_parameters(model).values())
    statistics = require_adaptation(model).statistics(model.module).values()
    before = [buffer.clone() for buffer in statistics]
    descend()
    drop()
    with torch.no_grad():
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
        chosen = [p for p in parameters if p.ndim > 1 and p.grad is not None]
        kept = [p.detach().clone() for p in chosen]
        for p in chosen:
            assert p.grad is not None
            # As in the published code; where the gradient is zero there is no direction.
            p.add_(p.grad * (gamma * p.norm() / (p.grad.norm() + 1e-20)))
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(chosen, kept, strict=True):
                p.copy_(value)

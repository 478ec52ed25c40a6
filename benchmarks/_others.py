"""Attacks as other codes make them, which ours are timed beside; libraries that only the tests need are imported at use."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks import Linf

THREAT = Linf(4 / 255)
STEP_SIZE = 1 / 255


def backward_loop(model: nn.Module, images: Tensor, labels: Tensor, count: int) -> Tensor:
    """The loop that training codes copy from each other: loss.backward() in training mode, weights trainable."""
    low, high = (images - THREAT.epsilon).clamp(0, 1), (images + THREAT.epsilon).clamp(0, 1)
    images_adv = low + (high - low) * torch.rand_like(images)
    for _ in range(count):
        images_adv = images_adv.detach().requires_grad_()
        F.cross_entropy(model(images_adv), labels).backward()
        assert images_adv.grad is not None
        images_adv = (images_adv + STEP_SIZE * images_adv.grad.sign()).clamp(low, high)
    return images_adv.detach()


def image_loop(model: nn.Module, images: Tensor, labels: Tensor, count: int) -> Tensor:
    """What a careful user writes: the gradient of the images alone, by autograd.grad."""
    low, high = (images - THREAT.epsilon).clamp(0, 1), (images + THREAT.epsilon).clamp(0, 1)
    images_adv = low + (high - low) * torch.rand_like(images)
    for _ in range(count):
        leaf = images_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)
        images_adv = (images_adv + STEP_SIZE * gradient.sign()).clamp(low, high)
    return images_adv.detach()


def reference_autoattack(
    model: nn.Module, epsilon: float, *, steps: int, targets: int, queries: int, device: str
) -> Any:
    """AutoAttack of the package pyautoattack, standard version, at this budget."""
    import pyautoattack

    whole = pyautoattack.AutoAttack(model, norm="Linf", eps=epsilon, seed=0, device=device)
    whole.verbose = False
    whole.apgd.n_iter = whole.apgd_targeted.n_iter = whole.fab.n_iter = steps
    whole.apgd.n_restarts = whole.apgd_targeted.n_restarts = whole.fab.n_restarts = 1
    whole.apgd_targeted.n_target_classes = whole.fab.n_target_classes = targets
    whole.square.n_queries = queries
    return whole

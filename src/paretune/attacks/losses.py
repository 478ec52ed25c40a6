"""What attacks maximise, besides the cross-entropy: losses that do not fade when a model is confident."""

import torch
from torch import Tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the right class leads, (batch,): negative or zero where the image is misclassified.

    Args:
        logits: (batch, classes), at least 2 classes.
        labels: (batch,).
    """
    return _of(logits, labels) - _others(logits, labels).amax(dim=1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (batch,) in [-1, 1], positive where misclassified.

    −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3), where π sorts the logits downwards: unchanged by shifting and scaling
    the logits (Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks", https://arxiv.org/abs/2003.01690, equation 6).

    Args:
        logits: (batch, classes), at least 3 classes; NaN comes back where fewer are above minus infinity.
        labels: (batch,).
    """
    largest = logits.topk(3, dim=1).values
    return -margin(logits, labels) / _finite(largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """−(z_y − z_t) / (z_π1 − (z_π3 + z_π4) / 2), (batch,): positive where the target leads (equation 7 there).

    Args:
        logits: (batch, classes), at least 4 classes; NaN comes back where fewer are above minus infinity.
        labels: (batch,).
        targets: (batch,), other than the labels.
    """
    largest = logits.topk(4, dim=1).values
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12
    return (_of(logits, targets) - _of(logits, labels)) / _finite(scale)


def nearest_classes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The ``count`` wrong classes with the largest logits, (batch, count), the likeliest first.

    None has a logit of minus infinity: there are fewer if no image has as many others, and the likeliest once more for an
    image that has fewer than another.
    """
    others = _others(logits, labels)
    most = int(others.isfinite().sum(dim=1).amax()) if len(logits) else logits.shape[1] - 1
    largest, nearest = others.topk(min(count, most), dim=1)
    return torch.where(largest.isfinite(), nearest, nearest[:, :1])


def _finite(scale: Tensor) -> Tensor:
    """NaN in place of infinity, dividing by which would call the loss zero."""
    return scale.masked_fill(scale.isinf(), torch.nan)


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits, with that of the label at minus infinity."""
    return logits.scatter(1, labels[:, None], -torch.inf)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row (batch,), from logarithms of probabilities (batch, classes).

    A class that p rules out (minus infinity) adds nothing.
    """
    ruled_out = log_p == -torch.inf
    apart = log_p.masked_fill(ruled_out, 0) - log_q.masked_fill(ruled_out, 0)
    return (log_p.exp() * apart).sum(dim=1)

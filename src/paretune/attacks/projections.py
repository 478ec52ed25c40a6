"""The nearest point of a hyperplane inside [0, 1], in each norm: what FAB moves to.

Each solves: minimise the norm of δ subject to w · δ = gap and 0 ≤ x + δ ≤ 1 (Croce & Hein 2020, "Minimally distorted
Adversarial Examples with a Fast Adaptive Boundary Attack", https://arxiv.org/abs/1907.02044, section 2.2). Where even
the far corner of [0, 1] does not reach the plane, that corner is taken.
"""

import torch
from torch import Tensor

from paretune.attacks.threats import L1, L2, Threat


def onto_plane(threat: Threat, points: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The shortest way, in the norm of ``threat``, from each point to its plane inside [0, 1].

    Args:
        threat: whose norm is minimised; its radius is not used.
        points: (batch, ...) in [0, 1].
        normal: like ``points``: w.
        gap: (batch,): what w · δ must be.

    Returns:
        δ, like ``points``.
    """
    weights = normal.flatten(1) * torch.where(gap < 0, -1.0, 1.0)[:, None]
    size, gap = weights.abs(), gap.abs()[:, None]
    room = torch.where(weights > 0, 1 - points.flatten(1), points.flatten(1)) * (weights != 0)
    if isinstance(threat, L1):
        change = _dearest_first(size, room, gap)
    else:
        # In L2 pixels move in proportion to their weight, in Linf all alike; each stops at its bound.
        change = _all_together(size, room, gap, size if isinstance(threat, L2) else (size > 0).to(size.dtype))
    return (weights.sign() * change).view_as(points)


def _all_together(size: Tensor, room: Tensor, gap: Tensor, speed: Tensor) -> Tensor:
    """min(λ · speed, room) with the λ for which the gains Σ size · min(λ · speed, room) close the gap.

    The gains are concave and piecewise linear in λ, so Newton's method from 0 rises to the solution and ends there
    exactly, when no further pixel reaches its bound.
    """
    time = torch.zeros_like(gap)
    for _ in range(100):
        stopped = time * speed >= room
        rate = (size * speed).masked_fill(stopped, 0).sum(dim=1, keepdim=True)
        rest = gap - (size * room).masked_fill(~stopped, 0).sum(dim=1, keepdim=True)
        later = torch.where(rate > 0, torch.maximum(rest / rate, time), time)
        if torch.equal(later, time):
            break
        time = later
    return torch.minimum(time * speed, room)


def _dearest_first(size: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """In L1: the pixels of the largest weight go to their bounds, the last of them as far as is needed."""
    order = size.argsort(dim=1, descending=True)
    size, room = size.gather(1, order), room.gather(1, order)
    gains = size * room
    missing = gap - (gains.cumsum(dim=1) - gains)
    change = torch.minimum((missing / size.clamp(min=1e-30)).clamp_(min=0), room)
    return torch.empty_like(change).scatter_(1, order, change)

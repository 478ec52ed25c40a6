"""Projected gradient descent (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial
Attacks", https://arxiv.org/abs/1706.06083): climb the loss by steps of fixed length, and come back into the
ball after each.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks.active import ActiveSet, take
from paretune.attacks.base import Attack, Call, attacking
from paretune.attacks.copy.engine import AttackCopy


@dataclass(frozen=True)
class PGD(Attack):
    """Maximise the cross-entropy inside a threat's ball; as a function, from images to adversarial images.

    Example:
        >>> from paretune import PGD, Linf
        >>> attack = PGD(Linf(4 / 255), steps=20)
        >>> images_adv = attack(model, images, labels, seed=0)  # doctest: +SKIP

    Args:
        threat: the norm and the radius, for example ``Linf(8/255)``, ``L2(0.5)`` or ``L1(12)``.
        steps: gradient steps, at least 1.
        step_size: length of a step in pixel units, in the threat's norm. None takes 2.5 · epsilon / steps,
            with which the border can be reached from every start and walked along after (Madry et al., figure
            6).
        restarts: runs from different random starts; each reruns only the images that no earlier run has
            solved.
        random_start: start at a random point of the ball (Madry et al., section 3.1), not at the image
            itself.
        momentum: weight of the directions of earlier steps, from 0 (none) on; each gradient is scaled to mean
            absolute value 1 first (Dong et al. 2018, "Boosting Adversarial Attacks with Momentum",
            https://arxiv.org/abs/1710.06081, equations 6 and 7; they use 1).
        targeted: minimise the cross-entropy to ``targets`` instead; solved is what is classified as its
            target.
        keep: ``"best"`` returns for each image the first adversarial point met, the image itself included, else
            the last point of the run with the highest loss; a solved image leaves the batch. ``"last"`` returns
            the last point of the single run, with exactly ``steps`` forward and backward passes and nothing
            else: for training.

    Raises:
        TypeError: ``threat`` is not a threat.
        ValueError: a field is out of range, or ``restarts`` would repeat the same run.
    """

    _: KW_ONLY
    steps: int = 10
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    momentum: float = 0.0
    targeted: bool = False
    keep: Literal["best", "last"] = "best"

    lengths: ClassVar[tuple[str, ...]] = ("step_size",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "restarts")
        if self.step_size is not None and not (self.step_size > 0 and math.isfinite(self.step_size)):
            raise ValueError(
                f"PGD: step_size must be a finite number above 0, or None, got {self.step_size!r}"
            )
        if not (self.momentum >= 0 and math.isfinite(self.momentum)):
            raise ValueError(f"PGD: momentum must be a finite number of at least 0, got {self.momentum!r}")
        if self.keep not in ("best", "last"):
            raise ValueError(f"PGD: keep must be 'best' or 'last', got {self.keep!r}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"PGD: restarts={self.restarts} needs random_start=True, or all runs are the same"
            )
        if self.restarts > 1 and self.keep == "last":
            raise ValueError(f"PGD: restarts={self.restarts} needs keep='best'; keep='last' compares nothing")

    @property
    def effective_step_size(self) -> float:
        """Length of a step in pixel units."""
        return 2.5 * self.threat.epsilon / self.steps if self.step_size is None else self.step_size

    def __call__(
        self,
        model: nn.Module | AttackCopy,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        places: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`~paretune.attacks.base.Attack.__call__`.

        Args:
            model: a classifier or an attack copy.
            images: (batch, channels, height, width) in [0, 1].
            labels: (batch,), integers.
            seed: seeds the random starts.
            places: (batch,) whole numbers: where the images are in a larger set.
            targets: for ``targeted``, the wanted classes (batch,), integers.
        """
        if self.targeted != (targets is not None):
            wanted = (
                "needs targets=" if self.targeted else "does not take targets; use PGD(..., targeted=True)"
            )
            raise ValueError(f"PGD(targeted={self.targeted}) {wanted}")
        with attacking(model, images, labels, seed, places, targets) as call:
            if call.images.numel() == 0:
                return call.images.clone()
            run = _Run(self, call, call.labels if call.targets is None else call.targets)
            return run.last() if self.keep == "last" else run.best()


@dataclass(frozen=True, eq=False)
class _Lanes:
    """What a run remembers of each image."""

    images: Tensor
    images_adv: Tensor
    goals: Tensor
    direction: Tensor  # accumulated by momentum; empty rows without


@dataclass(frozen=True)
class _Run:
    """One call of an attack."""

    attack: PGD
    call: Call
    goals: Tensor  # labels, or targets

    def last(self) -> Tensor:
        attack, everything = self.attack, torch.arange(len(self.goals), device=self.goals.device)
        if not attack.momentum:
            return self.call.oracle.victim.ascend(
                attack.threat,
                self.call.images,
                self.start(everything),
                self.goals,
                step_size=attack.effective_step_size,
                steps=attack.steps,
                targeted=attack.targeted,
            )
        lanes = self.lanes(self.start(everything), everything)
        for _ in range(self.attack.steps):
            images_adv = lanes.images_adv.requires_grad_()
            losses = self.losses(self.call.oracle.logits(images_adv), lanes.goals)
            lanes = self.advance(lanes, self.call.oracle.gradient(losses, images_adv))
        return lanes.images_adv

    def best(self) -> Tensor:
        images, oracle = self.call.images, self.call.oracle
        result = images.clone()
        clean = oracle.exact(images)
        highest = self.losses(clean, self.goals)
        unsolved = (~self.hits(clean, self.goals)).nonzero().flatten()
        for run in range(self.attack.restarts):
            if not len(unsolved):
                break
            lanes, active = self.lanes(self.start(unsolved, run), unsolved), ActiveSet(unsolved)
            for step in range(self.attack.steps + 1):
                last = step == self.attack.steps
                with torch.set_grad_enabled(not last):
                    images_adv = lanes.images_adv.requires_grad_(not last)
                    logits = oracle.logits(images_adv)
                    losses = self.losses(logits, lanes.goals)
                solved = active.searching & self.hits(logits, lanes.goals)
                solved = oracle.verified(
                    images_adv.detach(), lanes.goals, solved, targeted=self.attack.targeted
                )
                result[active.rows[solved]] = images_adv.detach()[solved]
                if last:
                    better = active.searching & ~solved & (losses > highest[active.rows])
                    result[active.rows[better]] = images_adv[better]
                    highest[active.rows[better]] = losses[better]
                    active.searching &= ~solved
                    break
                keep = active.retire(solved)
                if not len(active.rows):
                    break
                gradient = oracle.gradient(losses, images_adv)
                if keep is not None:
                    lanes, gradient = take(lanes, keep), gradient[keep]
                lanes = self.advance(lanes, gradient)
            unsolved = active.rows[active.searching]
        return result

    def lanes(self, images_adv: Tensor, rows: Tensor) -> _Lanes:
        images = self.call.images[rows]
        direction = torch.zeros_like(images) if self.attack.momentum else images.new_empty(len(rows), 0)
        return _Lanes(images, images_adv, self.goals[rows], direction)

    def start(self, rows: Tensor, run: int = 0) -> Tensor:
        images = self.call.images[rows]
        if not self.attack.random_start:
            return images
        return self.attack.threat.random_start(images, self.call.streams.take(rows), run)

    def advance(self, lanes: _Lanes, gradient: Tensor) -> _Lanes:
        threat, direction = self.attack.threat, lanes.direction
        if self.attack.momentum:
            scale = gradient.flatten(1).abs().mean(dim=1).clamp_(min=1e-38)
            gradient = gradient / scale.view(-1, *[1] * (gradient.ndim - 1))
            gradient = direction = self.attack.momentum * direction + gradient
        moved = threat.step(lanes.images_adv.detach(), gradient, self.attack.effective_step_size)
        return replace(lanes, images_adv=threat.project(moved, lanes.images), direction=direction)

    def losses(self, logits: Tensor, goals: Tensor) -> Tensor:
        """What the attack maximises, for each image."""
        losses = F.cross_entropy(logits, goals, reduction="none")
        return -losses if self.attack.targeted else losses

    def hits(self, logits: Tensor, goals: Tensor) -> Tensor:
        predicted = self.call.oracle.classes(logits)
        return predicted == goals if self.attack.targeted else predicted != goals

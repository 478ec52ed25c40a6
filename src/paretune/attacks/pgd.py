"""Projected gradient descent (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial
Attacks", https://arxiv.org/abs/1706.06083): climb the loss by steps of fixed length, and come back into the
ball after each.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paretune.attacks.base import Call
from paretune.attacks.copy.engine import AttackCopy
from paretune.attacks.losses import kl_divergence
from paretune.attacks.search import Examples, Search, SearchAttack
from paretune.attacks.streams import Streams
from paretune.kernels.reference import per_example


@dataclass(frozen=True)
class PGD(SearchAttack):
    """Maximise a loss inside a threat's ball; as a function, from images to adversarial images.

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
            else (but for the pass of ``images`` that ``"kl"`` and ``"l2"`` compare with): for training.
        loss: what is maximised. ``"ce"`` is the cross-entropy of the labels. ``"kl"`` is KL(p(x) ‖ p(x')) of the
            predictions for the image and the changed image, for which the labels do not count (Zhang et al. 2019,
            https://arxiv.org/abs/1901.08573). ``"l2"`` is ‖f(x') - f(x)‖², of what the model returns
            (Schlarmann et al. 2024, https://arxiv.org/abs/2402.12336, equation 3). As the gradient of ``"kl"`` is zero
            at the image itself, its random start is the one of the paper's code: Gaussian noise of standard deviation
            0.001, brought into the ball and into [0, 1]. That of the others is a point of the ball.

    Raises:
        TypeError: ``threat`` is not a threat.
        ValueError: a field is out of range, ``restarts`` would repeat the same run, or ``loss`` has no gradient to start
            with, or no targets.
    """

    _: KW_ONLY
    steps: int = 10
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    momentum: float = 0.0
    targeted: bool = False
    keep: Literal["best", "last"] = "best"
    loss: Literal["ce", "kl", "l2"] = "ce"

    lengths: ClassVar[tuple[str, ...]] = ("step_size",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "restarts")
        if not (self.momentum >= 0 and math.isfinite(self.momentum)):
            raise ValueError(f"PGD: momentum must be a finite number of at least 0, got {self.momentum!r}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"PGD: restarts={self.restarts} needs random_start=True, or all runs are the same"
            )
        if self.restarts > 1 and self.keep == "last":
            raise ValueError(f"PGD: restarts={self.restarts} needs keep='best'; keep='last' compares nothing")
        if self.loss != "ce" and (self.targeted or not self.random_start):
            wrong = (
                "targeted=False" if self.targeted else "random_start=True: its gradient is zero at the image"
            )
            raise ValueError(f"PGD: loss={self.loss!r} needs {wrong}")

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
        reference: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`~paretune.attacks.base.Attack.__call__`.

        Args:
            model: a classifier or an attack copy.
            images: (batch, channels, height, width) in [0, 1].
            labels: (batch,), integers.
            seed: seeds the random starts.
            places: (batch,) whole numbers: where the images are in a larger set.
            targets: for ``targeted``, the wanted classes (batch,), integers.
            reference: for ``loss="l2", keep="last"``, what the outputs are to be far from (batch, outputs), of any model
                and not necessarily logits; None takes the model's own for ``images``.
            start: for ``keep="last"``, where to start, like ``images``; brought into the ball and into [0, 1]. An image with
                NaN starts as it would without this.
        """
        if start is not None and self.keep != "last":
            raise ValueError(f"start= is for PGD(..., keep='last'), got keep={self.keep!r}")
        if reference is not None and (self.loss, self.keep) != ("l2", "last"):
            raise ValueError(
                f"reference= is for PGD(..., loss='l2', keep='last'), got loss={self.loss!r}, keep={self.keep!r}"
            )
        if self.targeted != (targets is not None):
            wanted = (
                "needs targets=" if self.targeted else "does not take targets; use PGD(..., targeted=True)"
            )
            raise ValueError(f"PGD(targeted={self.targeted}) {wanted}")
        return self._attacked(model, images, labels, seed, places, targets, reference, start)

    def for_training(self) -> Self:
        """With ``keep="last"``; see :meth:`~paretune.attacks.base.Attack.for_training`."""
        if self.targeted:
            raise ValueError("adversarial training needs an untargeted attack; got targeted=True")
        return replace(self, keep="last")

    def passes(self, classes: int) -> int:
        """See :meth:`~paretune.attacks.base.Attack.passes`."""
        return 2 * self.steps * self.restarts + (self.loss != "ce")

    def perturb(self, call: Call) -> Tensor:
        """See :meth:`~paretune.attacks.base.Attack.perturb`."""
        if self.keep == "best":
            return super().perturb(call)
        goals = call.goals
        if self.loss != "ce":
            with torch.no_grad():
                clean = call.oracle.logits(call.images) if call.reference is None else call.reference
            goals = self._compared(clean)
        lanes = self._begin(call.images, goals, call.streams, run=0)
        if call.start is not None:
            known = call.start.flatten(1).isfinite().all(dim=1)
            given = self.threat.project(
                torch.where(per_example(known, call.start), call.start, 0.0), call.images
            )
            lanes = replace(lanes, images_adv=torch.where(per_example(known, given), given, lanes.images_adv))
        if self.loss == "ce" and not self.momentum:
            return call.oracle.victim.ascend(
                self.threat,
                lanes.images,
                lanes.images_adv,
                lanes.goals,
                step_size=self.effective_step_size,
                steps=self.steps,
                targeted=self.targeted,
                highest_class=call.oracle.highest_class,
            )
        for _ in range(self.steps):
            images_adv = lanes.images_adv.requires_grad_()
            losses = self._losses(call.oracle.logits(images_adv), lanes.goals)
            lanes = self._advance(lanes, call.oracle.gradient(losses, images_adv))
        return lanes.images_adv

    def solve(self, search: Search) -> None:
        """See :meth:`~paretune.attacks.search.SearchAttack.solve`; an unsolved image has the highest loss of the clean
        image and the last points of the runs."""
        oracle, examples = search.oracle, search.examples
        search.offer(examples.images, self._losses(examples.clean, self._goals(examples)))
        for run, part in search.runs(self.restarts):
            lanes = self._begin(part.images, self._goals(part), part.streams, run)
            for step in range(self.steps + 1):
                last = step == self.steps
                with torch.set_grad_enabled(not last):
                    images_adv = lanes.images_adv.requires_grad_(not last)
                    logits = oracle.logits(images_adv)
                    losses = self._losses(logits, lanes.goals)
                search.note(images_adv.detach(), logits)
                if last:
                    search.offer(images_adv, losses)
                if last or not search.left:
                    break
                gradient = oracle.gradient(losses, images_adv)
                lanes, gradient = search.shrink(lanes, gradient)
                lanes = self._advance(lanes, gradient)

    def _begin(self, images: Tensor, goals: Tensor, streams: Streams, run: int) -> "_Lanes":
        start = images.clone()
        if self.loss == "kl":
            start = self.threat.project(images + streams.draw(run, images, _small_noise), images)
        elif self.random_start:
            start = self.threat.random_start(images, streams, run)
        direction = torch.zeros_like(images) if self.momentum else images.new_empty(len(images), 0)
        return _Lanes(images, goals, start, direction)

    def _advance(self, lanes: "_Lanes", gradient: Tensor) -> "_Lanes":
        direction = lanes.direction
        if self.momentum:
            scale = gradient.flatten(1).abs().mean(dim=1).clamp_(min=1e-38)
            gradient = gradient / per_example(scale, gradient)
            gradient = direction = self.momentum * direction + gradient
        moved = self.threat.move(lanes.images_adv.detach(), gradient, self.effective_step_size, lanes.images)
        return replace(lanes, images_adv=moved, direction=direction)

    def _compared(self, outputs: Tensor) -> Tensor:
        """The goals of a loss that compares with these ``outputs``."""
        return outputs.log_softmax(dim=1) if self.loss == "kl" else outputs

    def _goals(self, examples: Examples) -> Tensor:
        return examples.labels if self.loss == "ce" else self._compared(examples.clean)

    def _losses(self, logits: Tensor, goals: Tensor) -> Tensor:
        """What the attack maximises, for each image."""
        if self.loss == "l2":
            return (logits - goals).square().sum(dim=1)
        if self.loss == "kl":
            return kl_divergence(goals, logits.log_softmax(dim=1))
        losses = F.cross_entropy(logits, goals, reduction="none")
        return -losses if self.targeted else losses


def _small_noise(image: Tensor, generator: torch.Generator) -> Tensor:
    """As ``trades.py`` of https://github.com/yaodongyu/TRADES starts."""
    return 0.001 * torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)


@dataclass(frozen=True, eq=False)
class _Lanes:
    """What a run remembers of each image."""

    images: Tensor
    goals: Tensor  # classes, or what a loss without labels compares with
    images_adv: Tensor
    direction: Tensor  # accumulated by momentum; empty rows without

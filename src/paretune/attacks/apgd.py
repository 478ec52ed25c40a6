"""Auto-PGD (Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", https://arxiv.org/abs/2003.01690, algorithm 1): projected gradient ascent with momentum that
halves the step of an image when it stops making progress, and goes on from its best point then.

For L1, the variant of Croce & Hein 2021 ("Mind the Box", https://arxiv.org/abs/2103.01208, algorithm 1): sparse steps
whose number of pixels follows the best point so far.
"""

from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from paretune.attacks.base import Call, Oracle
from paretune.attacks.losses import dlr, nearest_classes, targeted_dlr
from paretune.attacks.search import Examples, Search, SearchAttack
from paretune.attacks.threats import L1, Threat
from paretune.kernels.reference import per_example

MOMENTUM = 0.75  # of algorithm 1, where it is alpha


@dataclass(frozen=True)
class APGD(SearchAttack):
    """Projected gradient ascent that chooses its own step sizes.

    Under L1 each run starts with three tenths of the steps in the ball of three times the radius and three tenths in
    that of twice the radius ("Mind the Box", section 3.3).

    Example:
        >>> from paretune.attacks import APGD, Linf
        >>> attack = APGD(Linf(4 / 255), loss="dlr-targeted", targets=3)
        >>> images_adv = attack(model, images, labels, seed=0)  # doctest: +SKIP

    Args:
        loss: ``"ce"``, the cross-entropy; ``"dlr"``, the difference of logits ratio, which does not vanish when the
            model is confident (needs 3 classes); ``"dlr-targeted"``, the same towards one wrong class after the
            other (needs 4).
        steps: gradient steps of a run, at least 1.
        restarts: runs from different random starts, for each target; each reruns only what is unsolved.
        targets: for ``"dlr-targeted"``: how many wrong classes to try, the likeliest first.
        rho: the step is halved where the loss grew in less than this share of the steps since the last look.
        eot: gradients averaged for a step, for models that draw random numbers (Athalye et al. 2018, expectation
            over transformation); 1 for all others.
        keep: ``"best"`` returns for each image the first adversarial point met, else the point with the highest
            loss; a solved image leaves the batch. ``"last"`` returns the last point of a single run, with exactly
            ``steps`` · ``eot`` forward and backward passes and nothing else: for training.

    Raises:
        TypeError: ``threat`` is not a threat.
        ValueError: a field is out of range; or, when called, the model has too few classes for the loss; a class
            whose logit is minus infinity counts as none, and is never a target.
    """

    _: KW_ONLY
    loss: Literal["ce", "dlr", "dlr-targeted"] = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    rho: float = 0.75
    eot: int = 1
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("steps", "restarts", "targets", "eot")
        if not 0 < self.rho < 1:
            raise ValueError(f"APGD: rho must lie between 0 and 1, got {self.rho!r}")
        if self.keep == "last" and (self.restarts > 1 or self.loss == "dlr-targeted"):
            raise ValueError(
                "APGD: keep='last' makes a single run, so it needs restarts=1 and loss='ce' or 'dlr'; "
                f"got restarts={self.restarts}, loss={self.loss!r}"
            )

    def check_victim(self, classes: int, ruled_out: int = 0) -> None:
        """Refuse a model with too few classes for the loss, less those whose logit is minus infinity."""
        needed, left = {"ce": 2, "dlr": 3, "dlr-targeted": 4}[self.loss], classes - ruled_out
        if left < needed:
            of = f" (of {classes}, {ruled_out} have a logit of minus infinity)" if ruled_out else ""
            instead = "loss='ce'" if left < 3 else "loss='ce' or loss='dlr'"
            without = ", or AutoAttack on a model without those logits" if ruled_out else ""
            raise ValueError(
                f"APGD: loss={self.loss!r} needs a model with at least {needed} classes, got {left}{of}; "
                f"use {instead}, or FAB and Square{without}"
            )

    def for_training(self) -> Self:
        """With ``keep="last"``; see :meth:`~paretune.attacks.base.Attack.for_training`."""
        return replace(self, keep="last")

    def passes(self, classes: int) -> int:
        """See :meth:`~paretune.attacks.base.Attack.passes`."""
        targets = min(self.targets, classes - 1) if self.loss == "dlr-targeted" else 1
        return 2 * self.steps * self.restarts * self.eot * targets

    def perturb(self, call: Call) -> Tensor:
        """See :meth:`~paretune.attacks.base.Attack.perturb`."""
        if self.keep == "best":
            return super().perturb(call)
        start = self.threat.random_start(call.images, call.streams)
        return _Run(self, call.oracle, self.threat, self.steps).last(call.images, call.goals, start)

    def solve(self, search: Search) -> None:
        """See :meth:`~paretune.attacks.search.SearchAttack.solve`; an unsolved image has its highest loss."""
        oracle, examples = search.oracle, search.examples
        possible = examples.clean.isfinite()
        most_out = 0 if self.loss == "ce" or not len(possible) else int((~possible).sum(dim=1).amax())
        self.check_victim(possible.shape[1], most_out)
        targets = examples.labels[:, None]
        if self.loss == "dlr-targeted":
            targets = nearest_classes(examples.clean, examples.labels, self.targets)
        *wide, (threat, steps) = self.phases()
        for number, part in search.runs(targets.shape[1] * self.restarts):
            towards = targets[search.rows, number // self.restarts]
            start = (wide[0][0] if wide else threat).random_start(part.images, part.streams, number)
            for larger, some in wide:
                start = _Run(self, oracle, larger, some).highest(
                    part, towards, larger.project(start, part.images)
                )
            _Run(self, oracle, threat, steps).solve(search, part, towards, threat.project(start, part.images))

    def phases(self) -> list[tuple[Threat, int]]:
        """The ball and the steps of each part of a run; only in the last one does a success count."""
        wide = -(-3 * self.steps // 10)
        if not isinstance(self.threat, L1) or self.steps <= 2 * wide:
            return [(self.threat, self.steps)]
        larger = [self.threat.with_epsilon(factor * self.threat.epsilon) for factor in (3, 2)]
        return [*((threat, wide) for threat in larger), (self.threat, self.steps - 2 * wide)]


@dataclass(frozen=True, eq=False)
class _Lanes:
    """What a run remembers of each image."""

    images: Tensor
    labels: Tensor
    targets: Tensor
    images_adv: Tensor
    previous: Tensor  # the point before images_adv
    gradient: Tensor  # at images_adv
    best: Tensor  # the point with the highest loss
    best_gradient: Tensor
    highest: Tensor  # loss of best
    loss: Tensor  # at images_adv
    step: Tensor  # (lanes, 1, 1, ...), length in pixel units
    rises: Tensor  # steps since the last look at which the loss grew
    highest_then: Tensor  # highest, at the last look
    halved_then: Tensor  # whether the step was halved at the last look
    pixels: Tensor  # L1: how many pixels of best have changed, at the last look


@dataclass(frozen=True)
class _Run:
    """One run from one start. With ``wide`` balls, or for training, no success is looked for."""

    attack: APGD
    oracle: Oracle
    threat: Threat
    steps: int

    def last(self, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        lanes = self.begin(images, labels, labels, start)
        for tick in range(self.steps):
            _, losses, gradient = self.look(lanes)
            lanes = self.move(self.remember(lanes, losses, gradient, tick), tick)
        return lanes.images_adv

    def highest(self, part: Examples, targets: Tensor, start: Tensor) -> Tensor:
        lanes = self.begin(part.images, part.labels, targets, start)
        for tick in range(self.steps):
            _, losses, gradient = self.look(lanes)
            lanes = self.move(self.remember(lanes, losses, gradient, tick), tick)
        _, losses, _ = self.look(lanes, final=True)
        return _where(losses > lanes.highest, lanes.images_adv, lanes.best)

    def solve(self, search: Search, part: Examples, targets: Tensor, start: Tensor) -> None:
        lanes = self.begin(part.images, part.labels, targets, start)
        for tick in range(self.steps + 1):
            final = tick == self.steps
            logits, losses, gradient = self.look(lanes, final=final)
            search.note(lanes.images_adv, logits)
            if final:
                higher = losses > lanes.highest
                best = _where(higher, lanes.images_adv, lanes.best)
                search.offer(best, torch.where(higher, losses, lanes.highest))
            if final or not search.left:
                return
            lanes, losses, gradient = search.shrink(lanes, losses, gradient)
            if tick == 0:
                self.oracle.count_zeros(gradient)
            lanes = self.move(self.remember(lanes, losses, gradient, tick), tick)

    def begin(self, images: Tensor, labels: Tensor, targets: Tensor, start: Tensor) -> _Lanes:
        nothing, zeros = torch.zeros_like(images), torch.zeros(len(images), device=images.device)
        lowest = torch.full_like(zeros, -torch.inf)
        step = (1 if isinstance(self.threat, L1) else 2) * self.threat.epsilon
        return _Lanes(
            images=images,
            labels=labels,
            targets=targets,
            images_adv=start,
            previous=start,
            gradient=nothing,
            best=start,
            best_gradient=nothing,
            highest=lowest,
            loss=lowest,
            step=torch.full_like(per_example(zeros, images), step),
            rises=zeros,
            highest_then=lowest,
            halved_then=torch.ones_like(zeros, dtype=torch.bool),
            pixels=self.changed(start, images),
        )

    def look(self, lanes: _Lanes, *, final: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, loss and gradient at the present points; no gradient in the ``final`` look."""
        if final:
            with torch.no_grad():
                logits = self.oracle.logits(lanes.images_adv)
                return logits, self.losses(logits, lanes), lanes.gradient
        total: Tensor | None = None
        for _ in range(self.attack.eot):
            images_adv = lanes.images_adv.detach().requires_grad_()
            logits = self.oracle.logits(images_adv)
            losses = self.losses(logits, lanes)
            gradient = self.oracle.gradient(losses, images_adv)
            total = gradient if total is None else total + gradient
        assert total is not None  # eot is at least 1
        return logits.detach(), losses.detach(), total / self.attack.eot if self.attack.eot > 1 else total

    def losses(self, logits: Tensor, lanes: _Lanes) -> Tensor:
        """What the attack maximises, for each image."""
        self.attack.check_victim(logits.shape[1])
        match self.attack.loss:
            case "ce":
                return F.cross_entropy(logits, lanes.labels, reduction="none")
            case "dlr":
                return dlr(logits, lanes.labels)
            case "dlr-targeted":
                return targeted_dlr(logits, lanes.labels, lanes.targets)

    def remember(self, lanes: _Lanes, losses: Tensor, gradient: Tensor, tick: int) -> _Lanes:
        """Take in what was seen at the present points, and look back where ``tick`` is a checkpoint."""
        higher = losses > lanes.highest
        lanes = replace(
            lanes,
            gradient=gradient,
            best=_where(higher, lanes.images_adv, lanes.best),
            best_gradient=_where(higher, gradient, lanes.best_gradient),
            highest=torch.where(higher, losses, lanes.highest),
            rises=lanes.rises + (losses > lanes.loss) if tick else lanes.rises,
            loss=losses,
        )
        if tick == 0:
            return replace(lanes, highest_then=lanes.highest)
        window = _checkpoints(self.steps, isinstance(self.threat, L1)).get(tick)
        if window is None:
            return lanes
        return self.sparsify(lanes) if isinstance(self.threat, L1) else self.halve(lanes, window)

    def halve(self, lanes: _Lanes, window: int) -> _Lanes:
        """Halve the steps that no longer help, and go back to the best point (section 3.2, conditions 1 and 2)."""
        seldom = lanes.rises <= self.attack.rho * window  # "<" in the paper, "<=" in its code
        stuck = ~lanes.halved_then & (lanes.highest <= lanes.highest_then)
        halved = seldom | stuck
        return replace(
            lanes,
            step=_where(halved, lanes.step / 2, lanes.step),
            images_adv=_where(halved, lanes.best, lanes.images_adv),
            gradient=_where(halved, lanes.best_gradient, lanes.gradient),
            rises=torch.zeros_like(lanes.rises),
            highest_then=lanes.highest,
            halved_then=halved,
        )

    def sparsify(self, lanes: _Lanes) -> _Lanes:
        """Follow the number of pixels the best point changes; where it falls, go back there with the full step."""
        pixels = self.changed(lanes.best, lanes.images)
        sparser = pixels < 0.95 * lanes.pixels
        longest = self.threat.epsilon
        step = _where(sparser, torch.full_like(lanes.step, longest), lanes.step / 1.5)
        return replace(
            lanes,
            step=step.clamp(longest / 10, longest),
            images_adv=_where(sparser, lanes.best, lanes.images_adv),
            gradient=_where(sparser, lanes.best_gradient, lanes.gradient),
            pixels=pixels,
        )

    def move(self, lanes: _Lanes, tick: int) -> _Lanes:
        """One step from the present points (algorithm 1, lines 7 and 8)."""
        images, here = lanes.images, lanes.images_adv
        if isinstance(self.threat, L1):
            direction = _sparse_sign(lanes.gradient, lanes.pixels / 1.5)
            there = self.threat.project(here + lanes.step * direction, images)
        else:
            there = self.threat.project(self.threat.step(here, lanes.gradient, lanes.step), images)
            if tick:
                momentum = (1 - MOMENTUM) * (here - lanes.previous)
                there = self.threat.project(here + MOMENTUM * (there - here) + momentum, images)
        return replace(lanes, images_adv=there, previous=here)

    def changed(self, images_adv: Tensor, images: Tensor) -> Tensor:
        if not isinstance(self.threat, L1):
            return torch.zeros(len(images), device=images.device)
        return (images_adv != images).flatten(1).sum(dim=1).float()


@cache
def _checkpoints(steps: int, sparse: bool) -> dict[int, int]:
    """At which steps to look back, and how many steps that covers (section 3.2: p_0 = 0.22, shrinking by 0.03 down to
    0.06; "Mind the Box": always 0.04)."""
    window = max(int((0.04 if sparse else 0.22) * steps), 1)
    shrink = 0 if sparse else max(int(0.03 * steps), 1)
    smallest = window if sparse else max(int(0.06 * steps), 1)
    checkpoints, tick = {}, window
    while tick <= steps:
        checkpoints[tick] = window
        window = max(window - shrink, smallest)
        tick += window
    return checkpoints


def _sparse_sign(gradient: Tensor, pixels: Tensor) -> Tensor:
    """The signs of the ``pixels`` (batch,) largest slopes of each image, scaled to L1 length 1."""
    slopes = gradient.flatten(1)
    count = slopes.shape[1]
    place = (count - pixels.clamp(max=count)).clamp(0, count - 1).long()
    threshold = slopes.abs().sort(dim=1).values.gather(1, place[:, None])
    signs = slopes.sign() * (slopes.abs() >= threshold)
    return (signs / signs.abs().sum(dim=1, keepdim=True).clamp(min=1)).view_as(gradient)


def _where(lanes: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(per_example(lanes, yes), yes, no)
